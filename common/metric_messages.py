"""The messages of a job's one release of counts: asked for after the last round, answered once.

The order is a round's, of another kind: manifest, the number after the last round, the adapter that
is kept. The answer holds the counts with their noise as one buffer of a length that follows from
the job, the hash of the adapter that they speak of, and the head of the site's ledger. How many
records or units there are is in none of it.

Not covered: the adapter's own form (common/link/payload.py).
"""

from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from common.contents import config_in
from common.errors import UpdateRejected
from common.histograms import MOST_COUNT, bins
from common.job import Job
from common.messages import HEAD, read_head
from common.privacy.ledger import Head

METRICS = "query.metrics"
# What a site says when its reasons are its own.
NO_COUNTS = "counts could not be made"

_BODY = "counts"
_KEYS = {"counts", "input_sha256"}


@dataclass(frozen=True)
class Counts:
    """A site's counts with their noise, (bins,) int64, of the adapter with that hash."""

    counts: NDArray[np.int64]
    input_sha256: str
    head: Head


def counts_reply(result: Counts) -> RecordDict:
    """A site's answer: noised counts, public constants, and nothing else."""
    data = result.counts.astype("<i8").tobytes()
    body = ConfigRecord({"counts": data, "input_sha256": result.input_sha256})
    return RecordDict({_BODY: body, HEAD: ConfigRecord(asdict(result.head))})


def read_counts(content: RecordDict, job: Job) -> Counts:
    """A site's counts, once everything about them has been checked.

    Raises:
        UpdateRejected: anything but the closed schema and the job's number of bins.
    """
    body = config_in(content, _BODY) or ConfigRecord()
    if set(content) != {_BODY, HEAD} or set(body) != _KEYS:
        raise UpdateRejected("counts must hold counts, input_sha256 and head, got something else")
    data, size = body["counts"], bins(job.histograms)
    if not isinstance(data, bytes) or len(data) != 8 * size:
        raise UpdateRejected(f"counts must be {size} numbers of 8 bytes, got another length")
    counts = np.frombuffer(data, dtype="<i8").astype(np.int64)
    if size and not np.all((counts > -MOST_COUNT) & (counts < MOST_COUNT)):
        raise UpdateRejected("counts must be within 2^52 of 0, got one that is not")
    head = read_head(content, HEAD)
    if head is None:
        raise UpdateRejected("counts' head must be a ledger's, got none")
    return Counts(counts, str(body["input_sha256"])[:64], head)
