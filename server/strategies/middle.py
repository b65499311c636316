"""The state moved by a middle of the sites' changes: all that methods with a plain mean do.

Another middle stands in the mean's place where the job says so (``server/strategies/robust.py``).
"""

from common.adapter import Vector
from server.aggregate import Change
from server.strategies.base import Folding, LoraStrategy, Round
from server.strategies.robust import middle_of


class MiddleFolding:
    """``start`` plus the middle of the changes, where there are any."""

    def __init__(self, begun: Round) -> None:
        self._start = begun.start
        self._places = begun.layout.trained(begun.number).places
        self._middle = middle_of(begun.job.aggregation, self._places.size)

    def add(self, change: Change) -> None:
        """Fold one in."""
        self._middle.add(change.vector, change.weight)

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""
        return self._middle.weight

    def state(self) -> Vector:
        """The next state, (P,) float32."""
        moved = self._start.copy()
        for place, middle in self._middle.pieces():
            at = self._places[place]
            moved[at] = self._start[at] + middle  # in float64
        return moved


class MiddleStrategy(LoraStrategy):
    """A method for which that is all."""

    @staticmethod
    def folding(begun: Round) -> Folding:
        """The middle of the changes."""
        return MiddleFolding(begun)
