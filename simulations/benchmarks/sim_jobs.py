"""Jobs, sites and plain PEFT steps that simulations are timed on: MiniLM, LoRA of rank 8, 3 labels.

Every site has ``batch`` records of exactly ``length`` tokens, made of words that are one token
each, and a step sees all of them: so that any two ways of training compute on the same tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.adapter import LoadedAdapter, Vector, load_adapter, read_vector
from common.config import parse
from common.data.records import Record
from common.data.writers import write_records
from common.job import Job
from common.model import content_hash, load_tokenizer, locate
from common.privacy.persample import trainable
from common.tasks import task_of
from common.tasks.batches import Example, collate
from simulations.engine.site import trainer_of
from simulations.scenario import Scenario
from simulations.seeded import seeded_keys

BASE = "builtin:minilm"
LABELS = ("a", "b", "c")
PRIVATE = {"mode": "site", "epsilon": 8.0, "delta": 1e-5, "clip_norm": 0.5, "sampling_rate": 1.0}
PLAIN = {"mode": "none", "sampling_rate": 1.0}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3}


def names(sites: int) -> list[str]:
    """The sites' names."""
    return [f"S{i:04d}" for i in range(sites)]


def make_job(
    sites: int,
    batch: int,
    length: int,
    hold_out: Path | None = None,
    *,
    privacy: dict[str, Any] = PLAIN,
    dtype: str = "float32",
    **training: Any,  # noqa: ANN401 -- what the schema takes
) -> Job:
    """A job whose sites have ``batch`` records each, all of which are in every step."""
    return parse(
        Job,
        {
            "job": {"name": "benchmark"},
            "model": {
                "base": BASE,
                "sha256": _base_sha256(),
                "max_length": max(16, length),
                "dtype": dtype,
            },
            "adapter": {"method": "fedavg", "rank": 8, "targets": ["query", "value"]},
            "training": {"rounds": 1, "local_steps": 1, "deadline_s": 86400.0, **ADAMW, **training},
            "privacy": privacy,
            "data": {
                "name": "words",
                "labels": list(LABELS),
                "population": dict.fromkeys(names(sites), batch),
            },
            "evaluation": {"data": str(hold_out or "none"), "records": 1},
        },
        "benchmark",
    )


@lru_cache(maxsize=1)
def _base_sha256() -> str:
    return content_hash(BASE)


def make_records(sites: int, batch: int, length: int) -> dict[str, list[Record]]:
    """Each site's records."""
    words, draw = _words(), np.random.Generator(np.random.PCG64(7))
    return {
        site: [
            Record(" ".join(draw.choice(words, length - 2)), LABELS[int(draw.integers(3))])
            for _ in range(batch)
        ]
        for site in names(sites)
    }


@lru_cache(maxsize=1)
def _words() -> tuple[str, ...]:
    """Words that are one token of the base's."""
    vocabulary = load_tokenizer(locate(BASE)).get_vocab()
    return tuple(sorted(w for w in vocabulary if w.isascii() and w.isalpha() and len(w) > 3))


@lru_cache(maxsize=1)
def make_examples(sites: int, batch: int, length: int) -> list[list[Example]]:
    """Each site's records, encoded; once a process, and so once an actor of Ray's."""
    job = make_job(sites, batch, length)
    tokenizer = load(job).tokenizer
    records = make_records(sites, batch, length)
    return [task_of(job).encode(tokenizer, own, job) for own in records.values()]


def make_scenario(
    folder: Path,
    sites: int,
    batch: int,
    length: int,
    **more: Any,  # noqa: ANN401
) -> Scenario:
    """A scenario with a hold-out of one record, written to ``folder``."""
    path = folder / "hold_out.jsonl"
    write_records(path, [Record(" ".join(_words()[: length - 2]), "a")], tagged=False)
    return Scenario(
        make_job(sites, batch, length, path, **more), make_records(sites, batch, length), 0
    )


def load(job: Job) -> LoadedAdapter:
    """The job's adapter on a CPU."""
    return load_adapter(job, locate(BASE), "cpu")


def make_trainers(job: Job, adapter: LoadedAdapter, records: dict[str, list[Record]]) -> list[Any]:
    """Each site's trainer."""
    task, found = task_of(job), []
    for site, own in records.items():
        units = [[e] for e in task.encode(adapter.tokenizer, own, job)]
        trainer = trainer_of(job, adapter, site, seeded_keys(0, site))
        found.append(replace(trainer, units=units))
    return found


def train_plainly(
    adapter: LoadedAdapter, start: Vector, examples: Sequence[Example], steps: int
) -> Vector:
    """A client by PEFT alone: AdamW on the mean loss of its records; the change, (P,)."""
    adapter.write(start)
    model = adapter.model.train()
    optimizer = torch.optim.AdamW(
        list(trainable(model).values()), lr=ADAMW["learning_rate"], weight_decay=0.0
    )
    length = len(examples[0].input_ids)
    batch = collate(examples, length, len(examples), adapter.pad_id, adapter.device)
    for _ in range(steps):
        optimizer.zero_grad()
        found = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        )
        found.loss.backward()
        optimizer.step()
    change: Vector = read_vector(model) - start
    return change
