"""FlexLoRA: sites of several ranks, the mean of their products, and the nearest of each rank of it.

Source: Bai et al. (2024), https://arxiv.org/abs/2402.11505. The mean is factored by its singular
values, largest first, so that the leading rows of A and columns of B are the nearest product of any
lower rank: a site takes as many as it has (``adapter.ranks``). What the job's own rank cannot hold
is lost.
"""

import numpy as np

from common.adapter import Vector
from common.products import factored
from server.strategies.base import Folding, LoraStrategy, Round
from server.strategies.products import ProductFolding


class FlexLoRA(LoraStrategy):
    """Products averaged and factored."""

    @staticmethod
    def folding(begun: Round) -> Folding:
        """Products, averaged."""
        return _Nearest(begun)


class _Nearest(ProductFolding):
    def state(self) -> Vector:
        state = self.head()
        for matrices, mean in zip(self.begun.layout.matrices, self.products.means(), strict=True):
            b, a = factored(mean, matrices.rank)
            state[matrices.a] = a.astype(np.float32).ravel()
            state[matrices.b] = b.astype(np.float32).ravel()
        return state
