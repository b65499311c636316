"""What a site's ledger says it has spent: by job, and as it grew.

Every epsilon is composed anew from the charges, at the site's own delta, so that jobs of different
deltas can be compared. Epsilons of jobs do not add up to that of all of them.

Not covered: charges without noise, which no epsilon bounds; they are counted apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client.account import has_run
from client.config import SiteHome
from client.outbox import Charge, Outbox, Submission, spent
from common.errors import InvalidInput
from common.privacy.entries import Decided
from common.privacy.ledger import Head

_MOST_POINTS = 24  # each is a composition of its own


@dataclass(frozen=True, slots=True)
class JobSpending:
    """A job's part: epsilon alone, and of its budget of steps how many are charged."""

    name: str
    sha256: str
    state: str
    unit: str
    rounds: int
    steps: int
    planned_steps: int | None
    epsilon: float | None


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
    epsilon: float
    delta: float
    max_epsilon: float
    uncovered_rounds: int
    jobs: tuple[JobSpending, ...]
    history: tuple[Point, ...]
    decisions: tuple[Decided, ...]

    @property
    def left(self) -> float:
        """What the policy still allows."""
        return max(0.0, self.max_epsilon - self.epsilon)


def spending(home: SiteHome) -> LedgerSpending:
    """Read a site's ledger.

    Raises:
        InvalidInput: the site has not run yet.
        LedgerBroken: it is not the one that this site wrote.
    """
    outbox, policy = open_account(home), home.config.policy
    charges = outbox.charges()
    return LedgerSpending(
        site=home.site,
        head=outbox.head(),
        lifetime_cap=outbox.lifetime_cap(),
        epsilon=spent(charges, policy.max_delta),
        delta=policy.max_delta,
        max_epsilon=policy.max_epsilon,
        uncovered_rounds=sum(not charge.is_private for charge in charges),
        jobs=tuple(_job(job, charges, policy.max_delta) for job in outbox.submissions()),
        history=history([c for c in charges if c.is_private], policy.max_delta),
        decisions=tuple(outbox.decisions()),
    )


def open_account(home: SiteHome) -> Outbox:
    """The account of a site that has run.

    Raises:
        InvalidInput: it has not.
    """
    if not has_run(home):
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
    is_private = all(charge.is_private for charge in own)
    return JobSpending(
        name=job.name,
        sha256=job.sha256,
        state=job.state,
        unit=job.terms.unit,
        rounds=len(own),
        steps=sum(charge.event.steps for charge in own),
        planned_steps=job.plan.steps if job.plan else None,
        epsilon=spent(own, delta) if is_private else None,
    )
