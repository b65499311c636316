"""Which method keeps most at a given epsilon: screened at one seed on fewer rows, then told apart.

Every arm has the same budget of trials, one run with each of three rates, at epsilon 8 and without
privacy; adapters under noise bear smaller ones. The best three, FedAvg and what they are measured
against then run under other seeds, on all rows, at the rate that was best in screening; epsilon 3
takes what was chosen at 8.

Not covered: other bases, more steps, tuning of anything but the rate. On private data every trial
would be charged; these are public.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulations.axes import Setting
from simulations.scenario import FOLDER, Options, load_scenario
from simulations.sweep import Cell, Failed, Outcome

RATES = (1.0, 4.0, 16.0)
RATES_UNDER_NOISE = (1.0, 2.0, 4.0)  # of adapters at many sites: 16 left none of them any better
EPSILONS = (3.0, 8.0, None)
SCREENED = {3.0: 8.0, 8.0: 8.0, None: None}  # where an epsilon's arms and rates are chosen
SEEDS = (1, 2, 3)
SCREENING_SEED = 0
SITES = 16
BEST = 3


@dataclass(frozen=True)
class Task:
    """One data set, and how much of it a study affords.

    Attributes:
        scenario: a job file.
        measure: of the final scores, what arms are chosen by.
        rows: of screening.
        sampling_rates: of screening and of all rows.
        values: what both have.
    """

    scenario: Path
    measure: str
    rows: int
    sampling_rates: tuple[float, float]
    values: Mapping[str, object]


@dataclass(frozen=True)
class Arm:
    """A way to train: the job's settings, and where the rows are.

    Attributes:
        name: in tables.
        values: of the job's file.
        sites: how many share the rows.
        partition: how.
        private_rates: that are tried under privacy.
    """

    name: str
    values: Mapping[str, object]
    sites: int = SITES
    partition: str = "dirichlet:0.3"
    private_rates: tuple[float, ...] = RATES

    def rates(self, epsilon: float | None) -> tuple[float, ...]:
        """That are tried at an epsilon (``None``: without privacy)."""
        return RATES if epsilon is None else self.private_rates


_BLOCK = "layer.5"  # MiniLM's last: what is below it is computed once
_COMMON: dict[str, object] = {
    "adapter.init": "orthonormal",
    "adapter.rank": 4,
    "adapter.alpha": 8,
    "adapter.targets": [
        f"{_BLOCK}.attention.self.query",
        f"{_BLOCK}.attention.self.key",
        f"{_BLOCK}.attention.self.value",
        f"{_BLOCK}.attention.output.dense",
        f"{_BLOCK}.intermediate.dense",
        f"{_BLOCK}.output.dense",
    ],
    "training.optimizer": "sgd",
    "training.momentum": 0.9,
    "training.rounds": 6,
    "training.local_steps": 6,
    "training.quorum": SITES,
}
_HOLD_OUT = (500, 1000)  # records of it in screening and after
TASKS = {
    "banking77": Task(FOLDER / "bank.toml", "accuracy", 7500, (0.1, 0.1), {"model.max_length": 32}),
    "ade_corpus_v2": Task(
        FOLDER / "adverse.toml",
        "macro_f1",
        7500,
        (0.1, 0.06),
        {"model.max_length": 48, "privacy.unit": "record"},
    ),
}
LORA = tuple(
    Arm(name, {"adapter.method": name}, private_rates=RATES_UNDER_NOISE)
    for name in ("fedavg", "ffa", "fedsvd", "rolora", "fedex", "flora", "flexlora", "fedsb")
)
BESIDE = (
    Arm("head", {"adapter.method": "head"}),
    Arm("central", {"adapter.method": "fedavg"}, sites=1, partition="iid"),
)
ARMS = LORA + BESIDE


@dataclass(frozen=True)
class Trial:
    """A run that is to be: an arm, its epsilon (``None``: without privacy) and its rate."""

    arm: Arm
    epsilon: float | None
    rate: float

    @property
    def setting(self) -> Setting:
        """As a sweep's pages name it."""
        epsilon = "none" if self.epsilon is None else self.epsilon
        return (
            ("arm", self.arm.name),
            ("privacy.epsilon", epsilon),
            ("training.learning_rate", self.rate),
        )


def screening(task: Task) -> list[Cell]:
    """One run of every arm and rate on fewer rows, at each epsilon that others are chosen at."""
    at = dict.fromkeys(SCREENED.values())
    return [cell for epsilon in at for arm in ARMS for cell in trials_of(task, arm, epsilon)]


def trials_of(task: Task, arm: Arm, epsilon: float | None) -> list[Cell]:
    """An arm at every rate, on fewer rows."""
    trials = (Trial(arm, epsilon, rate) for rate in arm.rates(epsilon))
    return [cell_of(task, trial, SCREENING_SEED, rows=task.rows) for trial in trials]


def finals(task: Task, screened: Sequence[tuple[Cell, Outcome]]) -> list[Cell]:
    """The chosen arms on all rows, seed after seed."""
    chosen = [
        replace(trial, epsilon=epsilon)
        for epsilon in EPSILONS
        for trial in best_of(task, screened, SCREENED[epsilon])
    ]
    return [cell_of(task, trial, seed, rows=None) for seed in SEEDS for trial in chosen]


def best_of(
    task: Task, screened: Sequence[tuple[Cell, Outcome]], epsilon: float | None
) -> list[Trial]:
    """At one epsilon: the best three methods, FedAvg, and what stands beside them, at their rates.

    A method is as good as its best rate; that favours none, as all have as many.
    """
    scores = scores_of(task, screened)
    best = {arm.name: best_rate(arm, epsilon, scores) for arm in ARMS}
    ranked = sorted((arm.name for arm in LORA), key=lambda name: -scores[best[name].setting])
    kept = [*ranked[:BEST], *(["fedavg"] if "fedavg" not in ranked[:BEST] else [])]
    return [best[name] for name in [*kept, *(arm.name for arm in BESIDE)]]


def best_rate(arm: Arm, epsilon: float | None, scores: Mapping[Setting, float]) -> Trial:
    """The arm at the rate that was best in screening."""
    return max(
        (Trial(arm, epsilon, rate) for rate in arm.rates(epsilon)),
        key=lambda trial: scores[trial.setting],
    )


def scores_of(task: Task, screened: Sequence[tuple[Cell, Outcome]]) -> dict[Setting, float]:
    """What a setting is chosen by, on the public hold-out; a run that failed never is."""
    return {
        cell.setting: -math.inf
        if isinstance(outcome, Failed)
        else getattr(outcome.final, task.measure) or 0.0
        for cell, outcome in screened
    }


def cell_of(task: Task, trial: Trial, seed: int, rows: int | None) -> Cell:
    """The run of a trial under a seed, on ``rows`` of the data or on all."""
    values: dict[str, Any] = {**_COMMON, **task.values, **trial.arm.values}
    values["privacy.sampling_rate"] = task.sampling_rates[0 if rows else 1]
    values["evaluation.records"] = _HOLD_OUT[0 if rows else 1]
    values["training.learning_rate"] = trial.rate
    if trial.epsilon is not None:
        values["privacy.epsilon"] = trial.epsilon
    options = Options(
        sites=trial.arm.sites,
        partition=trial.arm.partition,
        seed=seed,
        records=rows,
        no_privacy=trial.epsilon is None,
        values=values,
    )
    return Cell(trial.setting, seed, load_scenario(task.scenario, options))
