"""The cap over the life of a site's data: which of the two, and whether a job fits under it.

An epsilon speaks of one privacy unit, so all that draws on a cap has the same: the one that the
ledger was made with or, where it was made with none, that of the jobs that drew on it first.

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
from common.errors import InvalidInput, JobRefused, RoundRefused
from common.job import Job
from common.privacy.account import Charge, Submission
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.event import MOST_STEPS
from common.privacy.lifetime import LifetimeCap, PldSchedule
from common.privacy.rdp_filter import RdpFilter

_MOST_NOISE = 1000.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Life:
    """The cap, and what jobs have spent of it or may still spend: see ``drawn``.

    ``fixed_unit`` is the privacy unit that the ledger was made with; empty for none.
    """

    cap: LifetimeCap
    submissions: Sequence[Submission] = ()
    charges: Sequence[Charge] = ()
    fixed_unit: str = ""

    def drawn(self, but: str = "") -> list[GaussianSteps]:
        """Private steps of all jobs, leaving out the job of sha256 ``but``.

        A job that is open holds all of its plan and its counts, since each of its rounds may still
        be asked for; one that is closed has spent what was charged.
        """
        held = self._held()
        charged = [c.event for c in self.charges if c.job_sha256 not in {but, *held}]
        plans = [event for sha256, budget in held.items() if sha256 != but for event in budget]
        return [event for event in (*plans, *charged) if event.noise_multiplier > 0]

    def charged(self) -> list[GaussianSteps]:
        """Private steps that were charged so far."""
        return [charge.event for charge in self.charges if charge.is_private]

    def units(self, but: str = "") -> tuple[str, ...]:
        """The privacy units that the cap's sum speaks of; more than one in old ledgers alone."""
        held = self._held()
        drawing = {c.job_sha256 for c in self.charges if c.is_private}
        drawing |= {
            sha256
            for sha256, budget in held.items()
            if any(event.noise_multiplier > 0 for event in budget)
        }
        units = [s.terms.unit for s in self.submissions if s.sha256 in drawing - {but}]
        return tuple(dict.fromkeys([*([self.fixed_unit] if self.fixed_unit else []), *units]))

    @property
    def unit(self) -> str:
        """The units in words; empty while none is fixed."""
        return " and ".join(self.units())

    def cost(self, events: Sequence[GaussianSteps]) -> float:
        """What ``events`` cost by the cap's own accounting; infinity for too many steps."""
        return self.cap.epsilon(events) if _are_countable(events) else math.inf

    def pld(self, events: Sequence[GaussianSteps]) -> float:
        """The same by privacy loss distributions, at the cap's delta."""
        return epsilon(events, self.cap.delta) if _are_countable(events) else math.inf

    def allows(self, events: Sequence[GaussianSteps]) -> bool:
        """Whether ``events``, all of a lifetime with those to come, stay within the cap."""
        return _are_countable(events) and self.cap.allows(events)

    def _held(self) -> dict[str, tuple[GaussianSteps, ...]]:
        return {s.sha256: s.budget for s in self.submissions if s.is_open and s.plan}


@dataclass(frozen=True, slots=True)
class Fit:
    """A noise multiplier with which a job would have fitted, and its epsilon at the job's delta."""

    noise_multiplier: float
    epsilon: float


def plan(job: Job) -> GaussianSteps:
    """The whole of a job's steps of training at a site; ``Job.events`` has its counts as well."""
    return GaussianSteps(job.privacy.sampling_rate, job.noise_multiplier, job.steps)


def cap_of(policy: PolicySection) -> RdpFilter | PldSchedule:
    """The cap that ``site.toml`` asks for, before there is a ledger.

    Raises:
        InvalidInput: no filter has an order that reaches the cap.
    """
    if policy.lifetime == "pld-schedule":
        return PldSchedule(policy.schedule, policy.max_epsilon, policy.max_delta)
    return RdpFilter.for_cap(policy.max_epsilon, policy.max_delta)


