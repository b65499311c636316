"""When a job is over, and which round's adapter is kept: decided on public data alone.

Both follow from the closed rounds, which are durable, so that a server that was killed decides as
it would have done. A job that ends early has charged what was executed and nothing less; the best
round's adapter costs what all rounds cost, since looking at later ones is how it was found.

Not covered: more patience after the fact; a job's patience is part of what its operator signed.
"""

from collections.abc import Sequence

from common.errors import StorageFailed
from common.job import Job
from server.checkpoint import Checkpoints, RoundRecord


def best_round(closed: Sequence[RoundRecord]) -> int | None:
    """The earliest of the rounds with the highest score; the untrained start is none of them.

    >>> scores = [0.9, 0.25, 0.5, 0.5, 0.375]
    >>> best_round([RoundRecord(n, s, None, 0, 0.0, "", "") for n, s in enumerate(scores)])
    2
    """
    trained = [(row.round, row.score) for row in closed if row.round and row.score is not None]
    return max(trained, key=lambda pair: (pair[1], -pair[0]), default=(None,))[0]


def is_over(job: Job, closed: Sequence[RoundRecord]) -> bool:
    """Whether no round is left, or the job's patience is."""
    last, patience = closed[-1].round if closed else 0, job.training.patience
    if last >= job.training.rounds:
        return True
    best = best_round(closed)
    return patience is not None and best is not None and last - best >= patience


def kept_round(job: Job, closed: Sequence[RoundRecord]) -> int:
    """The round whose adapter is the job's outcome: the last, or with patience the best."""
    best = best_round(closed) if job.training.patience is not None else None
    return closed[-1].round if best is None else best


def kept_adapter(job: Job, checkpoints: Checkpoints, closed: Sequence[RoundRecord]) -> bytes:
    """The (P,) float32 buffer of the round that is kept.

    Raises:
        StorageFailed: it is not what was written, or another round's.
    """
    stored = checkpoints.latest if job.training.patience is None else checkpoints.best
    found, wanted = stored(job.sha256), kept_round(job, closed)
    if found is None or found[0] != wanted:
        raise StorageFailed(f"adapter of round {wanted} must be kept, got another or none")
    return found[1]
