"""The rows of a table's tensors, along which a codec may give numbers a scale of their own.

A row runs along a matrix's longer side, so that scales are few: of A (r, k) the r rows, of B (d, r)
its r columns. A vector is one row.

Not covered: tensors of more than two dimensions other than by their first against the rest.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """How a flat vector (P,) falls into rows.

    Attributes:
        order: (P,) the place in the vector of each number, row after row.
        begins: (R,) where each row begins in that order.
    """

    order: NDArray[np.int64]
    begins: NDArray[np.int64]

    @property
    def size(self) -> int:
        """P."""
        return self.order.size

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) numbers in each row."""
        return np.diff(self.begins, append=self.order.size)


def rows_of(shapes: Iterable[Shape]) -> Rows:
    """The rows of tensors that lie one after the other in a flat vector."""
    return _rows_of(tuple(shapes))


@lru_cache(maxsize=64)
def _rows_of(shapes: tuple[Shape, ...]) -> Rows:
    orders, lengths, offset = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for shape in shapes:
        size = math.prod(shape)
        places = np.arange(offset, offset + size).reshape(shape[0] if len(shape) > 1 else 1, -1)
        if places.shape[0] > places.shape[1]:
            places = places.T
        offset += size
        orders.append(places.ravel())
        lengths.append(np.full(places.shape[0], places.shape[1]))
    begins = np.cumsum(np.concatenate(lengths)) - np.concatenate(lengths)
    return Rows(np.concatenate(orders), begins)
