"""Which method keeps most at a given epsilon: screened at one seed on fewer rows, then told apart.

Under privacy SGD, without it AdamW: noise spoils AdamW's scales, and SGD without clipping diverges
at any rate that moves the adapters. Every arm has four trials at epsilon 8 and four without
privacy: at two rates, then twice at the next beyond the best so far by a factor of 4, or between
the best two where the best has both neighbours. The best three, FedAvg and what they are measured
against then run under other seeds, on all rows, at the rate that was best in screening; epsilon 3
takes what was chosen at 8.

Not covered: other bases, more steps, tuning of anything but the rate. On private data every trial
would be charged; these are public.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulations.axes import Setting
from simulations.scenario import FOLDER, Options, Scenario, load_scenario
from simulations.sweep import Cell, Failed, Outcome

RATES = (1.0, 4.0)  # that every arm is tried at first under privacy
BARE_RATES = (0.004, 0.016)  # and without
RATE = "training.learning_rate"
APART = 4.0  # one rate over the next
TRIALS = 4
Found = Sequence[tuple[Cell, Outcome]]
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
        rows: of screening, under privacy and without.
        sampling_rates: of screening and of all rows.
        values: what both have.
    """

    scenario: Path
    measure: str
    rows: tuple[int, int]
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
    """

    name: str
    values: Mapping[str, object]
    sites: int = SITES
    partition: str = "dirichlet:0.3"


Pair = tuple[Arm, float | None]

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
    "training.quorum": SITES,
}
_SGD: Mapping[str, object] = {"training.optimizer": "sgd", "training.momentum": 0.9}
_ADAMW: Mapping[str, object] = {"training.optimizer": "adamw", "training.momentum": 0.0}
_HOLD_OUT = (500, 1000)  # records of it in screening and after
TASKS = {
    "banking77": Task(
        FOLDER / "bank.toml",
        "accuracy",
        (7500, 3000),
        (0.06, 0.06),
        {"model.max_length": 32, "training.rounds": 6, "training.local_steps": 10},
    ),
    "ade_corpus_v2": Task(
        FOLDER / "adverse.toml",
        "macro_f1",
        (7500, 3000),
        (0.03, 0.018),
        {
            "model.max_length": 48,
            "privacy.unit": "record",
            "training.rounds": 12,
            "training.local_steps": 10,
        },
    ),
}
LORA = tuple(
    Arm(name, {"adapter.method": name})
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
        """As the pages of screening name it."""
        return (*self.chosen, (RATE, self.rate))

    @property
    def chosen(self) -> Setting:
        """As pages name it that have an arm at one rate for each epsilon."""
        return (("arm", self.arm.name), ("privacy.epsilon", self.epsilon or "none"))


def pairs(arms: Iterable[Arm] = ARMS) -> list[Pair]:
    """Every arm at each epsilon that others are chosen at."""
    return [(arm, epsilon) for epsilon in dict.fromkeys(SCREENED.values()) for arm in arms]


def screening(task: Task, of: Sequence[Pair]) -> list[Cell]:
    """The two rates that all are tried at, on fewer rows."""
    return [screened_cell(task, Trial(*pair, rate)) for pair in of for rate in rates_at(pair[1])]


def rates_at(epsilon: float | None) -> tuple[float, float]:
    """That every arm is tried at first."""
    return BARE_RATES if epsilon is None else RATES


def further(task: Task, of: Sequence[Pair], screened: Found) -> list[Cell]:
    """The next rate of each, on fewer rows."""
    scores = scores_of(task, screened)
    return [
        screened_cell(task, Trial(*pair, next_rate({t.rate: scores[t.setting] for t in tried})))
        for pair in of
        for tried in [tried_of(*pair, scores)]
    ]


def next_rate(scores: Mapping[float, float]) -> float:
    """Where to look after these; a tie goes to the slower rate.

    >>> next_rate({1.0: 0.2, 4.0: 0.5}), next_rate({1.0: 0.2, 4.0: 0.2})
    (16.0, 0.25)
    >>> next_rate({1.0: 0.2, 4.0: 0.5, 16.0: 0.3})
    8.0
    """
    rates = sorted(scores)
    best = max(rates, key=lambda rate: scores[rate])
    if best == rates[0]:
        return best / APART
    if best == rates[-1]:
        return best * APART
    place = rates.index(best)
    beside = max(rates[place - 1], rates[place + 1], key=lambda rate: scores[rate])
    return math.sqrt(best * beside)


def climb(score: Callable[[float], float], first: Sequence[float]) -> float:
    """The best of as many trials as every arm has, from the first two on."""
    scores = {rate: score(rate) for rate in first}
    while len(scores) < TRIALS:
        rate = next_rate(scores)
        scores[rate] = score(rate)
    return max(sorted(scores), key=lambda rate: scores[rate])


def screened_cell(task: Task, trial: Trial) -> Cell:
    """A trial's run on fewer rows."""
    rows = task.rows[trial.epsilon is None]
    return Cell(trial.setting, SCREENING_SEED, scenario_of(task, trial, SCREENING_SEED, rows))


