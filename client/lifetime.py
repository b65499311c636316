"""The cap over the life of a site's data: which of the two, and whether a job fits under it.

``rdp-filter`` lets jobs be chosen after looking at earlier results; ``pld-schedule`` admits just
the jobs that the site named when its ledger was made. Which of them, and the cap, is fixed in the
ledger's first entry: ``site.toml`` has to agree with it from then on.

Not covered: a job's own epsilon, delta and noise (client/policy.py).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from client.config import PolicySection
from client.outbox import Charge
from common.errors import InvalidInput, JobRefused
from common.job import Job
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.lifetime import LifetimeCap, PldSchedule
from common.privacy.rdp_filter import RdpFilter

_MOST_NOISE = 1000.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fit:
    """A noise multiplier with which a job would have fitted, and its epsilon at the job's delta."""

    noise_multiplier: float
    epsilon: float


def plan(job: Job) -> GaussianSteps:
    """The whole of a job's steps at a site."""
    return GaussianSteps(job.privacy.sampling_rate, job.noise_multiplier, job.steps)


def cap_of(policy: PolicySection) -> RdpFilter | PldSchedule:
    """The cap that ``site.toml`` asks for, before there is a ledger."""
    if policy.lifetime == "pld-schedule":
        return PldSchedule(policy.schedule, policy.max_epsilon, policy.max_delta)
    return RdpFilter.for_cap(policy.max_epsilon, policy.max_delta)


def require_unchanged(policy: PolicySection, cap: RdpFilter | PldSchedule) -> None:
    """Check that ``site.toml`` still says what the ledger was made with.

    Raises:
        InvalidInput: every key that differs.
    """
    is_schedule = isinstance(cap, PldSchedule)
    fixed = {
        "lifetime": "pld-schedule" if is_schedule else "rdp-filter",
        "schedule": cap.jobs if isinstance(cap, PldSchedule) else (),
        "max_epsilon": cap.max_epsilon,
        "max_delta": cap.delta,
    }
    faults = [
        f"policy.{key} must be the ledger's {_short(value)} (fixed when it was made), "
        f"got {_short(getattr(policy, key))}"
        for key, value in fixed.items()
        if getattr(policy, key) != value
    ]
    if faults:
        raise InvalidInput(f"site.toml: {'; '.join(faults)}")


def require_lifetime(job: Job, earlier: Iterable[Charge], cap: LifetimeCap) -> None:
    """Check that all of a job's steps fit under the cap, beside all that was charged before.

    Raises:
        JobRefused: they do not. By how much tells of other operators' jobs, and stays in this
            site's own log.
    """
    if not cap.covers(job.sha256):
        raise JobRefused("job must be one of this site's schedule, got another")
    before = events(job, earlier)
    if cap.allows([*before, plan(job)]):
        return
    log.warning("job over the life's limit", job=job.job.name, **_figures(job, before, cap))
    raise JobRefused(
        f"epsilon over the life of this site's data must stay within its limit of "
        f"{cap.max_epsilon:g}, got more with this job"
    )


def events(job: Job, earlier: Iterable[Charge]) -> list[GaussianSteps]:
    """What was charged for other jobs; the job's own rounds are part of its plan."""
    return [c.event for c in earlier if c.job_sha256 != job.sha256 and c.is_private]


def fitting(job: Job, before: Sequence[GaussianSteps], cap: LifetimeCap) -> Fit | None:
    """The least noise with which the job's steps would fit, or ``None`` where none would.

    The epsilon that comes with it is rounded down, so that a job that asks for it fits.
    """
    rate, steps, delta = job.privacy.sampling_rate, job.steps, job.privacy.delta

    def fits(noise: float) -> bool:
        return cap.allows([*before, GaussianSteps(rate, noise, steps)])

    low, high = job.noise_multiplier, max(1.0, 2 * job.noise_multiplier)
    while not fits(high):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            return None
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    cost = epsilon([GaussianSteps(rate, high, steps)], delta or cap.delta)
    return Fit(high, math.floor(cost * 100) / 100)


def _figures(job: Job, before: Sequence[GaussianSteps], cap: LifetimeCap) -> dict[str, object]:
    """Both accountants' figures after the job, and what would fit."""
    after = [*before, plan(job)]
    fit = fitting(job, before, cap)
    return {
        "lifetime": cap.name,
        "epsilon": round(cap.epsilon(after), 3),
        "epsilon_by_pld": round(epsilon(after, cap.delta), 3),
        "max_epsilon": cap.max_epsilon,
        "would_fit": "nothing: ask for no more steps"
        if fit is None
        else f"privacy.epsilon {fit.epsilon:g} (noise multiplier {fit.noise_multiplier:.3f})",
    }


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(str(one)[:12] for one in value)}]"
    return repr(value)
