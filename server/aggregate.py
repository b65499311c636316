"""Fold updates into a weighted mean as they arrive.

Memory is two vectors whatever the number of sites. Sums are kept in float64, so that the order of
arrival does not reach the float32 result.
"""

import numpy as np
from numpy.typing import NDArray

from common.adapter import Vector


class StreamingMean:
    """The running weighted mean of (P,) float32 vectors."""

    def __init__(self, size: int) -> None:
        self._total: NDArray[np.float64] = np.zeros(size)
        self._weight = 0.0

    def add(self, vector: Vector, weight: float) -> None:
        """Fold one vector in with a public weight > 0."""
        self._total += vector * np.float64(weight)
        self._weight += weight

    @property
    def weight(self) -> float:
        """The sum of the weights so far; 0 before the first vector."""
        return self._weight

    def mean(self) -> Vector:
        """The mean, (P,) float32; zeros before the first vector."""
        if not self._weight:
            return np.zeros(self._total.size, dtype=np.float32)
        return (self._total / self._weight).astype(np.float32)
