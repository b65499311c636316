"""Rules that bound what some sites can do to the aggregate by updates that are no honest ones.

They see single updates, and hold all of a round: memory is one vector a site. Honest sites under
privacy differ by noise alone as much as attackers may, and sites with other data differ too; a
backdoor that keeps to the honest ones' size and direction passes every one of them.

- ``median``: of each number (Yin et al. 2018, https://arxiv.org/abs/1803.01498).
- ``trimmed-mean``: the mean without the f largest and f smallest of each number (the same).
- ``geometric-median``: the point with the least weighted sum of distances, by Weiszfeld's
  iteration, smoothed (Pillutla et al. 2022, https://arxiv.org/abs/1912.13445).
- ``krum``, ``multi-krum``: the update, or the n - f updates, with the least sum of squared
  distances to the n - f - 2 nearest others (Blanchard et al. 2017,
  https://arxiv.org/abs/1703.02757).
- ``norm-bound``: longer updates are cut to the bound (Sun et al. 2019,
  https://arxiv.org/abs/1911.07963).

``mean``, ``geometric-median`` and what ``multi-krum`` and ``norm-bound`` leave weigh sites by their
public population; the others count each site once, or one could declare itself the majority.

Not covered: sites that know the others' updates and stay within the rule.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.adapter import Vector
from common.aggregation import AggregationSection
from server.aggregate import Change, StreamingMean, length

Floats = NDArray[np.float64]

_ITERATIONS = 150
_COOLING = 0.9
_SMOOTH = 1e-6  # distances that count as none, over the spread


class Middle(Protocol):
    """A middle of vectors that come one by one."""

    def add(self, vector: Vector, weight: float) -> None:
        """Take one in."""

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""

    def mean(self) -> Floats:
        """The middle, (P,)."""


class _Kept:
    """The middle of vectors that are all held."""

    def __init__(self, of: Callable[[Floats, Floats], Floats]) -> None:
        self._of = of
        self._vectors: list[Vector] = []
        self._weights: list[float] = []

    def add(self, vector: Vector, weight: float) -> None:
        self._vectors.append(vector)
        self._weights.append(weight)

    @property
    def weight(self) -> float:
        return sum(self._weights)

    def mean(self) -> Floats:
        # Rows in an order of their own, so that the order of arrival is in no sum.
        order = sorted(range(len(self._vectors)), key=lambda i: self._vectors[i].tobytes())
        rows = np.stack([self._vectors[i] for i in order]).astype(np.float64)
        return self._of(rows, np.array([self._weights[i] for i in order]))


def middle_of(asked: AggregationSection | None, size: int) -> Middle:
    """What stands in the mean's place, for vectors of ``size`` numbers."""
    if asked is None or asked.rule not in _MIDDLES:
        return StreamingMean(size)
    byzantine = asked.byzantine or 0
    return _Kept(lambda rows, weights: _MIDDLES[asked.rule](rows, weights, byzantine))


def median(rows: Floats, weights: Floats, byzantine: int) -> Floats:
    """The median of each column of (n, P), (P,)."""
    del weights, byzantine
    found: Floats = np.median(rows, axis=0)
    return found


def trimmed_mean(rows: Floats, weights: Floats, byzantine: int) -> Floats:
    """The mean of each column of (n, P) without its f largest and f smallest, (P,)."""
    del weights
    ordered = np.sort(rows, axis=0)
    kept: Floats = ordered[byzantine : len(rows) - byzantine].mean(axis=0)
    return kept


def geometric_median(rows: Floats, weights: Floats, byzantine: int) -> Floats:
    """The point (P,) with the least sum of ``weights`` times distances to the rows of (n, P)."""
    del byzantine
    # Start and scale are robust too: a mean would go as far as one attacker sends it.
    point: Floats = np.median(rows, axis=0)
    distances = np.linalg.norm(rows - point, axis=1)
    if not distances.any():
        return point
    spread = float(np.median(distances)) or float(distances[distances > 0].min())
    for iteration in range(_ITERATIONS):
        # Less and less smooth: from a row's own place the unsmoothed iteration would not move.
        least = spread * max(_SMOOTH, _COOLING**iteration)
        pull = weights / np.maximum(np.linalg.norm(rows - point, axis=1), least)
        point = pull @ rows / pull.sum()
    # Towards a least that is one of the rows it comes slowly, so that each of them is tried.
    return min((point, *rows), key=lambda tried: weights @ np.linalg.norm(rows - tried, axis=1))


_MIDDLES: dict[str, Callable[[Floats, Floats, int], Floats]] = {
    "median": median,
    "trimmed-mean": trimmed_mean,
    "geometric-median": geometric_median,
}


def chosen(asked: AggregationSection | None, changes: Iterable[Change]) -> Iterator[Change]:
    """The changes that are folded in; those of rules that choose, once all have come."""
    if asked is None or asked.rule not in ("krum", "multi-krum", "norm-bound"):
        yield from changes
    elif asked.rule == "norm-bound":
        yield from (_bounded(change, asked) for change in changes)
    else:
        came = sorted(changes, key=lambda change: change.site)
        byzantine = asked.byzantine or 0
        count = 1 if asked.rule == "krum" else len(came) - byzantine
        scores = krum_scores([change.vector for change in came], byzantine)
        best = sorted(range(len(came)), key=lambda i: scores[i])[:count]
        yield from (came[i] for i in sorted(best))


def is_cut(asked: AggregationSection | None, norm: float) -> bool:
    """Whether the rule cuts an update of that length."""
    return asked is not None and asked.norm_bound is not None and norm > asked.norm_bound


def _bounded(change: Change, asked: AggregationSection) -> Change:
    norm, bound = length(change.vector), asked.norm_bound or 0.0
    if not is_cut(asked, norm):
        return change
    return replace(change, vector=(change.vector * (bound / norm)).astype(np.float32))


def krum_scores(vectors: list[Vector], byzantine: int) -> list[float]:
    """Of each vector the sum of squared distances to its n - f - 2 nearest others."""
    near = max(len(vectors) - byzantine - 2, 1)
    scores = []
    for i, vector in enumerate(vectors):
        squares = [
            float(np.sum((vector.astype(np.float64) - other) ** 2))
            for j, other in enumerate(vectors)
            if j != i
        ]
        scores.append(sum(sorted(squares)[:near]))
    return scores
