"""Whom the server asked for counts, and what each site answered: durable, and read without a model.

Not covered: asking (server/measuring.py); what the counts say (common/estimates.py).
"""

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from common.job import Job
from server import tables
from server.checkpoint import Checkpoints


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of asking a site; ``counts`` is ``None`` where it gave none (yet)."""

    site: str
    counts: NDArray[np.int64] | None
    reason: str
    payload_sha256: str
    bytes_up: int

    @property
    def is_answered(self) -> bool:
        """Whether nobody needs to ask again."""
        return bool(self.payload_sha256)


def answers(checkpoints: Checkpoints, job_sha256: str) -> dict[str, Answer]:
    """What each site that was asked has answered; all of them count as charged."""
    table = tables.counts
    query = sa.select(table).where(table.c.job_sha256 == job_sha256).order_by(table.c.site)
    with checkpoints.reading() as connection:
        rows = connection.execute(query).mappings().all()
    return {
        row["site"]: Answer(
            row["site"],
            None if row["counts"] is None else np.frombuffer(row["counts"], "<i8").astype(np.int64),
            row["reason"],
            row["payload_sha256"],
            row["bytes_up"],
        )
        for row in rows
    }


def assume_asked(checkpoints: Checkpoints, job: Job) -> None:
    """Record that every site may have been asked, as after a restored backup."""
    if job.metrics is not None:
        note_asked(checkpoints, job.sha256, set(job.sites))


def note_asked(checkpoints: Checkpoints, job_sha256: str, asked: set[str]) -> None:
    """Record durably whom the server is about to ask; from then on they count as charged."""
    table = tables.counts
    with checkpoints.writing() as connection:
        query = sa.select(table.c.site).where(table.c.job_sha256 == job_sha256)
        known = set(connection.execute(query).scalars())
        empty = {"counts": None, "reason": "", "payload_sha256": "", "bytes_up": 0}
        fresh = [{"job_sha256": job_sha256, "site": s, **empty} for s in sorted(asked - known)]
        if fresh:
            connection.execute(table.insert(), fresh)
