"""The baseline that any adapter must beat: a private linear head on features that never change.

Each record is the frozen base's mean of its last hidden states, of length 1; a softmax regression
on them is trained by the same job: the same sites, rounds, steps, batches, clip and noise as an
adapter's, by the same mechanism (common/privacy/mechanism.py). A record's gradient is the outer
product of its residual and its features, so that nothing runs through the base twice.

Not covered: a head on what the base's own classifier takes (the method ``head`` has that).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from client.train import optimizer_of
from common.data.records import Record
from common.files import make_folder, write_file
from common.job import Job
from common.model import load_tokenizer, quiet_transformers, require_base
from common.privacy.mechanism import Mechanism, mechanism_of
from common.strict_json import read_json
from server.evaluate import hold_out_records
from simulations.scenario import Scenario
from simulations.seeded import seeded_keys
from simulations.studies.methods import (
    EPSILONS,
    LORA,
    SCREENED,
    SCREENING_SEED,
    SEEDS,
    Task,
    Trial,
    climb,
    rates_at,
    scenario_of,
)
from simulations.sweep import Cell

_BATCH = 128
_MOST_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class Score:
    """On the public hold-out."""

    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run on all rows, at the rate that was best on fewer."""

    epsilon: float | None
    rate: float
    seed: int
    score: Score


def train(scenario: Scenario) -> Score:
    """Train the head as the scenario's job says; its score."""
    job = scenario.job
    truth, features = _labelled(job, hold_out_records(job))
    own = {site: _labelled(job, records) for site, records in scenario.records.items()}
    weights = torch.zeros(len(job.data.labels), features.shape[1])
    for round_ in range(1, job.training.rounds + 1):
        changes = [
            job.weight(site) * _site_round(job, site, scenario.seed, weights, data, round_)
            for site, data in own.items()
        ]
        weights = weights + torch.stack(changes).sum(dim=0)
    predicted = (features @ weights.T).argmax(dim=1)
    return Score(
        float((predicted == truth).float().mean()),
        float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    )


def study(task: Task, out: Path, told: Callable[[str], None]) -> list[Run]:
    """As every arm of the study of methods: a rate chosen on fewer rows, then three seeds.

    What is in ``out`` already is not run again.
    """
    make_folder(out)

    def run(epsilon: float | None, rate: float, seed: int, rows: int | None) -> Run:
        told(f"epsilon {epsilon or 'none'}, rate {rate:g}, seed {seed}")
        trial = Trial(LORA[0], epsilon, rate)
        cell = Cell(trial.setting, seed, scenario_of(task, trial, seed, rows))
        return Run(epsilon, rate, seed, _score(cell, out))

    def score(epsilon: float | None, rate: float) -> float:
        found = run(epsilon, rate, SCREENING_SEED, task.rows[epsilon is None])
        return float(getattr(found.score, task.measure))

    best = {at: climb(partial(score, at), rates_at(at)) for at in dict.fromkeys(SCREENED.values())}
    return [
        run(epsilon, best[SCREENED[epsilon]], seed, None) for epsilon in EPSILONS for seed in SEEDS
    ]


def _score(cell: Cell, out: Path) -> Score:
    """A run's score, kept under the name of its job and records."""
    kept = out / f"{cell.name}.json"
    if kept.is_file():
        return Score(**read_json(kept, max_bytes=_MOST_BYTES))
    found = train(cell.scenario)
    write_file(kept, json.dumps(asdict(found)).encode())
    return found


def gradients(weights: Tensor, truth: Tensor, features: Tensor) -> Tensor:
    """The gradient of each record's cross-entropy, (n, L * D).

    Args:
        weights: (L, D).
        truth: (n,) the labels' indices.
        features: (n, D).
    """
    residual = (features @ weights.T).softmax(dim=1)
    residual[torch.arange(len(truth)), truth] -= 1
    return (residual[:, :, None] * features[:, None, :]).flatten(1)


def _site_round(
    job: Job, site: str, seed: int, start: Tensor, data: tuple[Tensor, Tensor], round_: int
) -> Tensor:
    """A site's change of a round, (L, D)."""
    mechanism = mechanism_of(job, site, seeded_keys(seed, site))
    weights = torch.nn.Parameter(start.clone())
    optimizer = optimizer_of([weights], job.training)
    for step in range(job.training.local_steps):
        weights.grad = _released(mechanism, weights.detach(), data, round_, step)
        optimizer.step()
    return weights.detach() - start


def _released(
    mechanism: Mechanism, weights: Tensor, data: tuple[Tensor, Tensor], round_: int, step: int
) -> Tensor:
    truth, features = data
    sampled = mechanism.sample([[i] for i in range(len(truth))], round_, step)
    places = torch.tensor([i for unit in sampled for i in unit], dtype=torch.int64)
    total = mechanism.bounded_sum(gradients(weights, truth[places], features[places]))
    return mechanism.release(total, round_, step).view_as(weights)


def _labelled(job: Job, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """The labels' indices, (n,), and the features with a one for the bias, (n, D)."""
    index = {label: i for i, label in enumerate(job.data.labels)}
    rows = _features(str(require_base(job)), job.model.max_length).of([r.text for r in records])
    return torch.tensor([index[r.label] for r in records]), functional.pad(rows, (0, 1), value=1.0)


class Features:
    """The mean of a base's last hidden states, of length 1; each text's is computed once."""

    def __init__(self, folder: Path, max_length: int) -> None:
        from transformers import AutoModel

        quiet_transformers()
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self._tokenizer, self._max_length = load_tokenizer(folder), max_length
        self._known: dict[str, Tensor] = {}

    def of(self, texts: Sequence[str]) -> Tensor:
        """(n, D), a row a text."""
        new = sorted({text for text in texts if text not in self._known}, key=len)
        for first in range(0, len(new), _BATCH):
            part = new[first : first + _BATCH]
            self._known |= dict(zip(part, self._compute(part), strict=True))
        return torch.stack([self._known[text] for text in texts])

    def _compute(self, texts: list[str]) -> Tensor:
        asked = {"truncation": True, "max_length": self._max_length, "padding": True}
        batch = self._tokenizer(texts, return_tensors="pt", **asked)
        with torch.inference_mode():
            hidden: Tensor = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        return functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1))


@lru_cache(maxsize=1)
def _features(folder: str, max_length: int) -> Features:
    return Features(Path(folder), max_length)
