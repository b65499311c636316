"""FedSVD: B is trained and averaged, and between rounds A is made anew from the product.

Source: Lee et al. (2025), https://arxiv.org/abs/2505.12805. With BA = U S V^T the next A is V^T,
whose rows are orthonormal, and the next B is U S: the product stays, so that nothing is lost, and
it is post-processing, so that it costs no privacy. It is computed once, here.
"""

import numpy as np

from common.adapter import Vector
from common.products import a_of, b_of, refactored
from server.aggregate import Change
from server.strategies.base import Folding, LoraStrategy, Round
from server.strategies.middle import MiddleFolding


class FedSVD(LoraStrategy):
    """B and the head by their means, then another pair for the same product."""

    @staticmethod
    def folding(begun: Round) -> Folding:
        """The mean of the changes, refactored."""
        return _Refactoring(begun)


class _Refactoring:
    def __init__(self, begun: Round) -> None:
        self._layout, self._mean = begun.layout, MiddleFolding(begun)

    def add(self, change: Change) -> None:
        self._mean.add(change)

    @property
    def weight(self) -> float:
        return self._mean.weight

    def state(self) -> Vector:
        state = self._mean.state()
        for matrices in self._layout.matrices:
            b, a = refactored(b_of(matrices, state), a_of(matrices, state))
            state[matrices.a] = a.astype(np.float32).ravel()
            state[matrices.b] = b.astype(np.float32).ravel()
        return state
