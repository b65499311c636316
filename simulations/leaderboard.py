"""What a sweep found: each setting's mean over seeds with its interval, best first.

The interval is Student's t over seeds, 95 %: of data, partition, start and noise together, since a
seed sets all of them. With one seed there is none.

Not covered: many settings compared at once (the best of twenty looks better than it is).
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from scipy.stats import t

from common.files import write_file
from common.result import Result
from simulations.axes import EPSILON, Setting, frozen, in_words
from simulations.sweep import Cell

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Standing:
    """One setting of a sweep.

    Attributes:
        setting: what was varied, by name.
        seeds: how many runs.
        score: their mean of what was asked for: accuracy, entity F1 or macro-F1.
        half_width: of the 95 % interval; ``None`` with one run.
        epsilon: the largest of any site, or ``None`` without privacy.
        bytes_up: by all sites, in the whole job; the mean.
        rounds: that were run; the mean.
        seconds: of a run; the mean.
        by_round: the mean score after each round that all runs have.
    """

    setting: dict[str, object]
    seeds: int
    score: float
    half_width: float | None
    epsilon: float | None
    bytes_up: float
    rounds: float
    seconds: float
    by_round: tuple[float, ...]

    @property
    def name(self) -> str:
        """The setting in words, without epsilon, which has a column of its own."""
        words = [
            value if isinstance(value, str) else f"{key.rpartition('.')[2]} {in_words(value)}"
            for key, value in self.setting.items()
            if key != EPSILON
        ]
        return ", ".join(words) or "as the scenario has it"


def standings(found: Sequence[tuple[Cell, Result]], measure: str = "score") -> list[Standing]:
    """One for each setting, best first.

    Args:
        found: every run.
        measure: of its scores, an attribute of ``common.result.Quality``.
    """
    by_setting: dict[object, tuple[Setting, list[Result]]] = {}
    for cell, result in found:
        by_setting.setdefault(frozen(cell.setting), (cell.setting, []))[1].append(result)
    every = [_standing(setting, results, measure) for setting, results in by_setting.values()]
    return sorted(every, key=lambda standing: -standing.score)


def _standing(setting: Setting, results: Sequence[Result], measure: str) -> Standing:
    scores = [getattr(result.final, measure) or 0.0 for result in results]
    spent = [site.epsilon for result in results for site in result.sites]
    shared = min(len(result.rounds) for result in results)
    return Standing(
        setting=dict(setting),
        seeds=len(results),
        score=statistics.fmean(scores),
        half_width=half_width(scores),
        epsilon=max((e for e in spent if e is not None), default=None),
        bytes_up=statistics.fmean(sum(r.bytes_up for r in result.rounds) for result in results),
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


def write(found: Sequence[Standing], measure: str, path: Path) -> None:
    """``sweep.json``: every standing, for programs."""
    content = {"measure": measure, "confidence": CONFIDENCE, "settings": [asdict(s) for s in found]}
    write_file(path, json.dumps(content, indent=2).encode() + b"\n", mode=0o644)


def table(found: Sequence[Standing], measure: str) -> Table:
    """The leaderboard on a terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("setting")
    for name in (measure, "95 %", "seeds", "epsilon", "bytes up", "rounds", "seconds"):
        shown.add_column(name, justify="right")
    for standing in found:
        shown.add_row(
            standing.name,
            f"{standing.score:.3f}",
            "-" if standing.half_width is None else f"± {standing.half_width:.3f}",
            str(standing.seeds),
            "none" if standing.epsilon is None else f"{standing.epsilon:.2f}",
            f"{standing.bytes_up:,.0f}",
            f"{standing.rounds:g}",
            f"{standing.seconds:.1f}",
        )
    return shown
