"""FedEx-LoRA: A and B by their means, and what that leaves out folded into the base.

Source: Singhal et al. (2024), https://arxiv.org/abs/2410.09432: the residual mean(BA) - mean(B)
mean(A) is added to the frozen matrix, so that the model is exactly the mean of the sites' models.
The folded matrices are as large as the base's own and travel down each round; up go A and B alone.
"""

import numpy as np

from common.adapter import Vector
from common.products import a_of, b_of, fold_of
from server.strategies.base import Folding, LoraStrategy, Round
from server.strategies.products import ProductFolding


class FedEx(LoraStrategy):
    """Means, and the residual folded."""

    @staticmethod
    def folding(begun: Round) -> Folding:
        """States and products, averaged."""
        return _Residuals(begun)


class _Residuals(ProductFolding):
    def state(self) -> Vector:
        state = self.means()
        for matrices, mean in zip(self.begun.layout.matrices, self.products.means(), strict=True):
            residual = mean - b_of(matrices, state) @ a_of(matrices, state)
            fold = fold_of(matrices, self.begun.start) + residual
            state[matrices.fold] = fold.astype(np.float32).ravel()
        return state
