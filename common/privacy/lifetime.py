"""What a site may allow over the life of its data, and how the ledger remembers which.

Two caps. ``RdpFilter`` (rdp_filter.py) lets jobs be chosen after looking at earlier results.
``PldSchedule`` is cheaper and admits only jobs that the site fixed beforehand, all of them before
the first release: then plain composition of privacy loss distributions applies. A site chooses
once, when its ledger is made; ``name`` stands in the ledger and in every statement.

Not covered: enforcing that a schedule was fixed beforehand; that is the ledger's first row.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import InvalidInput
from common.privacy import accounting
from common.privacy.event import MOST_STEPS, GaussianSteps, usable_delta
from common.privacy.rdp_filter import RdpFilter
from common.words import counted


class LifetimeCap(Protocol):
    """(``max_epsilon``, ``delta``) for everything that it allows, together."""

    @property
    def max_epsilon(self) -> float:
        """The lifetime's cap."""

    @property
    def delta(self) -> float:
        """The lifetime's delta: jobs share it, and nothing is added to it."""

    @property
    def name(self) -> str:
        """In words, as in the ledger and in every statement."""

    def covers(self, job_sha256: str) -> bool:
        """Whether the job may draw on this cap at all."""

    def allows(self, events: Iterable[GaussianSteps]) -> bool:
        """Whether all of a lifetime's ``events``, with those to come, stay within the cap."""

    def epsilon(self, events: Iterable[GaussianSteps]) -> float:
        """What ``events`` cost by this cap's own accounting."""


@dataclass(frozen=True, slots=True)
class PldSchedule:
    """Allow the scheduled jobs alone, as long as their composition stays within the cap.

    Attributes:
        jobs: SHA-256 of each job, fixed before the first release of any.
        max_epsilon: the lifetime's cap.
        delta: the lifetime's delta, with the noise generator's share still in it.

    Raises:
        InvalidInput: a parameter outside its range, or a job that is none or there twice.
    """

    jobs: tuple[str, ...]
    max_epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.max_epsilon < float("inf"):
            raise InvalidInput(f"epsilon must be in (0, inf), got {self.max_epsilon}")
        usable_delta(self.delta, MOST_STEPS)
        if not self.jobs or len(set(self.jobs)) < len(self.jobs):
            raise InvalidInput(f"jobs must be one or more, each once, got {list(self.jobs)}")
        for job in self.jobs:
            if not re.fullmatch("[0-9a-f]{64}", job):
                raise InvalidInput(f"jobs must be SHA-256 in lower-case hex, got {job!r}")

    @property
    def name(self) -> str:
        """As in the ledger and in every statement."""
        return f"pld-schedule of {counted(len(self.jobs), 'job')}"

    def covers(self, job_sha256: str) -> bool:
        """Whether the job is on the schedule."""
        return job_sha256 in self.jobs

    def epsilon(self, events: Iterable[GaussianSteps]) -> float:
        """The composition of ``events`` at ``delta``."""
        return accounting.epsilon(events, self.delta)

    def allows(self, events: Iterable[GaussianSteps]) -> bool:
        """Whether ``events``, all of a lifetime with those to come, stay within the cap."""
        return self.epsilon(events) <= self.max_epsilon


def cap_to_dict(cap: RdpFilter | PldSchedule) -> dict[str, Any]:
    """As a ledger stores it: JSON's types only."""
    limits = {"epsilon": cap.max_epsilon, "delta": cap.delta}
    if isinstance(cap, RdpFilter):
        return {"kind": "rdp-filter", "order": cap.order, **limits}
    return {"kind": "pld-schedule", "jobs": list(cap.jobs), **limits}


def cap_from_dict(stored: Mapping[str, Any]) -> RdpFilter | PldSchedule:
    """The cap that ``cap_to_dict`` stored.

    Raises:
        InvalidInput: another kind, keys that are missing or unknown, a value out of range.

    >>> cap_from_dict({"kind": "rdp-filter", "order": 6.5, "epsilon": 3.0, "delta": 1e-5}).name
    'rdp-filter order 6.5'
    """
    own = {"rdp-filter": "order", "pld-schedule": "jobs"}.get(str(stored.get("kind")))
    if own is None:
        raise InvalidInput(
            f"kind must be 'rdp-filter' or 'pld-schedule', got {stored.get('kind')!r}"
        )
    if set(stored) != {"kind", "epsilon", "delta", own}:
        raise InvalidInput(f"cap must hold kind, {own}, epsilon and delta, got {sorted(stored)}")
    epsilon, delta = _number(stored, "epsilon"), _number(stored, "delta")
    if own == "order":
        return RdpFilter(_number(stored, "order"), epsilon, delta)
    jobs = stored["jobs"]
    if not isinstance(jobs, list) or not all(isinstance(job, str) for job in jobs):
        raise InvalidInput(f"jobs must be a list of SHA-256, got {jobs!r}")
    return PldSchedule(tuple(jobs), epsilon, delta)


def _number(stored: Mapping[str, Any], key: str) -> float:
    value = stored[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{key} must be a number, got {value!r}")
    return float(value)
