"""What a site refuses, before it opens any data.

Reasons here follow from the job and the site's own file, so the operator may read them. One alone
follows from what was spent before: whether the limit over the life of the data is passed, not by
how much.

Not covered: limits that can be measured only with the model at hand (client/estimate.py), a
person's word (client/approval.py), what a step does to a record (common/privacy/).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from client import trust
from client.config import SiteHome
from client.lifetime import Life, require_lifetime
from common.config import RECORD
from common.errors import InvalidInput, JobRefused, Refusal
from common.job import Job, SignedJob, require_countable, verify_job


@dataclass(frozen=True, slots=True)
class Ruling:
    """A rule of ``site.toml`` and what it makes of a job.

    Attributes:
        rule: the key in ``site.toml``, or what else it follows from.
        name: what is judged.
        condition: what it must be.
        found: what it is.
        is_met: whether that is so.
    """

    rule: str
    name: str
    condition: str
    found: str
    is_met: bool

    @property
    def words(self) -> str:
        """As a refusal says it."""
        return f"{self.name} must be {self.condition}, got {self.found}"


def admit(signed: SignedJob, home: SiteHome, life: Life) -> Job:
    """The verified job, if this site's owner allows it.

    Args:
        signed: as it came from the server.
        home: the site's own file.
        life: the cap over the life of the site's data, and what other jobs drew on it.

    Raises:
        JobRefused: the first rule that it breaks, in words.
    """
    job = verify_job(signed, home.config.policy.allowed_signers)
    _require_accountable(job)
    for ruling in rulings(job, home):
        if not ruling.is_met:
            raise JobRefused(ruling.words)
    if job.is_private:
        require_lifetime(job, life)
    return job


def _require_accountable(job: Job) -> None:
    """A job whose noise cannot be computed is at fault itself; asked again it stays so."""
    try:
        require_countable(job)
        _ = job.noise_multiplier
    except InvalidInput as error:
        raise JobRefused(str(error)) from error


def rulings(job: Job, home: SiteHome) -> Iterator[Ruling]:
    """Every rule that follows from the job and ``site.toml`` alone; cheap ones first."""
    rules: list[Callable[[Job, SiteHome], Ruling]] = [
        _site, _data, _task, _columns, _base, _releases, _privacy, _required_unit, _unit,
        _population,
    ]  # fmt: skip
    if job.metrics is not None and "groups" in job.metrics.release:
        rules.append(_group)
    if trust.has_roster(home):
        rules.insert(1, _roster)
    if job.is_private:
        rules += [_epsilon, _delta, _noise]
    for rule in rules:
        yield rule(job, home)


def _site(job: Job, home: SiteHome) -> Ruling:
    sites = ", ".join(job.sites)
    return Ruling("site", "site", f"one of {sites}", repr(home.site), home.site in job.sites)


def _roster(job: Job, home: SiteHome) -> Ruling:
    """Once the root has said who takes part, a job brings in nobody else."""
    try:
        roster = trust.read_roster(home)
    except (InvalidInput, Refusal):
        roster = None
    known = roster.sites if roster else {}
    strangers = [site for site in job.sites if site not in known]
    condition = (
        f"on the roster that the root signed ({roster.sequence if roster else 'unreadable'})"
    )
    found = ", ".join(strangers) or "all of them"
    return Ruling("roster.signed", "job's sites", condition, found, not strangers)


def _data(job: Job, home: SiteHome) -> Ruling:
    # What else this site holds is not the operator's to know.
    name = job.data.name
    is_met = name in home.config.data
    return Ruling("data", "data.name", "a data set of this site", repr(name), is_met)


def _task(job: Job, home: SiteHome) -> Ruling:
    allowed, task = home.config.policy.allowed_tasks, job.job.task
    condition = f"one of {', '.join(allowed)} at this site" if allowed else "any task"
    is_met = not allowed or task in allowed
    return Ruling("policy.allowed_tasks", "job.task", condition, repr(task), is_met)


def _columns(job: Job, home: SiteHome) -> Ruling:
    data_set, task = home.config.data.get(job.data.name), job.job.task
    condition = "a task that this site's columns of the data set are mapped for"
    is_met = data_set is None or task in data_set.tasks
    return Ruling("data.words", "job.task", condition, repr(task), is_met)


def _base(job: Job, home: SiteHome) -> Ruling:
    allowed, base = home.config.policy.allowed_bases, job.model.sha256
    condition = f"one of the {len(allowed)} that this site allows" if allowed else "any base"
    is_met = not allowed or base in allowed
    return Ruling("policy.allowed_bases", "model.sha256", condition, f"{base[:16]}...", is_met)


def releases_of(job: Job) -> tuple[str, ...]:
    """What a job takes from a site: each round's noised update, and counts where it says so."""
    return ("update",) if job.metrics is None else ("update", "metrics")


