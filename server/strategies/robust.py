"""Rules that bound what some sites can do to the aggregate by updates that are no honest ones.

They see single updates, and hold all of a round: memory is one vector a site. Honest sites under
privacy differ by noise alone as much as attackers may, and sites with other data differ too; a
backdoor that keeps to the honest ones' size and direction passes every one of them.

- ``median``: of each number (Yin et al. 2018, https://arxiv.org/abs/1803.01498).
- ``trimmed-mean``: the mean without the f largest and f smallest of each number (the same).
- ``geometric-median``: the point with the least weighted sum of distances, by Weiszfeld's
  iteration, smoothed (Pillutla et al. 2022, https://arxiv.org/abs/1912.13445), on the rows'
  inner products.
- ``krum``, ``multi-krum``: the update, or the n - f updates, with the least sum of squared
  distances to the n - f - 2 nearest others (Blanchard et al. 2017,
  https://arxiv.org/abs/1703.02757).
- ``norm-bound``: longer updates are cut to the bound (Sun et al. 2019,
  https://arxiv.org/abs/1911.07963).

``mean``, ``geometric-median`` and what ``multi-krum`` and ``norm-bound`` leave weigh sites by their
public population; the others count each site once, or one could declare itself the majority.

Not covered: sites that know the others' updates and stay within the rule.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from common.adapter import Vector
from common.aggregation import AggregationSection
from server.aggregate import Change, Floats, StreamingMean, length

Rows = Sequence[Vector]  # n of (P,) float32

_PIECE = 1 << 17  # numbers of all rows at a time: what a processor keeps near
_MOST_ITERATIONS = 1000
_COOLING = 0.9
_SMOOTH = 1e-6  # distances that count as none, over the spread
_STILL = 1e-9  # a step that counts as none, over the spread
_ROUNDING = 1e-12  # of a sum of distances


class Middle(Protocol):
    """A middle of vectors that come one by one."""

    def add(self, vector: Vector, weight: float) -> None:
        """Take one in."""

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""

    def mean(self) -> Floats:
        """The middle, (P,)."""

    def pieces(self) -> Iterator[tuple[slice, Floats]]:
        """``mean`` some numbers at a time: where they are, and they."""


class _Kept:
    """The middle of vectors that are all held."""

    def __init__(self, of: Callable[[Rows, Floats], Floats]) -> None:
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
        held = zip(self._vectors, self._weights, strict=True)
        named = sorted(
            ((hashlib.sha256(row.data).digest(), weight, row) for row, weight in held),
            key=lambda one: one[:2],
        )
        return self._of([row for *_, row in named], np.array([weight for _, weight, _ in named]))

    def pieces(self) -> Iterator[tuple[slice, Floats]]:
        middle = self.mean()
        yield slice(0, middle.size), middle


def middle_of(asked: AggregationSection | None, size: int) -> Middle:
    """What stands in the mean's place, for vectors of ``size`` numbers."""
    if asked is None or asked.rule not in _MIDDLES:
        return StreamingMean(size)
    byzantine = asked.byzantine or 0
    return _Kept(lambda rows, weights: _MIDDLES[asked.rule](rows, weights, byzantine))


def _pieces(rows: Rows) -> Iterator[tuple[slice, Floats]]:
    """All columns, some at a time: where they are, and the rows' numbers, (n, some) float64."""
    width = max(_PIECE // len(rows), 64)
    for begin in range(0, rows[0].size, width):
        place = slice(begin, begin + width)
        yield place, np.stack([row[place] for row in rows]).astype(np.float64)


def median(rows: Rows, weights: Floats, byzantine: int) -> Floats:
    """The median of each column of (n, P), (P,)."""
    del weights, byzantine
    return np.concatenate([np.median(piece, axis=0) for _, piece in _pieces(rows)])


def trimmed_mean(rows: Rows, weights: Floats, byzantine: int) -> Floats:
    """The mean of each column of (n, P) without its f largest and f smallest, (P,)."""
    del weights
    kept = slice(byzantine, len(rows) - byzantine)
    return np.concatenate([np.sort(piece, axis=0)[kept].mean(axis=0) for _, piece in _pieces(rows)])


def geometric_median(rows: Rows, weights: Floats, byzantine: int) -> Floats:
    """The point (P,) with the least sum of ``weights`` times distances to the rows of (n, P).

    It is the rows' mean under other weights, and its distances to them follow from their inner
    products. So all P numbers are looked at twice, and the iteration goes over (n, n).
    """
    # Seen from here: from a mean, which goes as far as one attacker sends it, the honest rows'
    # differences would be lost in the last bits of its length.
    center = median(rows, weights, byzantine)
    inner = np.zeros((len(rows), len(rows)))
    for place, piece in _pieces(rows):
        piece -= center[place]
        inner += piece @ piece.T
    shares = _shares(inner, weights)
    for place, piece in _pieces(rows):
        piece -= center[place]
        center[place] += shares @ piece
    return center


def _shares(inner: Floats, weights: Floats) -> Floats:
    """What share of each row is in the geometric median, (n,), from the inner products (n, n)."""
    lengths = np.sqrt(np.diag(inner))
    shares = np.zeros_like(lengths)
    if not lengths.any():
        return shares
    spread = float(np.median(lengths)) or float(lengths[lengths > 0].min())
    distances = lengths  # the center's own; the first point is robust, too
    for iteration in range(_MOST_ITERATIONS):
        # Less and less smooth: from a row's own place the unsmoothed iteration would not move.
        least = spread * max(_SMOOTH, _COOLING**iteration)
        pull = weights / np.maximum(distances, least)
        before, shares = shares, pull / pull.sum()
        distances = _distances(inner, shares)
        is_as_smooth = least <= max(spread * _SMOOTH, float(distances.min()))
        if is_as_smooth and np.abs(shares - before) @ lengths <= _STILL * spread:
            break
    # Towards a least that is one of the rows it comes slowly, so that each of them is tried.
    apart = np.sqrt(np.maximum(lengths**2 + lengths[:, None] ** 2 - 2 * inner, 0.0))
    costs = apart @ weights
    nearest = int(costs.argmin())
    if costs[nearest] < (1 - _ROUNDING) * float(weights @ distances):
        shares = np.zeros_like(lengths)
        shares[nearest] = 1
    return shares


def _distances(inner: Floats, shares: Floats) -> Floats:
    """How far the rows are from their mean under ``shares``, (n,)."""
    along = inner @ shares
    squares: Floats = np.maximum(np.diag(inner) - 2 * along + shares @ along, 0.0)
    return np.sqrt(squares)


_MIDDLES: dict[str, Callable[[Rows, Floats, int], Floats]] = {
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
