"""What a site refuses, before it opens any data.

Reasons here follow from the job and the site's own file, so the operator may read them. One alone
follows from what was spent before: whether the limit over the life of the data is passed, not by
how much.
"""

from collections.abc import Iterable

import structlog

from client.config import SiteHome
from client.outbox import Charge
from common.errors import InvalidInput, JobRefused
from common.job import Job, SignedJob, require_site, verify_job
from common.privacy.accounting import GaussianSteps, epsilon

log = structlog.get_logger(__name__)


def admit(signed: SignedJob, home: SiteHome, charges: Iterable[Charge]) -> Job:
    """The verified job, if this site's owner allows it.

    Args:
        signed: as it came from the server.
        home: the site's own file.
        charges: what the site has released already, over all jobs.

    Raises:
        JobRefused: the first rule that it breaks, in words.
    """
    policy = home.config.policy
    job = verify_job(signed, policy.allowed_signers)
    try:
        require_site(job, home.site)
    except InvalidInput as error:
        raise JobRefused(str(error)) from error
    if job.data.name not in home.config.data:
        # What else this site holds is not the operator's to know.
        raise JobRefused(f"data.name must be a data set of this site, got {job.data.name!r}")
    if not job.is_private:
        if not policy.allow_no_privacy:
            raise JobRefused(
                "privacy.mode must be 'site' here (allow_no_privacy = false), got 'none'"
            )
        return job
    _require_budget(job, home, charges)
    return job


def _require_budget(job: Job, home: SiteHome, charges: Iterable[Charge]) -> None:
    """The job's own promise, and all jobs of this site together, stay within the caps."""
    policy, privacy = home.config.policy, job.privacy
    if privacy.epsilon is not None and privacy.epsilon > policy.max_epsilon:
        raise JobRefused(
            f"privacy.epsilon must be at most this site's {policy.max_epsilon:g}, "
            f"got {privacy.epsilon:g}"
        )
    if privacy.delta is not None and privacy.delta > policy.max_delta:
        raise JobRefused(
            f"privacy.delta must be at most this site's {policy.max_delta:g}, got {privacy.delta:g}"
        )
    earlier = [c.event for c in charges if c.job_sha256 != job.sha256 and c.is_private]
    total = epsilon([*earlier, plan(job)], policy.max_delta)
    if total > policy.max_epsilon:
        # The total tells of other operators' jobs, so it stays in this site's own log.
        log.warning(
            "job over the life's limit",
            job=job.job.name,
            epsilon=total,
            max_epsilon=policy.max_epsilon,
        )
        raise JobRefused(
            f"epsilon over the life of this site's data must stay within its limit of "
            f"{policy.max_epsilon:g}, got more with this job"
        )


def plan(job: Job) -> GaussianSteps:
    """The whole of a job's steps at a site."""
    return GaussianSteps(job.privacy.sampling_rate, job.noise_multiplier, job.steps)
