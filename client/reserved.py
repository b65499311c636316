"""What a site may reserve and release: a round of an open job, next in order, from one input.

Not covered: writing it down (client/outbox.py).
"""

import hashlib
import sqlite3
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

from common.code import code_sha256
from common.errors import LedgerBroken, RoundRefused
from common.privacy.account import ENDED, Account, Charge, Reservation, Submission
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import Purpose


@dataclass(frozen=True, slots=True)
class RoundKey:
    """What a release answers: one round of one job from one input adapter."""

    job_sha256: str
    round: int
    input_sha256: str


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job that this site takes or took part in."""

    sha256: str
    name: str
    manifest: bytes
    state: str
    final_sha256: str


@cache
def versions() -> dict[str, str]:
    """What ran: our code and the accountant."""
    return {
        "code_sha256": code_sha256(),
        "accountant": f"dp-accounting {version('dp-accounting')}",
    }


def charge_of(key: RoundKey, event: GaussianSteps) -> Charge:
    """A round's charge before it is one."""
    return Charge(key.job_sha256, key.round, event, "", is_acknowledged=False)


def keep_start(db: sqlite3.Connection, key: RoundKey, start: bytes) -> None:
    """Only the latest input is needed."""
    db.execute("UPDATE content SET start = NULL WHERE job_sha256 = ?", (key.job_sha256,))
    db.execute(
        "INSERT INTO content (job_sha256, round, start) VALUES (?, ?, ?)",
        (key.job_sha256, key.round, start),
    )


def open_job(account: Account, key: RoundKey) -> Submission:
    """The job of a round, if it is open.

    Raises:
        RoundRefused: it is not.
    """
    job = account.jobs.get(key.job_sha256)
    if job is None or not job.is_open:
        state = "unknown" if job is None else "closed" if job.state not in ENDED else job.state
        raise RoundRefused(f"round {key.round} must belong to an open job, got one that is {state}")
    return job


def require_next(
    account: Account, job: Submission, key: RoundKey, event: GaussianSteps, purpose: Purpose
) -> None:
    """Check that a round comes next and that the job has room for its steps.

    Raises:
        RoundRefused: it does not, or has none.
    """
    latest, charged = account.latest_round(job.sha256), account.charged_steps(job.sha256)
    if key.round <= latest:
        raise RoundRefused(f"round must be after {latest} of this job, got {key.round}")
    if account.has_room(job, event, purpose):
        return
    if purpose == "metrics":
        raise RoundRefused("metrics must be those that the job was accepted with, once, got others")
    planned = 0 if job.plan is None else job.plan.steps
    raise RoundRefused(
        f"round {key.round} must be within the {planned} steps that the job was "
        f"accepted with, at their rate and noise, got {event.steps} more after {charged}"
    )


def require_same_input(found: Reservation, key: RoundKey) -> None:
    """Check that a round is asked again from the input it was reserved for.

    Raises:
        RoundRefused: it is another.
    """
    if found.input_sha256 != key.input_sha256:
        raise RoundRefused(
            f"round {key.round} must start from the adapter it was reserved for, "
            f"{found.input_sha256[:16]}, got {key.input_sha256[:16]}"
        )


def whole(data: bytes | None, sha256: str, name: str) -> bytes:
    """The bytes, if they are those that the ledger names.

    Raises:
        LedgerBroken: they are not.
    """
    if data is None or sha256_of(data) != sha256:
        raise LedgerBroken(f"{name} must be the bytes that the ledger names, got others or none")
    return data


def sha256_of(data: bytes) -> str:
    """The hash, in hex."""
    return hashlib.sha256(data).hexdigest()
