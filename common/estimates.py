"""What sites' noised counts say: shares with intervals, the worst site beside all of them together.

Counts are added up as they came; only then is anything clipped, or sums would be too high. A share
p of two counts R and W solves ``(R - p (R + W))^2 <= z^2 (c n p (1 - p) + v ((1 - p)^2 + p^2))``,
with v the known variance of the noise on each, n the counts together and c the most counts of one
unit, which may all agree: Wilson's score interval (1927) where there is no noise and c is 1, by
Fieller's argument (1954) where there is. It is about the people that the held-out ones are drawn
from; where noise drowns the counts there is no estimate, and the interval is [0, 1].

The worst site's interval is Bonferroni's, over all sites, since it is chosen by looking.

Not covered: several shares at once (each interval is for itself); sites that did not answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from common.histograms import FOUND, MISSED, RIGHT, SPURIOUS, WRONG, Histogram, MetricName

CONFIDENCE = 0.95

Counts = NDArray[np.int64]
# Measure -> the column that counts for it and the one against, in each histogram.
_SHARES: dict[MetricName, dict[str, tuple[str, str]]] = {
    "accuracy": {"accuracy": (RIGHT, WRONG)},
    "classes": {"accuracy": (RIGHT, WRONG)},
    "groups": {"accuracy": (RIGHT, WRONG)},
    "entities": {"precision": (FOUND, SPURIOUS), "recall": (FOUND, MISSED)},
    "loss": {},
}


@dataclass(frozen=True, slots=True)
class Share:
    """An estimate in [0, 1], ``None`` where noise leaves none, and its interval."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """One measure of one row of a histogram: all sites together, and the worst of them.

    ``worst_site`` is empty where no site's own counts say anything.
    """

    histogram: MetricName
    row: str
    measure: str
    together: Share
    worst_site: str
    worst: Share


def share(
    right: float, wrong: float, *, variance: float, agree: int = 1, confidence: float = CONFIDENCE
) -> Share:
    """The share of ``right``, with its interval.

    Args:
        right: a count with noise, or several together.
        wrong: likewise, of as many.
        variance: of the noise on each of the two.
        agree: the most counts of one unit.
        confidence: of the interval.

    >>> found = share(80, 20, variance=0.0)
    >>> round(found.low, 4), round(found.high, 4)
    (0.7112, 0.8666)
    """
    total, z2 = right + wrong, float(norm.isf((1 - confidence) / 2)) ** 2
    if total <= 0:
        return Share(None, 0.0, 1.0)
    value, sampling = min(1.0, max(0.0, right / total)), agree * total
    a = total**2 + z2 * (sampling - 2 * variance)
    b = 2 * right * total + z2 * (sampling - 2 * variance)
    c = right**2 - z2 * variance
    inside = b**2 - 4 * a * c
    if a <= 0 or inside < 0:
        return Share(None, 0.0, 1.0)
    low, high = (max(0.0, (b - math.sqrt(inside)) / (2 * a)), (b + math.sqrt(inside)) / (2 * a))
    if low >= 1 or high <= 0:  # noise alone put it outside, and no p fits
        return Share(None, 0.0, 1.0)
    return Share(value, min(low, value), max(min(1.0, high), value))


def estimates(
    counts: Mapping[str, Counts], histograms: Sequence[Histogram], *, variance: float, cap: int
) -> tuple[Estimate, ...]:
    """Every share that the histograms have, in their order.

    Args:
        counts: of each site that answered, (bins,), as they came.
        histograms: of the job.
        variance: of the noise on one site's count.
        cap: the most records of a unit.
    """
    found: list[Estimate] = []
    offset = 0
    for histogram in histograms if counts else ():
        part = {
            site: own[offset : offset + histogram.size].reshape(-1, len(histogram.columns))
            for site, own in counts.items()
        }
        found += _of_histogram(part, histogram, variance, cap)
        offset += histogram.size
    return tuple(found)


def _of_histogram(
    part: Mapping[str, Counts], histogram: Histogram, variance: float, cap: int
) -> list[Estimate]:
    together = sum(part.values(), np.zeros_like(next(iter(part.values()))))
    each, found = 1 - (1 - CONFIDENCE) / len(part), []
    agree = cap * histogram.most
    for measure, columns in _SHARES[histogram.name].items():
        yes, no = (histogram.columns.index(column) for column in columns)
        for row, name in enumerate(histogram.rows):
            own = {
                site: share(
                    int(rows[row, yes]),
                    int(rows[row, no]),
                    variance=variance,
                    agree=agree,
                    confidence=each,
                )
                for site, rows in part.items()
            }
            whole = share(
                int(together[row, yes]),
                int(together[row, no]),
                variance=variance * len(part),
                agree=agree,
            )
            site = _worst(own)
            worst = own[site] if site else Share(None, 0.0, 1.0)
            found.append(Estimate(histogram.name, name, measure, whole, site, worst))
    return found


def _worst(own: Mapping[str, Share]) -> str:
    measured = {site: one.value for site, one in own.items() if one.value is not None}
    return min(measured, key=lambda site: (measured[site], site), default="")
