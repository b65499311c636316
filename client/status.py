"""How a site stands: its process, its link, its jobs, and what they have cost its records.

Every epsilon is computed from the steps in the durable account, never from a job's plan. Rounds
without noise have none: they are counted apart, and no figure here covers them.

Not covered: what a job that still runs will spend; what other sites know of the same people.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.text import Text

from client import approval, presence, screen
from client.account import has_run, read_life
from client.config import SiteHome
from client.identity import read_identity
from client.outbox import Charge, JobRow, Outbox, spent
from client.peers import Peers
from client.probe import diagnose
from client.spending import Spending, over_life
from common.errors import InvalidInput
from common.job import parse_signed_job
from common.strict_json import without_infinity
from common.words import escaped


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job of this site. Epsilon, delta and promise are ``None`` for a job without privacy."""

    name: str
    sha256: str
    state: str
    rounds: int
    planned_rounds: int
    epsilon: float | None
    promised_epsilon: float | None
    delta: float | None


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """Whether a process runs the site, whether it is connected, and why not."""

    server: str
    running: bool
    pid: int | None
    connected: bool
    since: str
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """All of ``fl-client status``."""

    site: str
    link: LinkStatus
    certificate_days: int | None
    certificate_fault: str
    spending: Spending
    jobs: tuple[JobStatus, ...]
    alarms: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; an epsilon without bound is null."""
        spending = {**as_json(self.spending), "left": self.spending.left}
        return {**asdict(self), "spending": spending, "jobs": [as_json(job) for job in self.jobs]}


def as_json(figures: JobStatus | Spending) -> dict[str, Any]:
    """As JSON has it: no infinity."""
    return dict(without_infinity(asdict(figures)))


def status(home: SiteHome) -> Status:
    """Gather it; asks the server's port for the reason when no process runs."""
    days, fault = _certificate(home)
    charges, rows = _account(home)
    spending = over_life(read_life(home))
    jobs = tuple(_job(row, charges) for row in rows) + _offered(home, rows)
    return Status(home.site, _link(home), days, fault, spending, jobs, _alarms(home))


def _alarms(home: SiteHome) -> tuple[str, ...]:
    """Why this site trains no more, with whom or in which job."""
    if not has_run(home):
        return ()
    found = Peers(Outbox.of(home, is_reader=True), home).alarms()
    return tuple(alarm.words for alarm in found)


def jobs(home: SiteHome) -> tuple[JobStatus, ...]:
    """The jobs that this site takes or took part in, oldest first, then those not yet begun."""
    charges, rows = _account(home)
    return tuple(_job(row, charges) for row in rows) + _offered(home, rows)


def show(status: Status) -> None:
    """Print it for a person."""
    screen.show(screen.table(["", ""], _facts(status)))
    if status.jobs:
        screen.show(Text(""))
        show_jobs(status.jobs)


def show_jobs(jobs: Sequence[JobStatus]) -> None:
    """Print one line a job."""
    rows = [
        (
            job.name,
            job.sha256[:12],
            job.state,
            f"{job.rounds}/{job.planned_rounds}",
            "no privacy" if job.epsilon is None else f"{job.epsilon:.3f}",
            "" if job.promised_epsilon is None else f"{job.promised_epsilon:g}",
            "" if job.delta is None else f"{job.delta:g}",
        )
        for job in jobs
    ]
    names = ["job", "id", "state", "rounds", "epsilon", "at most", "delta"]
    screen.show(screen.table(names, rows, numbers="rounds epsilon"))


def _facts(status: Status) -> list[tuple[object, object]]:
    link, spending = status.link, status.spending
    facts: list[tuple[object, object]] = [
        ("site", status.site),
        ("process", _process(link)),
        ("link", _words(link)),
        ("certificate", _days(status)),
        ("unit", spending.whose),
        ("epsilon", f"{spending.epsilon:.3f} spent over all jobs, at delta {spending.delta:g}"),
        ("budget", _budget(spending)),
    ]
    if spending.uncovered_rounds:
        count = spending.uncovered_rounds
        rounds = f"{count} round{'' if count == 1 else 's'}"
        facts.append(("no privacy", Text(f"{rounds} without noise: no epsilon covers them", _WARN)))
    facts += [("ALARM", Text(escaped(words), _BAD)) for words in status.alarms]
    return [(Text(str(name), "dim"), fact) for name, fact in facts]


