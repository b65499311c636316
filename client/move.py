"""A move of the global adapter: from the state that a site knows to the one that came.

Not covered: what a method allows (``client/step.py``).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.stride import stride
from common.adapter import LoadedAdapter, Vector
from common.errors import RoundRefused
from common.job import Job
from common.layout import Layout
from common.methods import Part

# Sums and states are in float32: this is far above what a round's rounding takes of a norm.
_RELATIVE = 1e-5
ROUNDING = 1e-6


@dataclass(frozen=True)
class Move:
    """One move.

    Attributes:
        job: its constants.
        adapter: the job's, with the start that round 1 has.
        round: that is asked for.
        known_round: whose state is known; 1 where no order was answered yet.
        known: its state, (P,).
        state: that came, (P,).
        is_first: whether no order was answered yet, and ``known`` is this machine's own start.
    """

    job: Job
    adapter: LoadedAdapter
    round: int
    known_round: int
    known: Vector
    state: Vector
    is_first: bool

    @property
    def layout(self) -> Layout:
        """Of both states."""
        return self.adapter.layout

    @property
    def rounds(self) -> int:
        """How many were closed between the two."""
        return max(self.round - self.known_round, 0)

    @cached_property
    def stride(self) -> float:
        """The most that a round moves what is trained."""
        return stride(self.job, self.layout.largest)

    @cached_property
    def trained(self) -> frozenset[Part]:
        """Parts that sites may have trained in these rounds.

        Of methods that take turns those of every turn: a server that was put back from a backup
        closes rounds anew, which this site does not count.
        """
        turns = self.layout.rounds if self.rounds else ()
        return frozenset().union(*(self.layout.trains(turn) for turn in turns))

    @cached_property
    def size(self) -> float:
        """The longer state's norm."""
        return max(_norm(self.known), _norm(self.state))

    def places(self, parts: frozenset[Part]) -> NDArray[np.bool_]:
        """Which numbers of the state are of ``parts``, (P,)."""
        sizes = [spec.size for spec in self.layout.table.tensors]
        return np.repeat([part in parts for part in self.layout.parts], sizes)

    def moved(self, parts: frozenset[Part]) -> float:
        """The norm of the step in ``parts``."""
        places = self.places(parts)
        return _norm(self.state[places].astype(np.float64) - self.known[places])

    def require(self, moved: float, allowed: float, *, rounding: float = 0.0) -> None:
        """Check a distance.

        Args:
            moved: it.
            allowed: the most that honest rounds can make it.
            rounding: what numbers of the size that was rounded lose in float32.

        Raises:
            RoundRefused: it is more.
        """
        if not moved <= allowed * (1 + _RELATIVE) + rounding:
            raise RoundRefused(
                f"global adapter must be within {allowed:g} of the one this site knows, "
                f"got {moved:g}"
            )


def _norm(vector: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(vector.astype(np.float64)))
