"""What the self-checks look at: the path of a site's training, on public records.

``client/rehearsal.py`` is the one that sites use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.data.records import Record
from common.privacy.mechanism import Mechanism


@dataclass(frozen=True, slots=True)
class PublicRecord:
    """A record of random tokens, by its number.

    Attributes:
        seed: its number; equal ones have the same tokens.
        weight: what its loss is multiplied by.
        length: its padded length, of ``Subject.lengths``; 0 for a short one that the number picks.
    """

    seed: int
    weight: float = 1.0
    length: int = 0


PublicUnits = Sequence[Sequence[PublicRecord]]
Table = tuple[tuple[str, int], ...]


class Subject(Protocol):
    """The path of a site's training, on public units instead of its own."""

    @property
    def mechanism(self) -> Mechanism:
        """As training will use it."""

    @property
    def is_seeded(self) -> bool:
        """Whether this is a simulation whose draws a seed repeats, and which promises nothing."""

    @property
    def tensors(self) -> Table:
        """Name and size of each trainable tensor, in the order of the job's flat vector."""

    @property
    def trainables(self) -> Table:
        """The same, as the model has them now."""

    @property
    def public_divisor(self) -> float:
        """What the job's public numbers make the expected batch size."""

    @property
    def rows(self) -> int:
        """Rows of a physical batch."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Padded lengths of records, ascending: the least, one between, the greatest."""

    def has_dropout(self) -> bool:
        """Whether the model drops anything at random."""

    def group(self, records: Sequence[Record]) -> list[list[Record]]:
        """Records as the job's privacy units."""

    def unit_gradients(self, units: PublicUnits) -> Tensor:
        """(n, P), before they are bounded; in the order of ``units`` where all have one length."""

    def bounded_sum(self, units: PublicUnits) -> Tensor:
        """(P,), as a step adds them up."""

    def release(self, units: PublicUnits, mechanism: Mechanism, round_: int, step: int) -> Tensor:
        """(P,) float32, a step under ``mechanism`` at a site that has ``units``."""

    def change(self, units: PublicUnits, mechanism: Mechanism) -> NDArray[np.float32]:
        """(P,), a round under ``mechanism`` at a site that has ``units``."""

    def reread(self, change: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P,), ``change`` as it comes back from a saved adapter."""

    def require_agreement(self) -> None:
        """Let independent accountants compute what the job will cost."""


def places(tensors: Table) -> list[tuple[str, slice]]:
    """Where each tensor is in the flat vector."""
    ends = np.cumsum([size for _, size in tensors]).tolist()
    return [(name, slice(end - size, end)) for (name, size), end in zip(tensors, ends, strict=True)]
