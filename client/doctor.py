"""``fl-client doctor``: what is wrong with a site, and what to do about it.

Each line stands alone, so that a broken file hides nothing but itself. Nothing is written, no
record is read, and no key, password or record is shown. The server is asked for a job that nobody
has; that a person asked, and when, is all that leaves.

Not covered: what records hold (``data check``), what a job would cost (``preflight``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from client import devicecheck, identitycheck, ledgercheck, linkcheck, modelcheck
from client.config import SiteConfig, SiteHome
from client.identity import read_identity
from common import installation, permissions, sqlite_file, volume
from common.config import parse
from common.diagnosis import Check, Finding, Report, examine, fault, ok, unchecked, warning
from common.errors import InvalidInput, StorageFailed
from common.job import Job
from common.settings import Settings, read_settings

_CONFIG = "site.toml"


@dataclass(frozen=True)
class Patient:
    """A home as far as it can be read.

    Attributes:
        folder: the home.
        site: whose it should be.
        command: how a person calls ``fl-client`` for it.
        is_offline: whether to leave the network alone.
        job: one to measure, if any is.
    """

    folder: Path
    site: str
    command: str
    is_offline: bool = False
    job: Job | None = None

    @cached_property
    def settings(self) -> Settings:
        """``site.toml``, whatever is wrong with it."""
        return read_settings(self.folder / _CONFIG, SiteConfig)

    @cached_property
    def home(self) -> SiteHome:
        """The home by the part of ``site.toml`` that is right; by defaults where none is."""
        usable = {**self.settings.usable, "site": self.site}
        return SiteHome(self.folder, parse(SiteConfig, usable, _CONFIG))

    @cached_property
    def bases(self) -> tuple[list[modelcheck.Base], list[Finding]]:
        """Base models that are here, hashed once."""
        return modelcheck.present(self.home)

    @property
    def enrolment(self) -> str:
        """What to do for a new certificate."""
        return (
            f"ask the operator for a token (fl-server invite {self.site}), then: "
            f"{self.command} join -"
        )


def doctor(patient: Patient) -> Report:
    """Look at everything."""
    found = examine(checks(patient))
    return Report("fl-client", str(patient.folder), found)


def checks(patient: Patient) -> Iterator[Check]:
    """Every check, in the order of its lines."""
    if not patient.folder.is_dir():
        yield Check("home", lambda: [_no_home(patient)], f"make it: {patient.command} init")
        yield from installation.checks()
        return
    see = f"see that this user can read {patient.folder}"
    yield Check("home", lambda: permissions.folder(patient.folder), see)
    yield Check(_CONFIG, lambda: _settings(patient), see)
    yield Check("policy", lambda: _policy(patient), see)
    yield Check("data", lambda: _data(patient), see)
    anew = f"make another: {patient.command} init"
    enrol = patient.enrolment
    for name, look, advice in (
        (identitycheck.KEY, identitycheck.key, f"put it back from a backup, or {anew}"),
        (identitycheck.ROOT, identitycheck.root, f"put the root back: {enrol}"),
        (identitycheck.CERTIFICATE, identitycheck.certificate, enrol),
    ):
        yield Check(name, partial(look, patient.home, advice), advice)
    yield Check("permissions", lambda: permissions.others(patient.folder, _files(patient)), see)
    yield Check("file system", lambda: volume.findings(patient.folder), see)
    yield Check("clock and files", lambda: permissions.dates(patient.folder), see)
    mend = "mend the key, root and certificate first"
    yield Check(linkcheck.LINES[0], lambda: _link(patient), mend)
    yield Check(sqlite_file.NAME, lambda: _database(patient), see)
    yield Check(ledgercheck.LEDGER, lambda: ledgercheck.findings(patient.home), see)
    yield Check(modelcheck.NAME, lambda: _models(patient), see)
    yield Check(devicecheck.DEVICE, lambda: devicecheck.device(patient.home), see)
    yield Check(devicecheck.MEMORY, lambda: _memory(patient), see)
    yield from installation.checks()


def _no_home(patient: Patient) -> Finding:
    if patient.folder.exists():
        return fault("home", f"{patient.folder} is no folder", "name the folder with --home")
    advice = f"{patient.command} init"
    return fault("home", f"site {patient.site} is not set up: no {patient.folder}", advice)


def _settings(patient: Patient) -> Iterator[Finding]:
    path = patient.folder / _CONFIG
    if not path.exists():
        words = f"there is no {_CONFIG}, so the rest is looked for in its usual place"
        yield fault(_CONFIG, words, patient.enrolment)
        return
    named = patient.settings.usable.get("site", patient.site)
    if named != patient.site:
        advice = f"name the site as the file does, or correct {path}"
        yield fault(_CONFIG, f"it is for site {named!r}, not {patient.site}", advice)
        return
    yield from patient.settings.findings(path, "every key is known and within its range")


def _policy(patient: Patient) -> Iterator[Finding]:
    policy = patient.home.config.policy
    if "policy" not in patient.settings.usable and patient.settings.faults:
        yield unchecked(
            "policy", f"{_CONFIG} has none that can be used", f"correct {_CONFIG} first"
        )
    elif not policy.allowed_signers:
        advice = "write the operator's key, as install showed it, into policy.allowed_signers"
        yield warning("policy", "no operator's signature is allowed: every job is refused", advice)
    else:
        yield ok("policy", f"epsilon {policy.max_epsilon:g} at delta {policy.max_delta:g} for life")


def _data(patient: Patient) -> Iterator[Finding]:
    data, place = patient.home.config.data, patient.folder / _CONFIG
    if not data and patient.settings.faults:
        yield unchecked("data", f"{_CONFIG} maps none that can be used", f"correct {_CONFIG} first")
    elif not data:
        words = "no data set is mapped, so no job can be taken"
        yield warning("data", words, f"map one in {place}")
    for name, section in data.items():
        path = patient.home.path(section.path)
        try:
            with path.open("rb"):  # nothing is read from it
                yield ok("data", f"{name} is in {path}")
        except OSError as error:
            yield fault(
                "data",
                f"{name} cannot be opened in {path}: {error.strerror}",
                f"correct its path in {place}",
            )


def _files(patient: Patient) -> Sequence[Path]:
    home, paths = patient.home, patient.home.config.certificates
    names = (_CONFIG, "account.db", "account.anchor", "pki", paths.root, paths.certificate)
    return [home.path(name) for name in names]


def _link(patient: Patient) -> Iterator[Finding]:
    if patient.is_offline:
        yield from linkcheck.not_walked("left out by --offline", "leave --offline out")
        return
    if "server" not in patient.settings.usable:
        words = f"{_CONFIG} does not say where the server is"
        yield from linkcheck.not_walked(words, f"correct {_CONFIG} first")
        return
    try:
        identity = read_identity(patient.home)
    except (InvalidInput, StorageFailed) as error:
        yield from linkcheck.not_walked(str(error), "mend the key, root and certificate first")
        return
    yield from linkcheck.findings(patient.home, identity)


def _database(patient: Patient) -> Iterator[Finding]:
    mend = "put a copy back that was never in that mode: commits there may have been lost"
    yield from sqlite_file.database(patient.home.account_path, if_wal=mend)


def _models(patient: Patient) -> Iterator[Finding]:
    yield from modelcheck.findings(patient.home, *patient.bases)


def _memory(patient: Patient) -> Iterator[Finding]:
    needed_gb = None
    if patient.job is not None:
        from client.preflight import preflight

        load = preflight(patient.home, patient.job).load
        if load is None:
            yield devicecheck.unmeasured("the job's base is not here, or it is not for this site")
            return
        needed_gb = load.memory_gb
    yield from devicecheck.memory(patient.home, patient.bases[0], needed_gb)
