"""A whole simulation of 16 sites, beside one model that trains on the same tokens.

``federated`` is a job on the stacked grid from its first offer to its outcome: messages, ledgers,
signatures, aggregation, evaluation on one record, files. ``central`` is PEFT on all sites' records
together, as many steps, in batches of as many tokens. Sites step by plain SGD. With one local step
a round the mean of the sites' steps is the central one, and in every round both have to end with
the same adapter; with three, sites drift, and the greatest distance is reported.

CPU time of one thread, children included. The base is loaded beforehand for both. A process checks
itself once, before its first job: the round that warms up pays that, and ``first_run_s`` of
``steps_3`` has it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.adapter import LoadedAdapter, Vector, read_vector
from common.data.records import Record
from common.job import Job
from common.log import configure
from common.model import quiet_transformers
from common.privacy.persample import trainable
from common.saved import read_adapter
from common.tasks import task_of
from common.tasks.batches import collate
from simulations import runs
from simulations.benchmarks import sim_jobs
from simulations.benchmarks.timing import (
    Distances,
    alternate,
    cpu_seconds,
    milliseconds,
    ratio,
    require_rounds,
)

SITES, BATCH, LENGTH = 16, 8, 64
_TOKENS = 2048
_SGD = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.0}
# rounds, local steps, how far apart the adapters may end
SHAPES = {"steps_3": (2, 3, 0.2), "steps_1": (6, 1, 1e-3)}


def benchmark(rounds: int = 5) -> dict[str, object]:
    """Times of both; ``ratio`` is with three local steps a round, ``ratio_1_step`` with one.

    Raises:
        InvalidInput: fewer than two rounds.
        SelfCheckFailed: the adapters end too far apart.
    """
    require_rounds(rounds)
    configure(level="error")
    quiet_transformers()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shapes = {
            name: _measure(Path(folder), name, *shape, rounds) for name, shape in SHAPES.items()
        }
    return {
        "ratio": shapes["steps_3"]["ratio"],
        "ratio_1_step": shapes["steps_1"]["ratio"],
        "shapes": shapes,
        "sites": SITES,
        "batch": BATCH,
        "length": LENGTH,
        "rounds": rounds,
    }


def _measure(
    folder: Path, name: str, job_rounds: int, steps: int, most: float, rounds: int
) -> dict[str, Any]:
    scenario = sim_jobs.make_scenario(
        folder, SITES, BATCH, LENGTH, rounds=job_rounds, local_steps=steps, **_SGD
    )
    job, adapter = scenario.job, sim_jobs.load(scenario.job)
    records = [record for own in scenario.records.values() for record in own]
    distances, spent = Distances({"federated": most}), list[float]()

    def federated() -> Vector:
        begun, work = cpu_seconds(), folder / f"{name}-{len(spent)}"
        outcome = runs.stacked(scenario, work, lambda *_: None)
        spent.append(cpu_seconds() - begun)
        return read_adapter(adapter, outcome / "adapter") - adapter.initial

    def check(ends: Mapping[str, Vector]) -> None:
        distances.require("federated", ends["federated"], ends["central"])

    central = partial(_central, job, adapter, records)
    seconds = alternate({"federated": federated, "central": central}, rounds, check)
    return ratio(seconds["federated"], seconds["central"]) | {
        "first_run_s": round(spent[0], 3),
        "distance": distances.greatest["federated"],
        "site_step": milliseconds(seconds, SITES * job.steps),
    }


def _central(job: Job, adapter: LoadedAdapter, records: Sequence[Record]) -> Vector:
    """The change of one model in as many steps on all records, (P,)."""
    adapter.write(adapter.initial)
    model = adapter.model.train()
    optimizer = torch.optim.SGD(list(trainable(model).values()), lr=job.training.learning_rate)
    examples = task_of(job).encode(adapter.tokenizer, records, job)
    count = _TOKENS // LENGTH
    parts = [examples[i : i + count] for i in range(0, len(examples), count)]
    batches = [collate(p, LENGTH, len(p), adapter.pad_id, adapter.device) for p in parts]
    for _ in range(job.steps):
        optimizer.zero_grad()
        for batch in batches:
            found = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
            )
            (found.loss * len(batch.labels) / len(examples)).backward()
        optimizer.step()
    change: Vector = read_vector(model) - adapter.initial
    return change
