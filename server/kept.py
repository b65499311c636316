"""The adapter that a job keeps, read back for its outcome and for the sites that fetch it."""

from collections.abc import Sequence

from common.errors import StorageFailed
from common.job import Job
from common.stopping import kept_round
from server.checkpoint import Checkpoints, RoundRecord


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
