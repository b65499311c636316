"""``fl-client preflight``: what a job would cost this site, and which rule would stop it.

Nothing is sent, nothing is charged, no record is read: the job's own file, ``site.toml``, what the
ledger has charged, and a measurement on public tokens.

Not covered: who will have signed a job's file (it is not signed yet), the site's records (``data
check``), and the self-checks before a first round.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from client import screen
from client.account import read_life
from client.approval import known_job
from client.config import SiteHome
from client.estimate import Load, measure
from client.estimate import rulings as load_rulings
from client.lifetime import Fit, Life, fitting, unit_rule
from client.policy import Ruling, rulings
from client.site import make_trainer
from client.traffic import Traffic, traffic
from common.adapter import load_adapter
from common.errors import InvalidInput, JobRefused
from common.job import Job, load_job, verify_job
from common.model import require_base
from common.privacy.accounting import GaussianSteps
from common.privacy.lifetime import LifetimeCap
from common.privacy.rdp_filter import RdpFilter
from common.statement import disjointness
from common.strict_json import without_infinity


@dataclass(frozen=True, slots=True)
class Spent:
    """Epsilon over the life of the data at the site's delta, by each accountant.

    Attributes:
        pld: as it is reported, where all jobs were fixed beforehand.
        rdp_filter: as the filter counts, which holds for jobs chosen along the way; ``None`` where
            no filter reaches the cap.
    """

    pld: float
    rdp_filter: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a private job would do to the life's cap.

    Attributes:
        unit: of the job, whose privacy every figure is about.
        lifetime: which of the two accountants enforces the cap.
        max_epsilon: the cap.
        delta: the life's.
        before: spent or promised to other jobs.
        after: with all of this job's steps.
        fit: what noise and epsilon would fit, where the job does not; ``None`` where nothing would.
    """

    unit: str
    lifetime: str
    max_epsilon: float
    delta: float
    before: Spent
    after: Spent
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class Preflight:
    """All of it. Traffic and load are ``None`` where the base is not on this machine."""

    job: Job
    site: str
    approval: str
    rulings: tuple[Ruling, ...]
    budget: Budget | None
    traffic: Traffic | None
    load: Load | None

    def require_admitted(self) -> None:
        """Raise on the first rule that the job breaks.

        Raises:
            JobRefused: names it.
        """
        for ruling in self.rulings:
            if not ruling.is_met:
                raise JobRefused(ruling.words)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        found = self.traffic
        sums = {"up": found.up, "down": found.down} if found else {}
        left = self.budget and _left(self.budget)
        told = {
            "site": self.site,
            "job": self.job.job.name,
            "sha256": self.job.sha256,
            "is_admitted": all(ruling.is_met for ruling in self.rulings),
            "approval": self.approval,
            "noise_multiplier": self.job.noise_multiplier if self.job.is_private else None,
            "rules": [asdict(ruling) for ruling in self.rulings],
            "epsilon": {**asdict(self.budget), "left": asdict(left)}
            if self.budget and left
            else None,
            "bytes": {**asdict(found), **sums} if found else None,
            "load": asdict(self.load) if self.load else None,
        }
        return dict(without_infinity(told))


def read_job(home: SiteHome, wanted: str) -> Job:
    """The job of a file, or the one of that name or id that waits here for a person.

    A file goes first; a name that looks like one (with a dot or a slash) is no other.

    Raises:
        InvalidInput: no such file or job, more than one job, or any fault of the file.
        JobRefused: a job that waits must be signed by an operator of this site, and is not.
    """
    path = Path(wanted)
    if path.exists() or {".", "/"} & set(wanted):
        return load_job(path)
    return verify_job(known_job(home, wanted), home.config.policy.allowed_signers)


def preflight(home: SiteHome, job: Job) -> Preflight:
    """Judge a job by every rule, and measure it if its base is here.

    Raises:
        InvalidInput: ``site.toml`` differs from the ledger, or the adapter does not fit the base.
        StorageFailed: the ledger cannot be read.
    """
    life = read_life(home)
    judged, budget = list(rulings(job, home)), None
    if job.is_private:
        budget = _budget(job, life)
        judged += _lifetime(job, life)
    base, found, load = _measured(job, home)
    judged.append(base)
    if load is not None:
        judged += load_rulings(load, home)
    approval = home.config.policy.approval
    return Preflight(job, home.site, approval, tuple(judged), budget, found, load)


def _budget(job: Job, life: Life) -> Budget:
    cap, before = life.cap, life.drawn(but=job.sha256)
    after = [*before, *job.events]
    fit = None if life.allows(after) else fitting(job, life)
    return Budget(
        unit=job.privacy.unit,
        lifetime=cap.name,
        max_epsilon=cap.max_epsilon,
        delta=cap.delta,
        before=_spent(before, life),
        after=_spent(after, life),
        fit=fit,
    )


def _spent(events: Sequence[GaussianSteps], life: Life) -> Spent:
    by_filter = _filter_of(life.cap)
    return Spent(
        pld=life.pld(events),
        rdp_filter=None if by_filter is None else Life(by_filter).cost(events),
    )


def _filter_of(cap: LifetimeCap) -> RdpFilter | None:
    """The filter that enforces the cap, or that would if the site had no schedule."""
    if isinstance(cap, RdpFilter):
        return cap
    try:
        return RdpFilter.for_cap(cap.max_epsilon, cap.delta)
    except InvalidInput:
        return None


