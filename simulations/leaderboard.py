"""What a sweep found: each setting's mean over seeds with its interval, best first.

The interval is Student's t over seeds, 95 %: of data, partition, start and noise together, since a
seed sets all of them. With one seed there is none.

A setting of which a run failed comes after those of which none did, and says of how many seeds its
figures are: the mean of those that ended is no estimate for those that did not.

Not covered: many settings compared at once (the best of twenty looks better than it is).
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table
from scipy.stats import t

from common.files import write_file
from common.result import Result
from simulations.axes import EPSILON, Setting, frozen, in_words
from simulations.sweep import Cell, Failed, Outcome

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Standing:
    """One setting of a sweep of which some run came to a result.

    Attributes:
        setting: what was varied, by name.
        seeds: how many runs came to one; all figures are of those.
        failed: how many did not.
        score: their mean of what was asked for: accuracy, entity F1 or macro-F1.
        half_width: of the 95 % interval; ``None`` with one run.
        epsilon: the largest of any site, or ``None`` without privacy.
        private: whether every run promises that; noise that a seed repeats promises nothing.
        bytes_up: by all sites, in the whole job; the mean.
        bytes_down: to all sites; ``None`` where a result of before does not say.
        rounds: that were run; the mean.
        seconds: of a run; the mean.
        by_round: the mean score after each round that all runs have.
    """

    setting: dict[str, object]
    seeds: int
    failed: int
    score: float
    half_width: float | None
    epsilon: float | None
    private: bool
    bytes_up: float
    bytes_down: float | None
    rounds: float
    seconds: float
    by_round: tuple[float, ...]

    @property
    def name(self) -> str:
        """The setting in words, without epsilon, which has a column of its own."""
        return named(self.setting)


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that came to no result, and why."""

    setting: dict[str, object]
    seed: int
    reason: str

    @property
    def words(self) -> str:
        """The setting, with its epsilon where that was varied, and the seed."""
        asked = self.setting.get(EPSILON)
        at = "" if asked is None else f", epsilon {asked}"
        return f"{named(self.setting)}{at}, seed {self.seed}"


def named(setting: Mapping[str, object]) -> str:
    """A setting in words, without epsilon."""
    words = [
        value if isinstance(value, str) else f"{key.rpartition('.')[2]} {in_words(value)}"
        for key, value in setting.items()
        if key != EPSILON
    ]
    return ", ".join(words) or "as the scenario has it"


def standings(found: Sequence[tuple[Cell, Outcome]], measure: str = "score") -> list[Standing]:
    """One for each setting with a result, best first, those with a failed run after all others.

    Args:
        found: every run.
        measure: of its scores, an attribute of ``common.result.Quality``.
    """
    by_setting: dict[object, tuple[Setting, list[Outcome]]] = {}
    for cell, outcome in found:
        by_setting.setdefault(frozen(cell.setting), (cell.setting, []))[1].append(outcome)
    every = [
        _standing(setting, results, len(outcomes) - len(results), measure)
        for setting, outcomes in by_setting.values()
        if (results := [o for o in outcomes if not isinstance(o, Failed)])
    ]
    return sorted(every, key=lambda standing: (standing.failed > 0, -standing.score))


def failures(found: Sequence[tuple[Cell, Outcome]]) -> list[Failure]:
    """Every run that came to no result."""
    return [
        Failure(dict(cell.setting), cell.seed, outcome.reason)
        for cell, outcome in found
        if isinstance(outcome, Failed)
    ]


def without_result(
    found: Sequence[Standing], failed: Sequence[Failure]
) -> list[tuple[dict[str, object], int]]:
    """The settings of which no run came to a result, and how many were run."""
    stand = {frozen(standing.setting) for standing in found}
    left = {frozen(f.setting): f.setting for f in failed if frozen(f.setting) not in stand}
    runs = Counter(frozen(failure.setting) for failure in failed)
    return [(setting, runs[key]) for key, setting in left.items()]


def _standing(setting: Setting, results: Sequence[Result], failed: int, measure: str) -> Standing:
    scores = [getattr(result.final, measure) or 0.0 for result in results]
    spent = [site.epsilon for result in results for site in result.sites]
    down = [result.bytes_down for result in results if result.bytes_down is not None]
    shared = min(len(result.rounds) for result in results)
    return Standing(
        setting=dict(setting),
        seeds=len(results),
        failed=failed,
        score=statistics.fmean(scores),
        half_width=half_width(scores),
        epsilon=max((e for e in spent if e is not None), default=None),
        private=all(result.private for result in results),
        bytes_up=statistics.fmean(result.bytes_up for result in results),
        bytes_down=statistics.fmean(down) if len(down) == len(results) else None,
        rounds=statistics.fmean(len(result.rounds) for result in results),
        seconds=statistics.fmean(result.seconds for result in results),
        by_round=tuple(
            statistics.fmean(getattr(result.rounds[i], measure) or 0.0 for result in results)
            for i in range(shared)
        ),
    )


def half_width(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % interval of a mean; ``None`` for fewer than two values.

    >>> round(half_width([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    if len(values) < 2:
        return None
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def write(
    found: Sequence[Standing], measure: str, path: Path, failed: Sequence[Failure] = ()
) -> None:
    """``sweep.json``: every standing and every failed run, for programs."""
    content = {
        "measure": measure,
        "confidence": CONFIDENCE,
        "settings": [asdict(standing) for standing in found],
        "failures": [asdict(failure) for failure in failed],
    }
    write_file(path, json.dumps(content, indent=2).encode() + b"\n", mode=0o644)


def heads(measure: str) -> tuple[str, ...]:
    """What the leaderboard's columns are called."""
    return (
        "setting",
        measure,
        "95 %",
        "seeds",
        "epsilon",
        "bytes up",
        "bytes down",
        "rounds",
        "seconds",
    )


def row(standing: Standing) -> tuple[str, ...]:
    """A setting's line in it."""
    return (
        standing.name,
        f"{standing.score:.3f}",
        "-" if standing.half_width is None else f"± {standing.half_width:.3f}",
        _seeds(standing.seeds, standing.failed),
        epsilon_of(standing),
        f"{standing.bytes_up:,.0f}",
        "-" if standing.bytes_down is None else f"{standing.bytes_down:,.0f}",
        f"{standing.rounds:g}",
        f"{standing.seconds:.1f}",
    )


def failed_row(setting: Mapping[str, object], runs: int) -> tuple[str, ...]:
    """The line of a setting without a result."""
    asked = setting.get(EPSILON)
    return (
        named(setting),
        "failed",
        "-",
        _seeds(0, runs),
        "-" if asked is None else str(asked),
        *("-",) * 4,
    )


def _seeds(ended: int, failed: int) -> str:
    return f"{ended} of {ended + failed}" if failed else str(ended)


def epsilon_of(standing: Standing) -> str:
    """What was spent, in words."""
    return "none" if standing.epsilon is None else f"{standing.epsilon:.3g}"


def table(found: Sequence[Standing], measure: str, failed: Sequence[Failure] = ()) -> Table:
    """The leaderboard on a terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    first, *others = heads(measure)
    shown.add_column(first)
    for name in others:
        shown.add_column(name, justify="right")
    for standing in found:
        shown.add_row(*map(escape, row(standing)))
    for setting, runs in without_result(found, failed):
        shown.add_row(*map(escape, failed_row(setting, runs)))
    return shown
