"""When a job is over, and which round's adapter is kept: decided on public data alone.

Both follow from the closed rounds, which are durable, so that a server that was killed decides as
it would have done. A job that ends early has charged what was executed and nothing less; the best
round's adapter costs what all rounds cost, since looking at later ones is how it was found.

Not covered: more patience after the fact; a job's patience is part of what its operator signed.
"""

from collections.abc import Sequence
from typing import Protocol

from common.job import Job


class Scored(Protocol):
    """A closed round: its number and what the public hold-out says of it."""

    @property
    def round(self) -> int: ...  # noqa: D102
    @property
    def score(self) -> float | None: ...  # noqa: D102


def best_round(closed: Sequence[Scored]) -> int | None:
    """The earliest of the rounds with the highest score; the untrained start is none of them.

    >>> from types import SimpleNamespace as Row
    >>> best_round([Row(round=n, score=s) for n, s in enumerate([0.9, 0.25, 0.5, 0.5, 0.375])])
    2
    """
    trained = [(row.round, row.score) for row in closed if row.round and row.score is not None]
    return max(trained, key=lambda pair: (pair[1], -pair[0]), default=(None,))[0]


def is_over(job: Job, closed: Sequence[Scored]) -> bool:
    """Whether no round is left, or the job's patience is."""
    last, patience = closed[-1].round if closed else 0, job.training.patience
    if last >= job.training.rounds:
        return True
    best = best_round(closed)
    return patience is not None and best is not None and last - best >= patience


def kept_round(job: Job, closed: Sequence[Scored]) -> int:
    """The round whose adapter is the job's outcome: the last, or with patience the best."""
    best = best_round(closed) if job.training.patience is not None else None
    return closed[-1].round if best is None else best