def _budget(spending: Spending) -> str:
    return (
        f"{spending.left:.3f} left of {spending.max_epsilon:g} by {spending.lifetime}, "
        f"{spending.drawn:.3f} drawn with what open jobs may still spend"
    )


_GOOD, _WARN, _BAD = "green", "yellow", "red"


def _process(link: LinkStatus) -> Text:
    if not link.running:
        return Text("not running", _WARN)
    return Text("running" if link.pid is None else f"running, pid {link.pid}", _GOOD)


def _words(link: LinkStatus) -> Text:
    since = f" since {link.since.replace('T', ' ').removesuffix('Z')} UTC" if link.since else ""
    if link.connected:
        return Text(f"connected to {link.server}{since}", _GOOD)
    return Text(f"not connected{since}: {link.reason}", _WARN)


def _days(status: Status) -> Text:
    days = status.certificate_days
    if days is None or status.certificate_fault:
        return Text(status.certificate_fault, _BAD)
    return Text(f"{days} day{'' if days == 1 else 's'} left", _WARN if days < 7 else "")


def _certificate(home: SiteHome) -> tuple[int | None, str]:
    """Days left, and what is wrong with the certificate or its files."""
    try:
        identity = read_identity(home)
    except InvalidInput as error:
        return None, str(error)
    try:
        identity.check()
    except InvalidInput as error:
        return identity.days_left, str(error)
    return identity.days_left, ""


def _link(home: SiteHome) -> LinkStatus:
    server = home.config.server
    if not presence.is_running(home.folder):
        return LinkStatus(server, False, None, False, "", _why_not(home))
    said = presence.read(home.folder)
    if said is None:
        return LinkStatus(server, True, None, False, "", "the site has not said how it stands")
    return LinkStatus(server, True, said.pid, said.connected, said.since, said.reason)


def _why_not(home: SiteHome) -> str:
    """What a site that is not running would find, were it started now."""
    try:
        identity = read_identity(home)
    except InvalidInput as error:
        return str(error)
    found = diagnose(
        home.config.server, identity.root, identity.certificate, identity.key, home.site
    )
    return found.removesuffix(", but the session ended")


def _account(home: SiteHome) -> tuple[list[Charge], list[JobRow]]:
    """Charges and jobs; a site that has not run yet has no account, and gets none by being asked.

    Raises:
        StorageFailed: the account cannot be read.
    """
    if not has_run(home):
        return [], []
    outbox = Outbox.of(home, is_reader=True)
    return outbox.charges(), outbox.jobs()


def _offered(home: SiteHome, rows: Sequence[JobRow]) -> tuple[JobStatus, ...]:
    """Jobs that wait for a person's word, or have it and have not begun."""
    if not has_run(home):
        return ()
    begun = {row.sha256 for row in rows}
    found = approval.offers(home, Outbox.of(home, is_reader=True).decisions())
    return tuple(
        _job(JobRow(one.sha256, one.name, one.manifest, one.state, ""), ())
        for one in found
        if one.sha256 not in begun
    )


def _job(row: JobRow, charges: Sequence[Charge]) -> JobStatus:
    job = parse_signed_job(row.manifest).job
    own = [charge for charge in charges if charge.job_sha256 == row.sha256]
    delta = job.privacy.delta
    return JobStatus(
        name=row.name,
        sha256=row.sha256,
        state=row.state,
        rounds=len(own),
        planned_rounds=job.training.rounds,
        epsilon=None if delta is None else spent(own, delta),
        promised_epsilon=job.privacy.epsilon,
        delta=delta,
    )
