"""The mean of the sites' products BA, beside that of their heads: where three methods begin."""

import numpy as np

from common.adapter import Vector
from common.methods import Part
from server.aggregate import Change, StreamingMean, StreamingProducts
from server.strategies.base import Round


class ProductFolding:
    """Folds whole states of sites, each cut to the site's rank.

    A subclass makes a state of ``means`` (A, B and head averaged) and ``products`` (their means).
    """

    def __init__(self, begun: Round) -> None:
        self.begun = begun
        self.products = StreamingProducts(begun.layout)
        self._states = StreamingMean(begun.start.size)

    def add(self, change: Change) -> None:
        """Fold one in."""
        begun = self.begun
        rank = begun.job.rank(change.site)
        state = begun.layout.cut(begun.start, rank).copy()
        state[begun.layout.trained(begun.number, rank).places] += change.vector
        self._states.add(state, change.weight)
        self.products.add(state, change.weight)

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""
        return self._states.weight

    def means(self) -> Vector:
        """The mean of every number of the sites' states, (P,)."""
        return self._states.mean().astype(np.float32)

    def head(self) -> Vector:
        """The start with the mean of the heads, (P,)."""
        layout = self.begun.layout
        sizes = [spec.size for spec in layout.table.tensors]
        is_head = np.repeat([part is Part.HEAD for part in layout.parts], sizes)
        return np.where(is_head, self.means(), self.begun.start)
