"""From what a model says of held-out records to the counts of a release.

A unit's records are capped and chosen at random by the site's own key, a record's entities
likewise, and what each unit adds is measured against the sensitivity that its noise is made for.

Not covered: noise (common/privacy/counts.py); running the model (client/measure.py).
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common.errors import SelfCheckFailed
from common.histograms import (
    FOUND,
    MISSED,
    RECORDS,
    RIGHT,
    SPURIOUS,
    WRONG,
    Histogram,
    bins,
    sensitivity,
)
from common.privacy.sampling import choose_records
from common.privacy.stream import Stream

Item = TypeVar("Item")
Entity = tuple[str, int, int]  # kind, first and last word


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model made of one record. Sensitive.

    Attributes:
        is_right: its label was found or, where words have tags, all entities and no other.
        label: its true label's index; 0 where words have tags.
        loss: in the job's own terms; what is no number counts as the largest.
        group: the site's own column.
        truth: entities that are there.
        found: entities that the model sees.
    """

    is_right: bool
    label: int
    loss: float
    group: str = ""
    truth: frozenset[Entity] = frozenset()
    found: frozenset[Entity] = frozenset()


def count(
    units: Iterable[Sequence[Item]],
    judge: Callable[[Item], Judged],
    histograms: Sequence[Histogram],
    *,
    edges: Sequence[float],
    cap: int,
    stream: Stream,
) -> NDArray[np.int64]:
    """The counts of all ``units``, (bins,), without noise. Sensitive.

    Args:
        units: the held-out records by unit. Sensitive.
        judge: what the model makes of a record, which no other record may have a say in.
        histograms: of the job.
        edges: of the loss bins.
        cap: the most records of a unit.
        stream: chooses them; a fresh one.

    Raises:
        SelfCheckFailed: a unit would add more than the sensitivity.
    """
    total, most = np.zeros(bins(histograms), dtype=np.int64), sensitivity(histograms, cap)
    for unit in units:
        chosen = choose_records(len(unit), cap, stream)
        own = np.zeros_like(total)
        for place in chosen.tolist():
            for at in _places(judge(unit[place]), histograms, edges, stream):
                own[at] += 1
        _require_bounded(own, most)
        total += own
    return total


def _require_bounded(own: NDArray[np.int64], most: float) -> None:
    # In whole numbers but for the root; a hair for that, far below the next whole square.
    if float(own @ own) > most**2 * (1 + 1e-12):
        raise SelfCheckFailed(f"counts of one unit must be within {most:g}, got more")


def _places(
    judged: Judged, histograms: Sequence[Histogram], edges: Sequence[float], stream: Stream
) -> Iterable[int]:
    """Where a record counts: one bin of each histogram, or at most ``most`` of entities."""
    offset = 0
    for histogram in histograms:
        for at in _bins_of(judged, histogram, edges, stream):
            yield offset + at
        offset += histogram.size


def _bins_of(
    judged: Judged, histogram: Histogram, edges: Sequence[float], stream: Stream
) -> list[int]:
    verdict = RIGHT if judged.is_right else WRONG
    match histogram.name:
        case "accuracy":
            return [histogram.bin(0, verdict)]
        case "classes":
            return [histogram.bin(judged.label, verdict)]
        case "groups":
            listed = histogram.rows[:-1]
            row = listed.index(judged.group) if judged.group in listed else len(listed)
            return [histogram.bin(row, verdict)]
        case "loss":
            # NaN is not below any edge.
            row = len(edges) if judged.loss != judged.loss else bisect_right(edges, judged.loss)
            return [histogram.bin(row, RECORDS)]
        case "entities":
            places = _entities(judged, histogram)
            chosen = choose_records(len(places), histogram.most, stream)
            return [places[place] for place in chosen.tolist()]


def _entities(judged: Judged, histogram: Histogram) -> list[int]:
    of_column = (
        (FOUND, judged.truth & judged.found),
        (MISSED, judged.truth - judged.found),
        (SPURIOUS, judged.found - judged.truth),
    )
    return [
        histogram.bin(histogram.rows.index(kind), column)
        for column, entities in of_column
        for kind, _, _ in sorted(entities)
    ]