def _releases(job: Job, home: SiteHome) -> Ruling:
    allowed = home.config.policy.allowed_releases
    condition = f"one of {', '.join(allowed) or 'none'} at this site"
    found, is_met = ", ".join(releases_of(job)), set(releases_of(job)) <= set(allowed)
    return Ruling("policy.allowed_releases", "release", condition, repr(found), is_met)


def _privacy(job: Job, home: SiteHome) -> Ruling:
    allowed = home.config.policy.allow_no_privacy
    condition = "any mode" if allowed else "'site' here (allow_no_privacy = false)"
    is_met = allowed or job.is_private
    rule = "policy.allow_no_privacy"
    return Ruling(rule, "privacy.mode", condition, repr(job.privacy.mode), is_met)


def _group(job: Job, home: SiteHome) -> Ruling:
    data_set = home.config.data.get(job.data.name)
    is_met = data_set is not None and bool(data_set.group)
    condition = "without 'groups', or this site's data set has a group column mapped"
    return Ruling("data.group", "metrics.release", condition, "'groups'", is_met)


def _required_unit(job: Job, home: SiteHome) -> Ruling:
    required, unit = home.config.policy.required_unit, job.privacy.unit
    condition = "any unit" if required is None else f"{required!r} at this site"
    is_met = required in (None, unit)
    return Ruling("policy.required_unit", "privacy.unit", condition, repr(unit), is_met)


def _unit(job: Job, home: SiteHome) -> Ruling:
    unit, data_set = job.privacy.unit, home.config.data.get(job.data.name)
    is_met = unit == RECORD or (data_set is not None and data_set.unit_called == unit)
    condition = "'record' or the unit that this site maps for the data set"
    return Ruling("data.unit", "privacy.unit", condition, repr(unit), is_met)


def _population(job: Job, home: SiteHome) -> Ruling:
    least, found = home.config.policy.min_population, job.data.population.get(home.site, 0)
    return _at_least("min_population", f"data.population.{home.site}", least, found)


def _epsilon(job: Job, home: SiteHome) -> Ruling:
    limit, found = home.config.policy.job_epsilon, job.privacy.epsilon
    return _at_most("max_job_epsilon", "privacy.epsilon", limit, found)


def _delta(job: Job, home: SiteHome) -> Ruling:
    limit, found = home.config.policy.job_delta, job.privacy.delta
    return _at_most("max_job_delta", "privacy.delta", limit, found)


def _noise(job: Job, home: SiteHome) -> Ruling:
    least, found = home.config.policy.min_noise_multiplier, job.noise_multiplier
    return _at_least("min_noise_multiplier", "noise multiplier", least, found)


def _at_most(rule: str, name: str, limit: float, found: float | None) -> Ruling:
    """A job without privacy has no figure, and is judged by its mode."""
    got = 0.0 if found is None else found
    condition = f"at most this site's {limit:g}"
    return Ruling(f"policy.{rule}", name, condition, f"{got:g}", got <= limit)


def _at_least(rule: str, name: str, least: float, found: float) -> Ruling:
    condition = f"at least this site's {least:g}"
    return Ruling(f"policy.{rule}", name, condition, f"{found:g}", found >= least)
