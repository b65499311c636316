"""How a job's server puts updates together, where that is not their plain mean.

What cannot work is refused here, with the reason, before any site is asked.

Not covered: the rules themselves (``server/strategies``).
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from common.config import Section
from common.methods import METHODS

Rule = Literal[
    "mean", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "norm-bound"
]
Optimizer = Literal["none", "fedavgm", "fedadam", "fedyogi"]

_COUNTS_ATTACKERS = ("trimmed-mean", "krum", "multi-krum")
_MIDDLES = ("median", "trimmed-mean", "geometric-median")
_COMPARES = ("krum", "multi-krum")


class AggregationSection(Section):
    """A rule for updates and an optimiser for their middle.

    ``byzantine`` is f, how many sites may lie. A site is asked no more once ``quarantine_after`` of
    its updates were rejected (not finite, not of the job's form, longer than ``max_update_norm``)
    or cut by ``norm_bound``.
    """

    rule: Rule = "mean"
    byzantine: int | None = Field(default=None, ge=1, le=10_000)
    norm_bound: float | None = Field(default=None, gt=0)
    quarantine_after: int | None = Field(default=None, ge=1, le=100_000)
    optimizer: Optimizer = "none"
    learning_rate: float | None = Field(default=None, gt=0, le=1e4)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    beta_1: float | None = Field(default=None, ge=0, lt=1)
    beta_2: float | None = Field(default=None, ge=0, lt=1)
    tau: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        adaptive = self.optimizer in ("fedadam", "fedyogi")
        wanted = {
            "byzantine": (self.rule in _COUNTS_ATTACKERS, f"rule {self.rule!r}"),
            "norm_bound": (self.rule == "norm-bound", f"rule {self.rule!r}"),
            "learning_rate": (self.optimizer != "none", f"optimizer {self.optimizer!r}"),
            "momentum": (self.optimizer == "fedavgm", f"optimizer {self.optimizer!r}"),
            "beta_1": (adaptive, f"optimizer {self.optimizer!r}"),
            "beta_2": (adaptive, f"optimizer {self.optimizer!r}"),
            "tau": (adaptive, f"optimizer {self.optimizer!r}"),
        }
        wrong = [
            f"aggregation.{name} must be {'given' if is_wanted else 'absent'} with {why}, "
            f"got {getattr(self, name)}"
            for name, (is_wanted, why) in wanted.items()
            if is_wanted == (getattr(self, name) is None)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def faults(
    asked: AggregationSection, method: str, quorum: int, *, is_mixed: bool = False
) -> list[str]:
    """What of a rule cannot work with a method, or with the fewest updates that close a round.

    Args:
        asked: the section.
        method: of the job's adapter.
        quorum: the fewest updates.
        is_mixed: whether sites have adapters of several ranks.
    """
    found, f = [], asked.byzantine or 0
    needs = {"trimmed-mean": 2 * f + 1, "krum": 2 * f + 3, "multi-krum": 2 * f + 3}
    least = needs.get(asked.rule, 1)
    if quorum < least:
        found.append(
            f"training.quorum must be at least {least} with aggregation.rule {asked.rule!r} and "
            f"byzantine {f} (fewer honest updates cannot outvote them), got {quorum}"
        )
    if asked.rule in _MIDDLES and not METHODS[method].is_mean:
        found.append(
            f"aggregation.rule must choose or bound whole updates with adapter.method {method!r} "
            f"(it averages products of A and B, which have no middle number by number), "
            f"got {asked.rule!r}"
        )
    if asked.rule in _COMPARES and is_mixed:
        found.append(
            f"aggregation.rule must compare no updates with adapter.ranks that differ (they are "
            f"numbers of unlike matrices, and of other lengths), got {asked.rule!r}"
        )
    why = _why_no_optimizer(method)
    if asked.optimizer != "none" and why:
        found.append(
            f"aggregation.optimizer must be 'none' with adapter.method {method!r} ({why}), "
            f"got {asked.optimizer!r}"
        )
    return found


def _why_no_optimizer(method: str) -> str:
    of = METHODS[method]
    if not of.is_stationary:
        return "its rounds change what the numbers stand for, and momentum would mix them"
    if not of.is_mean:
        return "what it folds in is what the means leave out, and an optimiser leaves the means"
    if len(of.phases) > 1:
        return "A and B take turns, and momentum would move the one that is held still"
    return ""
