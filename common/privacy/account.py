"""What a site's entries add up to: jobs, charges and decisions, replayed in order.

The same replay serves the site, its commands and an auditor, so all of them see the same epsilon.
An entry that could not have been written after those before it is as wrong as a broken hash.

Not covered: the bytes themselves (client/outbox.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from common.errors import LedgerBroken
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.entries import (
    AnyEntry,
    Closed,
    Committed,
    Created,
    Decided,
    Purpose,
    Rekeyed,
    Released,
    Reserved,
    Steps,
    Submitted,
    Terms,
)
from common.privacy.event import MOST_STEPS

RUNNING = "running"
# How a server ends a job, and how a person at the site does.
ENDED_BY_SERVER = ("finished", "failed", "stopped")
REFUSED = "refused"
ENDED = (*ENDED_BY_SERVER, REFUSED)


@dataclass(frozen=True, slots=True)
class Charge:
    """A durable charge: a round's steps or a job's counts, released or not."""

    job_sha256: str
    round: int
    event: GaussianSteps
    payload_sha256: str
    is_acknowledged: bool
    terms: Terms = field(default_factory=Terms)
    at: str = ""
    purpose: Purpose = "update"

    @property
    def is_private(self) -> bool:
        """Whether the steps had noise; without, no epsilon bounds them."""
        return self.event.noise_multiplier > 0

    @property
    def is_released(self) -> bool:
        """Whether finished bytes exist, which may have left."""
        return bool(self.payload_sha256)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job that this site accepted, how it stands, and its whole budget if it was stated.

    ``was_closed``: it ended at some time, whatever a later entry of an old ledger says.
    ``metrics``: what its counts cost beside the plan. ``salt``: the random bits of its entry.
    ``end``: the number of the entry that ended it for ever.
    """

    sha256: str
    name: str
    manifest_sha256: str
    message_cap_bytes: int
    plan: GaussianSteps | None
    terms: Terms
    state: str = RUNNING
    final_sha256: str = ""
    was_closed: bool = False
    metrics: GaussianSteps | None = None
    salt: str = field(default="", repr=False)
    end: int | None = None

    @property
    def budget(self) -> tuple[GaussianSteps, ...]:
        """All that it may be charged; nothing where no plan was stated."""
        return tuple(event for event in (self.plan, self.metrics) if event is not None)

    @property
    def is_open(self) -> bool:
        """Whether its rounds may still be charged."""
        return self.state == RUNNING and not self.was_closed


@dataclass(frozen=True, slots=True)
class Reservation:
    """A charged round: what it starts from, the charge, and the number of its entry."""

    input_sha256: str
    start_sha256: str
    charge: Charge
    seq: int


