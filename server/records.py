"""What the server keeps of a job: how it stands, its closed rounds, each site's replies.

Not covered: where it is kept (server/checkpoint.py); charges and signed receipts
(server/receipts.py).
"""

import dataclasses
from typing import Literal, get_args

from sqlalchemy.engine import RowMapping

from common.job import SignedJob, parse_signed_job

State = Literal["queued", "running", "finished", "failed", "stopped"]
STATES: tuple[State, ...] = get_args(State)
Witnessed = Literal["longer", "same", "shorter", "forked", "foreign"]


@dataclasses.dataclass(frozen=True, slots=True)
class Receipt:
    """One site's reply to one round, as the server acknowledged it.

    ``steps`` are those of this round; ``charged_steps`` is the site's own statement of all that its
    account has charged for the job. ``was_cut`` says that it was longer than ``norm-bound`` lets
    pass; nothing where that is not the rule, or not so.
    """

    site: str
    round: int
    payload_sha256: str
    steps: int
    charged_steps: int
    bytes_up: int
    accepted: bool
    was_cut: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RoundRecord:
    """A closed round: the adapter that went in, the one that came out, and how good it is.

    ``entity_f1`` takes accuracy's place in jobs that look for entities. ``bytes_down`` is
    unknown where an earlier version closed the round.
    """

    round: int
    accuracy: float | None
    macro_f1: float | None
    bytes_up: int
    seconds: float
    input_sha256: str
    output_sha256: str
    entity_f1: float | None = None
    bytes_down: int | None = None

    @property
    def score(self) -> float | None:
        """What the job's task is judged by."""
        return self.accuracy if self.entity_f1 is None else self.entity_f1


@dataclasses.dataclass(frozen=True, slots=True)
class JobRow:
    """A job and how it stands."""

    sha256: str
    name: str
    state: State
    reason: str
    submitted_at: str
    changed_at: str
    signed_bytes: bytes = dataclasses.field(repr=False)

    @property
    def signed(self) -> SignedJob:
        """The manifest with its signature."""
        return parse_signed_job(self.signed_bytes)


def job_row(row: RowMapping) -> JobRow:
    """A row of the table of jobs."""
    values = {name: row[name] for name in names(JobRow) if name in row}
    return JobRow(**values, signed_bytes=bytes(row["signed"]))


def names(model: type) -> list[str]:
    """A record's fields, which are its table's columns."""
    return [field.name for field in dataclasses.fields(model)]