def final_cell(task: Task, trial: Trial, seed: int) -> Cell:
    """A chosen trial's run on all rows."""
    return Cell(trial.chosen, seed, scenario_of(task, trial, seed, None))


def finals(task: Task, screened: Found) -> list[Cell]:
    """The chosen arms on all rows, seed after seed."""
    chosen = [
        replace(trial, epsilon=epsilon)
        for epsilon in EPSILONS
        for trial in best_of(task, screened, SCREENED[epsilon])
    ]
    return [final_cell(task, trial, seed) for seed in SEEDS for trial in chosen]


def best_of(task: Task, screened: Found, epsilon: float | None) -> list[Trial]:
    """At one epsilon: the best three methods, FedAvg, and what stands beside them, at their rates.

    A method is as good as its best rate; that favours none, as all have as many.
    """
    scores = scores_of(task, screened)
    best = {arm.name: best_rate(arm, epsilon, scores) for arm in ARMS}
    ranked = sorted((arm.name for arm in LORA), key=lambda name: -scores[best[name].setting])
    kept = [*ranked[:BEST], *(["fedavg"] if "fedavg" not in ranked[:BEST] else [])]
    return [best[name] for name in [*kept, *(arm.name for arm in BESIDE)]]


def best_rate(arm: Arm, epsilon: float | None, scores: Mapping[Setting, float]) -> Trial:
    """The arm at the rate that was best; of equals, the slowest."""
    return max(tried_of(arm, epsilon, scores), key=lambda trial: scores[trial.setting])


def tried_of(arm: Arm, epsilon: float | None, scores: Mapping[Setting, float]) -> list[Trial]:
    """An arm's trials at an epsilon, slowest first."""
    chosen = Trial(arm, epsilon, 0.0).chosen
    rates = sorted(float(str(dict(s)[RATE])) for s in scores if s[: len(chosen)] == chosen)
    return [Trial(arm, epsilon, rate) for rate in rates]


def scores_of(task: Task, screened: Found) -> dict[Setting, float]:
    """What a setting is chosen by, on the public hold-out; a run that failed never is."""
    return {
        cell.setting: -math.inf
        if isinstance(outcome, Failed)
        else getattr(outcome.final, task.measure) or 0.0
        for cell, outcome in screened
    }


def scenario_of(task: Task, trial: Trial, seed: int, rows: int | None) -> Scenario:
    """What a trial runs under a seed, on ``rows`` of the data or on all."""
    optimizer = _ADAMW if trial.epsilon is None else _SGD
    values: dict[str, Any] = {**_COMMON, **optimizer, **task.values, **trial.arm.values}
    values["privacy.sampling_rate"] = task.sampling_rates[0 if rows else 1]
    values["evaluation.records"] = _HOLD_OUT[0 if rows else 1]
    values[RATE] = trial.rate
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
    return load_scenario(task.scenario, options)