class Account:
    """The state after some entries."""

    def __init__(self) -> None:
        self.created: Created | None = None
        self.jobs: dict[str, Submission] = {}
        self.rounds: dict[tuple[str, int], Reservation] = {}
        self.decisions: list[Decided] = []
        self.hand_overs: list[Rekeyed] = []
        self._ended: set[str] = set()
        self._latest: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._counted: set[str] = set()

    def charges(self, job_sha256: str | None = None) -> list[Charge]:
        """Every charge, or those of one job, in order."""
        return [
            found.charge for (job, _), found in self.rounds.items() if job_sha256 in (None, job)
        ]

    def latest_round(self, job_sha256: str) -> int:
        """The latest reserved round of a job; 0 before the first."""
        return self._latest.get(job_sha256, 0)

    def charged_steps(self, job_sha256: str) -> int:
        """All steps of training that a job has been charged."""
        return self._steps.get(job_sha256, 0)

    def releases_of_counts(self, job_sha256: str) -> int:
        """1 where a job was charged for its counts, else 0."""
        return int(job_sha256 in self._counted)

    def apply(self, entry: AnyEntry) -> None:
        """Take the next entry in.

        Raises:
            LedgerBroken: it could not have been written here.
        """
        match entry:
            case Created():
                self.created = entry
            case Rekeyed():
                self.hand_overs.append(entry)
            case Submitted():
                self._submit(entry)
            case Reserved():
                self._reserve(entry)
            case Released():
                self._release(entry)
            case Committed():
                self._commit(entry)
            case Closed():
                self._close(entry)
            case Decided():
                self.decisions.append(entry)

    def _submit(self, entry: Submitted) -> None:
        if entry.job_sha256 in self.jobs:
            raise _wrong(entry, "submit a new job")
        self.jobs[entry.job_sha256] = Submission(
            entry.job_sha256,
            entry.name,
            entry.manifest_sha256,
            entry.message_cap_bytes,
            None if entry.plan is None else event_of(entry.plan),
            entry.terms,
            metrics=None if entry.metrics is None else event_of(entry.metrics),
            salt=entry.salt,
        )

    def _reserve(self, entry: Reserved) -> None:
        job, event = self._job(entry), event_of(entry.charge)
        if job.state != RUNNING or job.sha256 in self._ended:
            raise _wrong(entry, "charge an open job")
        if entry.round <= self.latest_round(entry.job_sha256):
            raise _wrong(entry, "charge a later round")
        if not self.has_room(job, event, entry.purpose):
            raise _wrong(entry, "stay within the job's budget")
        if entry.job_steps not in (None, self._steps_with(entry)):
            raise _wrong(entry, "state all steps of its job")
        charge = Charge(
            entry.job_sha256, entry.round, event, "", False, entry.terms, entry.at, entry.purpose
        )
        key = (entry.job_sha256, entry.round)
        self.rounds[key] = Reservation(entry.input_sha256, entry.start_sha256, charge, entry.seq)
        self._latest[job.sha256] = entry.round
        self._steps[job.sha256] = self._steps_with(entry)
        if entry.purpose == "metrics":
            self._counted.add(job.sha256)

    def _steps_with(self, entry: Reserved) -> int:
        own = 0 if entry.purpose == "metrics" else entry.charge.steps
        return self.charged_steps(entry.job_sha256) + own

    def has_room(self, job: Submission, event: GaussianSteps, purpose: Purpose) -> bool:
        """Whether a job's budget still has ``event``; its counts are charged once and end it."""
        if job.sha256 in self._counted:
            return False
        if purpose == "metrics":
            return event == job.metrics
        return job.plan is None or fits(job.plan, event, self.charged_steps(job.sha256))

    def _close(self, entry: Closed) -> None:
        job = self._job(entry)
        if job.sha256 in self._ended or (entry.is_final and job.was_closed):
            raise _wrong(entry, "end an open job")
        charged = (self.charged_steps(job.sha256), self.releases_of_counts(job.sha256))
        if (entry.steps, entry.counts) not in ((None, None), charged):
            raise _wrong(entry, "state all that its job was charged")
        if entry.is_final:
            self._ended.add(job.sha256)
        self.jobs[job.sha256] = replace(
            job,
            state=entry.state,
            final_sha256=entry.final_sha256,
            was_closed=True,
            end=entry.seq if entry.is_final else job.end,
        )

    def _release(self, entry: Released) -> None:
        found = self._round(entry)
        if found.charge.is_released:
            raise _wrong(entry, "be the round's one release")
        if entry.job_sha256 in self._ended:
            raise _wrong(entry, "release for an open job")
        self._set(entry, found, replace(found.charge, payload_sha256=entry.payload_sha256))

    def _commit(self, entry: Committed) -> None:
        found = self._round(entry)
        if found.charge.payload_sha256 != entry.payload_sha256:
            raise _wrong(entry, "receipt the released bytes")
        self._set(entry, found, replace(found.charge, is_acknowledged=True))

    def _set(self, entry: Released | Committed, found: Reservation, charge: Charge) -> None:
        self.rounds[entry.job_sha256, entry.round] = replace(found, charge=charge)

    def _job(self, entry: Reserved | Closed) -> Submission:
        job = self.jobs.get(entry.job_sha256)
        if job is None:
            raise _wrong(entry, "follow its job's submission")
        return job

    def _round(self, entry: Released | Committed) -> Reservation:
        found = self.rounds.get((entry.job_sha256, entry.round))
        if found is None:
            raise _wrong(entry, "follow its reservation")
        return found


def spent(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of all private charges together, whether or not their bytes were ever sent.

    Infinity for more steps than any account may have.
    """
    events = [c.event for c in charges if c.is_private]
    if sum(event.steps for event in events) > MOST_STEPS:
        return math.inf
    return epsilon(events, delta)


def fits(plan: GaussianSteps, event: GaussianSteps, charged: int) -> bool:
    """Whether a job that has charged so many steps may charge ``event`` of its ``plan``."""
    is_planned = (event.sampling_rate, event.noise_multiplier) == (
        plan.sampling_rate,
        plan.noise_multiplier,
    )
    return is_planned and charged + event.steps <= plan.steps


def event_of(steps: Steps) -> GaussianSteps:
    """Recorded steps as the accountant takes them."""
    return GaussianSteps(steps.sampling_rate, steps.noise_multiplier, steps.steps)


def steps_of(event: GaussianSteps) -> Steps:
    """Steps as the ledger records them."""
    return Steps(
        sampling_rate=event.sampling_rate,
        noise_multiplier=event.noise_multiplier,
        steps=event.steps,
    )


def _wrong(entry: AnyEntry, must: str) -> LedgerBroken:
    return LedgerBroken(f"ledger entry {entry.seq} must {must}, got one that cannot")