def require_unchanged(
    policy: PolicySection, cap: RdpFilter | PldSchedule, fixed_unit: str = ""
) -> None:
    """Check that ``site.toml`` still says what the ledger was made with.

    A unit may be required later, where the ledger was made with none.

    Raises:
        InvalidInput: every key that differs.
    """
    is_schedule = isinstance(cap, PldSchedule)
    fixed: dict[str, object] = {
        "lifetime": "pld-schedule" if is_schedule else "rdp-filter",
        "schedule": cap.jobs if isinstance(cap, PldSchedule) else (),
        "max_epsilon": cap.max_epsilon,
        "max_delta": cap.delta,
    }
    if fixed_unit:
        fixed["required_unit"] = fixed_unit
    faults = [
        f"policy.{key} must be the ledger's {_short(value)} (fixed when it was made), "
        f"got {_short(getattr(policy, key))}"
        for key, value in fixed.items()
        if getattr(policy, key) != value
    ]
    if faults:
        raise InvalidInput(f"site.toml: {'; '.join(faults)}")


def require_unit(job: Job, life: Life) -> None:
    """Check that a job promises something to the unit that all others did.

    Raises:
        JobRefused: to another, or the ledger has several from before this was checked.
    """
    condition, is_met = unit_rule(job, life)
    if not is_met:
        raise JobRefused(f"privacy.unit must be {condition}, got {job.privacy.unit!r}")


def unit_rule(job: Job, life: Life) -> tuple[str, bool]:
    """What a job's unit must be here, and whether it is."""
    units = life.units(but=job.sha256)
    if len(units) > 1:
        return f"the one unit of this site's account, which has several ({', '.join(units)})", False
    if not units:
        return "any unit", True
    return f"{units[0]!r}, the unit of this site's account", units[0] == job.privacy.unit


def require_lifetime(job: Job, life: Life) -> None:
    """Check that all of a job's steps fit under the cap, beside all that other jobs drew.

    Raises:
        JobRefused: they do not. By how much tells of other operators' jobs, and stays in this
            site's own log.
    """
    require_unit(job, life)
    if not life.cap.covers(job.sha256):
        raise JobRefused("job must be one of this site's schedule, got another")
    after = [*life.drawn(but=job.sha256), *job.events]
    if not _are_countable(after):
        raise JobRefused(
            f"steps over the life of this site's data must be at most {MOST_STEPS}, "
            f"got more with this job"
        )
    if life.cap.allows(after):
        return
    log.warning("job over the life's limit", job=job.job.name, **_figures(job, life))
    raise JobRefused(
        f"epsilon over the life of this site's data must stay within its limit of "
        f"{life.cap.max_epsilon:g}, got more with this job"
    )


def require_room(charges: Iterable[Charge], cap: LifetimeCap) -> None:
    """Check what is about to be charged, whatever any job was admitted with.

    Raises:
        RoundRefused: it is more than the cap.
    """
    life = Life(cap, charges=tuple(charges))
    if not life.allows(life.charged()):
        raise RoundRefused(
            "epsilon over the life of this site's data must stay within its limit, "
            "got more with this round"
        )


def fitting(job: Job, life: Life) -> Fit | None:
    """The least noise with which the job's steps would fit, or ``None`` where none would.

    The epsilon that comes with it is rounded down, so that a job that asks for it fits.
    """
    rate, steps = job.privacy.sampling_rate, job.steps
    counts = job.events[1:]  # their noise is made for their own share, and stays
    before = [*life.drawn(but=job.sha256), *counts]

    def fits(noise: float) -> bool:
        return life.allows([*before, GaussianSteps(rate, noise, steps)])

    low, high = job.noise_multiplier, max(1.0, 2 * job.noise_multiplier)
    while not fits(high):
        low, high = high, 2 * high
        if high > _MOST_NOISE:
            return None
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    needed = [GaussianSteps(rate, high, steps), *counts]
    cost = epsilon(needed, job.privacy.delta or life.cap.delta)
    return Fit(high, math.floor(cost * 100) / 100)


def _figures(job: Job, life: Life) -> dict[str, object]:
    """Both accountants' figures after the job, and what would fit."""
    cap, after = life.cap, [*life.drawn(but=job.sha256), *job.events]
    fit = fitting(job, life)
    return {
        "lifetime": cap.name,
        "epsilon": round(life.cost(after), 3),
        "epsilon_by_pld": round(life.pld(after), 3),
        "max_epsilon": cap.max_epsilon,
        "would_fit": "no epsilon"
        if fit is None
        else f"privacy.epsilon {fit.epsilon:g} (noise multiplier {fit.noise_multiplier:.3f})",
    }


def _are_countable(events: Iterable[GaussianSteps]) -> bool:
    return sum(event.steps for event in events) <= MOST_STEPS


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(str(one)[:12] for one in value)}]"
    return repr(value)
