"""FLoRA: the sites' adapters stacked, folded into the base, and new ones begun.

Source: Wang et al. (2024), https://arxiv.org/abs/2409.05976. Stacked A and B stand for the weighted
sum of the products, without the cross terms of their means; that sum is what is folded here, and
what travels, in the place of a stack that grows with the number of sites. The next A is drawn anew
from the job's public seed and the round, but for singular vectors, which stay.
"""

import numpy as np

from common.adapter import Vector
from common.initial import drawn_a
from common.products import fold_of
from server.strategies.base import Folding, LoraStrategy, Round
from server.strategies.products import ProductFolding


class FLoRA(LoraStrategy):
    """Products folded, A and B begun anew."""

    @staticmethod
    def folding(begun: Round) -> Folding:
        """Products, averaged."""
        return _Stack(begun)


class _Stack(ProductFolding):
    def state(self) -> Vector:
        state, begun = self.head(), self.begun
        for matrices, mean in zip(begun.layout.matrices, self.products.means(), strict=True):
            fold = fold_of(matrices, begun.start) + mean
            state[matrices.fold] = fold.astype(np.float32).ravel()
            state[matrices.b] = 0.0
            if begun.job.adapter.start != "svd":
                drawn = drawn_a(begun.job, matrices, begun.number)
                state[matrices.a] = drawn.astype(np.float32).ravel()
        return state
