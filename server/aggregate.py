"""Fold sites' changes together as they arrive.

Memory is one vector beside the one that arrives, whatever the number of sites. A change is added
from the message's own bytes by BLAS (``saxpy``), in float32: at the speed at which memory is
copied, and off by what n additions round, so that the order of arrival reaches the last bits.

Not covered: products, whose sums are in float64 and as large as the adapted matrices; how many
updates are on their way in at a time (server/room.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import saxpy

from common.adapter import Vector
from common.layout import Layout
from common.products import Matrix, a_of, b_of

Floats = NDArray[np.float64]

_PIECE = 1 << 16  # numbers at a time in float64: what a processor keeps near


def length(vector: Vector) -> float:
    """The Euclidean norm of (P,) float32 numbers, added up in float64.

    >>> length(np.array([3.0, 4.0], np.float32))
    5.0
    """
    squares, held = 0.0, np.empty(min(_PIECE, vector.size))
    for begin in range(0, vector.size, _PIECE):
        taken = vector[begin : begin + _PIECE]
        piece = held[: taken.size]
        piece[:] = taken
        squares += float(piece @ piece)
    return math.sqrt(squares)


@dataclass(frozen=True)
class Change:
    """One site's answer to a round: (P,) numbers of what it trains, and its public weight > 0."""

    site: str
    vector: Vector
    weight: float


class StreamingMean:
    """The running weighted mean of (P,) float32 vectors."""

    def __init__(self, size: int) -> None:
        self._total: Vector = np.zeros(size, np.float32)
        self._weight = 0.0

    def add(self, vector: Vector, weight: float) -> None:
        """Fold one vector in with a public weight > 0; it may be read-only."""
        self._total = saxpy(vector, self._total, a=weight)  # in place
        self._weight += weight

    @property
    def weight(self) -> float:
        """The sum of the weights so far; 0 before the first vector."""
        return self._weight

    def mean(self) -> Floats:
        """The mean, (P,); zeros before the first vector."""
        found = np.empty(self._total.size)
        for place, piece in self.pieces():
            found[place] = piece
        return found

    def pieces(self) -> Iterator[tuple[slice, Floats]]:
        """``mean`` some numbers at a time: where they are, and they."""
        for begin in range(0, self._total.size, _PIECE):
            place = slice(begin, begin + _PIECE)
            yield place, self._total[place].astype(np.float64) / (self._weight or 1.0)


class StreamingProducts:
    """The running weighted mean of the products BA of sites' states, each (d, k)."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._totals = [np.zeros((m.outputs, m.inputs)) for m in layout.matrices]
        self._weight = 0.0

    def add(self, state: Vector, weight: float) -> None:
        """Fold the products of one site's state (P,) in."""
        for total, matrices in zip(self._totals, self._layout.matrices, strict=True):
            total += weight * (b_of(matrices, state) @ a_of(matrices, state))
        self._weight += weight

    def means(self) -> list[Matrix]:
        """The mean of each adapted matrix, in the layout's order."""
        return [total / self._weight for total in self._totals]
