"""What a job asks of its sites' own held-out records: counts in public bins, and nothing else.

A release is one vector of whole numbers: all histograms behind one another, row by row. Which bins
there are follows from the job alone, never from records, so the vector's length says nothing.

Sensitivity: a unit has at most ``cap`` records in it, a record adds at most ``most`` counts to a
histogram. Adding or removing a unit moves histogram h by at most ``cap * most_h`` in L1, so in L2,
and all of them together by the root of the sum of the squares. That is reached where all of its
counts fall into one bin of each histogram, so no smaller bound holds for every model.

Not covered: noise (common/privacy/counts.py), what a record counts as (common/counting.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from common.config import Section

MetricName = Literal["accuracy", "classes", "entities", "loss", "groups"]
RIGHT, WRONG = "right", "wrong"
FOUND, MISSED, SPURIOUS = "found", "missed", "spurious"
RECORDS = "records"
ALL = "all"
OTHER_GROUP = "(any other)"
MOST_BINS = 2**16
# Whatever is counted, and the noise on it, is far below; sums over sites stay whole in int64.
MOST_COUNT = 2**52
COLUMNS: dict[MetricName, tuple[str, ...]] = {
    "accuracy": (RIGHT, WRONG),
    "classes": (RIGHT, WRONG),
    "entities": (FOUND, MISSED, SPURIOUS),
    "loss": (RECORDS,),
    "groups": (RIGHT, WRONG),
}

Group = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Edge = Annotated[float, Field(gt=0, le=1e6)]


class MetricsSection(Section):
    """``[metrics]``: which counts leave a site, once, after the last round. Absent: none do.

    ``hold_out`` of each site's units train nothing and are counted; ``share`` is the part of the
    job's epsilon and delta that the counts' noise is made for.

    Attributes:
        release: the histograms.
        hold_out: the chance of a unit to be held out.
        share: of epsilon and of delta.
        records_per_unit: the most records of a unit that count; absent where a unit is a record.
        entities_per_record: the most entities of a record that count; for ``entities``.
        loss_edges: between the bins of ``loss``, ascending.
        groups: values of the sites' group column, for ``groups``.
    """

    release: tuple[MetricName, ...] = Field(min_length=1, max_length=5)
    hold_out: float = Field(gt=0, le=0.5)
    share: float = Field(ge=1e-3, le=0.5)
    records_per_unit: int | None = Field(default=None, ge=1, le=10_000)
    entities_per_record: int | None = Field(default=None, ge=1, le=10_000)
    loss_edges: tuple[Edge, ...] = Field(default=(), max_length=100)
    groups: tuple[Group, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = list(self._faults())
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _faults(self) -> list[str]:
        belongs = (
            ("entities_per_record", "entities", self.entities_per_record is not None),
            ("loss_edges", "loss", bool(self.loss_edges)),
            ("groups", "groups", bool(self.groups)),
        )
        found = [
            f"metrics.{key} must be {'absent' if is_given else 'given'} "
            f"{'without' if is_given else 'with'} {name!r} in metrics.release"
            for key, name, is_given in belongs
            if is_given != (name in self.release)
        ]
        for key in ("release", "groups"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                found.append(f"metrics.{key} must be distinct, got one twice")
        if any(low >= high for low, high in pairwise(self.loss_edges)):
            found.append(f"metrics.loss_edges must ascend, got {list(self.loss_edges[:6])}")
        if OTHER_GROUP in self.groups:
            found.append(f"metrics.groups must not hold {OTHER_GROUP!r}, got it")
        return found


@dataclass(frozen=True, slots=True)
class Histogram:
    """Rows by columns of counts; ``most`` is what one record adds to all of them together."""

    name: MetricName
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    most: int = 1

    @property
    def size(self) -> int:
        """How many bins it has."""
        return len(self.rows) * len(self.columns)

    def bin(self, row: int, column: str) -> int:
        """The place of a bin in this histogram."""
        return row * len(self.columns) + self.columns.index(column)


def histograms_of(
    section: MetricsSection, labels: Sequence[str], kinds: Sequence[str]
) -> tuple[Histogram, ...]:
    """The histograms of a release, in the order of ``release``.

    Args:
        section: of the job.
        labels: the job's public labels.
        kinds: of entities; empty where texts are sorted.

    >>> asked = MetricsSection(release=("accuracy",), hold_out=0.25, share=0.125)
    >>> histograms_of(asked, ("a", "b"), ())
    (Histogram(name='accuracy', rows=('all',), columns=('right', 'wrong'), most=1),)
    """
    rows: dict[MetricName, tuple[str, ...]] = {
        "accuracy": (ALL,),
        "classes": tuple(labels),
        "entities": tuple(kinds),
        "loss": _between(section.loss_edges),
        "groups": (*section.groups, OTHER_GROUP),
    }
    most = {"entities": section.entities_per_record or 1}
    return tuple(
        Histogram(name, rows[name], COLUMNS[name], most.get(name, 1)) for name in section.release
    )


def bins(histograms: Sequence[Histogram]) -> int:
    """How many numbers a release has."""
    return sum(histogram.size for histogram in histograms)


def sensitivity(histograms: Sequence[Histogram], cap: int) -> float:
    """The most that one unit of at most ``cap`` records can move the release, in L2.

    >>> verdicts = Histogram("accuracy", ("all",), ("right", "wrong"))
    >>> losses = Histogram("loss", ("below 1", "1 or more"), ("records",))
    >>> sensitivity((verdicts, losses), 3) == 3 * 2**0.5
    True
    """
    return cap * math.sqrt(sum(histogram.most**2 for histogram in histograms))


def _between(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of the bins that ``edges`` divide: each begins at its edge."""
    if not edges:
        return ()
    inner = (f"{low:g} to {high:g}" for low, high in pairwise(edges))
    return (f"below {edges[0]:g}", *inner, f"{edges[-1]:g} or more")