def _left(budget: Budget) -> Spent:
    by_filter = budget.after.rdp_filter
    return Spent(
        max(0.0, budget.max_epsilon - budget.after.pld),
        None if by_filter is None else max(0.0, budget.max_epsilon - by_filter),
    )


def _lifetime(job: Job, life: Life) -> tuple[Ruling, ...]:
    cap, after = life.cap, [*life.drawn(but=job.sha256), *job.events]
    schedule = "any" if isinstance(cap, RdpFilter) else "one of this site's schedule"
    unit, is_unit = unit_rule(job, life)
    most = f"at most {cap.max_epsilon:g} by {cap.name}"
    found, is_within = f"{life.cost(after):.3f}", life.allows(after)
    return (
        Ruling("the ledger", "privacy.unit", unit, repr(job.privacy.unit), is_unit),
        Ruling("policy.schedule", "job", schedule, f"{job.sha256[:12]}...", cap.covers(job.sha256)),
        Ruling("policy.max_epsilon", "epsilon over the life", most, found, is_within),
    )


def _measured(job: Job, home: SiteHome) -> tuple[Ruling, Traffic | None, Load | None]:
    must = "the job's on this machine"
    try:
        folder = require_base(job, home.models, download=False)
    except (InvalidInput, JobRefused) as error:
        return Ruling("models", "model.base", must, f"({error})", is_met=False), None, None
    adapter = load_adapter(job, folder, home.config.runtime.device)
    base = Ruling("models", "model.base", must, f"{job.model.sha256[:12]}...", is_met=True)
    found = traffic(job, adapter.layout)
    if home.site not in job.sites:
        return base, found, None  # no population, so no expected batch
    return base, found, measure(make_trainer(job, adapter, home))


def show(found: Preflight) -> None:
    """Print it for a person."""
    rows = [
        (ruling.rule, ruling.name, ruling.condition, ruling.found, _verdict(ruling))
        for ruling in found.rulings
    ]
    screen.show(screen.table(["rule", "of", "must be", "this job", ""], rows))
    screen.show(Text(""))
    screen.show(screen.table(["", ""], _facts(found)))


def _verdict(ruling: Ruling) -> Text:
    return Text("ok", "green") if ruling.is_met else Text("refused", "red")


def _facts(found: Preflight) -> list[tuple[object, object]]:
    facts = [("job", f"{found.job.job.name}, sha256 {found.job.sha256}")]
    facts += _epsilons(found) + _loads(found)
    facts.append(("hold-out", disjointness(found.job)))
    if found.approval == "person":
        facts.append(("approval", "a person at this site has to approve it once it comes"))
    return [(Text(name, "dim"), fact) for name, fact in facts]


def _epsilons(found: Preflight) -> list[tuple[str, str]]:
    budget = found.budget
    if budget is None:
        return [("epsilon", "none: without privacy, no figure covers the job")]
    left = _left(budget)
    facts = [
        ("noise", f"multiplier {found.job.noise_multiplier:.3f}, {found.job.steps} steps"),
        *_counts(found.job),
        ("unit", f"{budget.unit}: every figure is about one such unit"),
        ("enforced by", f"{budget.lifetime}, epsilon {budget.max_epsilon:g} at {budget.delta:g}"),
        ("epsilon by PLD", _line(budget.before.pld, budget.after.pld, left.pld)),
    ]
    if budget.after.rdp_filter is not None and budget.before.rdp_filter is not None:
        line = _line(budget.before.rdp_filter, budget.after.rdp_filter, left.rdp_filter or 0.0)
        facts.append(("by the filter", line))
    if budget.fit is not None:
        noise = budget.fit.noise_multiplier
        facts.append(
            ("would fit", f"privacy.epsilon {budget.fit.epsilon:g} (noise multiplier {noise:.3f})")
        )
    return facts


def _counts(job: Job) -> list[tuple[str, str]]:
    """What leaves beside updates, where anything does."""
    if job.metrics is None:
        return []
    held, names = job.metrics.hold_out, ", ".join(job.metrics.release)
    return [
        ("counts", f"{names}, once, on {held:.0%} of the units, which train nothing"),
        ("their noise", f"standard deviation {job.metrics_deviation:.1f} on each count"),
    ]


def _line(before: float, after: float, left: float) -> str:
    return f"{before:.3f} before, {after:.3f} after the job, {left:.3f} left"


def _loads(found: Preflight) -> list[tuple[str, str]]:
    facts = []
    if (bytes_ := found.traffic) is not None:
        facts = [
            ("bytes up", f"{bytes_.up_round:,} a round, {bytes_.up:,} in all"),
            ("bytes down", f"{bytes_.down_round:,} a round, {bytes_.down:,} in all"),
        ]
    if found.load is not None:
        gpu_gb = found.load.gpu_memory_gb
        gpu = f", and {gpu_gb:.2f} GiB of the GPU's" if gpu_gb else ""
        facts += [
            ("memory", f"{found.load.memory_gb:.2f} GiB at the most{gpu}, measured"),
            ("time", f"about {found.load.minutes:.1f} minutes of computing, measured"),
        ]
    return facts
