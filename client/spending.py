"""What a site's ledger says it has spent: over its life, by job, and as it grew.

Every epsilon is composed anew from the charges, at the site's own delta, so that jobs of different
deltas can be compared. Epsilons of jobs do not add up to that of all of them. What is left is said
by the accountant that enforces the cap, which counts what open jobs may still spend.

Not covered: charges without noise, which no epsilon bounds; they are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client import account
from client.config import SiteHome
from client.lifetime import Life
from client.outbox import Charge, Outbox, Submission, spent
from common.errors import InvalidInput
from common.privacy.entries import Decided
from common.privacy.ledger import Head

_MOST_POINTS = 24  # each is a composition of its own


@dataclass(frozen=True, slots=True)
class Spending:
    """The account over all jobs.

    Attributes:
        unit: whose privacy every figure is about; empty while no job has fixed it.
        lifetime: which accountant enforces the cap.
        max_epsilon: the cap over the life of the data.
        delta: the life's.
        epsilon: of the steps that were charged, by privacy loss distributions.
        charged: the same by the accountant that enforces the cap.
        drawn: by that accountant, with what open jobs may still spend.
        drawn_by_pld: the same by privacy loss distributions.
        uncovered_rounds: rounds without noise.
    """

    unit: str
    lifetime: str
    max_epsilon: float
    delta: float
    epsilon: float
    charged: float
    drawn: float
    drawn_by_pld: float
    uncovered_rounds: int

    @property
    def left(self) -> float:
        """About what the cap still allows: epsilons of jobs do not simply add up."""
        return max(0.0, self.max_epsilon - self.drawn)

    @property
    def whose(self) -> str:
        """The unit in words."""
        return self.unit or "not fixed yet: the first job's"


def over_life(life: Life) -> Spending:
    """What the life's jobs have spent and hold."""
    charged, drawn = life.charged(), life.drawn()
    return Spending(
        unit=life.unit,
        lifetime=life.cap.name,
        max_epsilon=life.cap.max_epsilon,
        delta=life.cap.delta,
        epsilon=life.pld(charged),
        charged=life.cost(charged),
        drawn=life.cost(drawn),
        drawn_by_pld=life.pld(drawn),
        uncovered_rounds=sum(not charge.is_private for charge in life.charges),
    )


@dataclass(frozen=True, slots=True)
class JobSpending:
    """A job's part: epsilon alone, and of its budget of steps how many are charged.

    ``counts``: releases of counts that were charged, in epsilon as well.
    """

    name: str
    sha256: str
    state: str
    unit: str
    rounds: int
    steps: int
    planned_steps: int | None
    epsilon: float | None
    counts: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """Epsilon of all charges up to ``at`` (UTC)."""

    at: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class LedgerSpending:
    """All of ``ledger show``."""

    site: str
    head: Head
    lifetime_cap: dict[str, Any]
    life: Spending
    jobs: tuple[JobSpending, ...]
    history: tuple[Point, ...]
    decisions: tuple[Decided, ...]


def spending(home: SiteHome) -> LedgerSpending:
    """Read a site's ledger.

    Raises:
        InvalidInput: the site has not run yet, or ``site.toml`` differs from the ledger.
        LedgerBroken: it is not the one that this site wrote.
    """
    open_account(home)
    outbox = account.open_account(home, is_reader=True)
    life = account.life_of(outbox)
    delta = life.cap.delta
    return LedgerSpending(
        site=home.site,
        head=outbox.head(),
        lifetime_cap=outbox.lifetime_cap(),
        life=over_life(life),
        jobs=tuple(_job(job, life.charges, delta) for job in life.submissions),
        history=history([c for c in life.charges if c.is_private], delta),
        decisions=tuple(outbox.decisions()),
    )


def open_account(home: SiteHome) -> Outbox:
    """The account of a site that has run, whatever ``site.toml`` says by now.

    Raises:
        InvalidInput: it has not.
    """
    if not account.has_run(home):
        raise InvalidInput(f"site {home.site} must have run once to have a ledger, got none")
    return Outbox.of(home, is_reader=True)


def history(charges: Sequence[Charge], delta: float) -> tuple[Point, ...]:
    """Epsilon after each of the charges, or after some of them, evenly chosen, the last always."""
    count = len(charges)
    step = max(1, -(-count // _MOST_POINTS))
    ends = sorted({*range(step, count + 1, step), count} - {0})
    return tuple(Point(charges[end - 1].at, spent(charges[:end], delta)) for end in ends)


def _job(job: Submission, charges: Sequence[Charge], delta: float) -> JobSpending:
    own = [charge for charge in charges if charge.job_sha256 == job.sha256]
    rounds = [charge for charge in own if charge.purpose == "update"]
    is_private = all(charge.is_private for charge in own)
    return JobSpending(
        name=job.name,
        sha256=job.sha256,
        state=job.state,
        unit=job.terms.unit,
        rounds=len(rounds),
        steps=sum(charge.event.steps for charge in rounds),
        planned_steps=job.plan.steps if job.plan else None,
        epsilon=spent(own, delta) if is_private else None,
        counts=len(own) - len(rounds),
    )
