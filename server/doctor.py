"""``fl-server doctor``: what is wrong with a server, and what to do about it.

Each line stands alone, so that a broken file hides nothing but itself. Nothing is written, and no
key or password is shown.

Not covered: jobs and their bases (``jobs`` and ``show`` say why one failed); memory, which a job's
sites need and the server hardly does; clocks of other machines, which their own doctor compares.
"""

import datetime as dt
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from sqlalchemy.engine import make_url

from common import installation, permissions, sqlite_file, volume
from common.diagnosis import Check, Finding, Report, examine, fault, ok, unchecked, warning
from common.errors import InvalidInput
from common.settings import Settings, read_settings
from common.words import counted
from server import pkicheck, portcheck
from server.config import CONFIG_FILE, ServerConfig, load_server_config
from server.database import Database
from server.enrolment import ROSTER_FILE
from server.home import command_of
from server.roster import Roster

SITES = "sites"
SITE_SOON = dt.timedelta(days=7)
_NAMED = 5


@dataclass(frozen=True)
class Patient:
    """A server's home as far as it can be read, and whether to leave the network alone."""

    home: Path
    is_offline: bool = False

    @cached_property
    def settings(self) -> Settings:
        """``server.toml``, whatever is wrong with it."""
        return read_settings(self.home / CONFIG_FILE, ServerConfig)

    @cached_property
    def config(self) -> ServerConfig | None:
        """The settings, if they are right."""
        try:
            return load_server_config(self.home)
        except InvalidInput:
            return None


def doctor(patient: Patient) -> Report:
    """Look at everything."""
    return Report("fl-server", str(patient.home), examine(checks(patient)))


def checks(patient: Patient) -> Iterator[Check]:
    """Every check, in the order of its lines."""
    home = patient.home
    if not home.is_dir():
        yield Check("home", lambda: [_no_home(home)], f"{command_of(home)} init")
        yield from installation.checks()
        return
    see = f"see that this user can read {home}"
    restore = "put the files of pki/ back from a backup"
    mend = f"correct {CONFIG_FILE} first"
    yield Check("home", lambda: permissions.folder(home, is_private=True), see)
    yield Check(CONFIG_FILE, lambda: _settings(patient), see)
    yield Check(pkicheck.KEYS, lambda: pkicheck.keys(home), restore)
    yield Check(pkicheck.ROOT_KEY, lambda: pkicheck.root_key(home), see)
    yield Check(pkicheck.CERTIFICATES, lambda: pkicheck.certificates(home, patient.config), restore)
    yield Check(pkicheck.OPERATOR, lambda: pkicheck.operator(home), restore)
    yield Check(SITES, lambda: _sites(home), f"put {ROSTER_FILE} back: it admits nobody as it is")
    yield Check("permissions", lambda: permissions.others(home, _files(home)), see)
    yield Check("file system", lambda: volume.findings(home), see)
    yield Check("clock and files", lambda: permissions.dates(home), see)
    yield Check(sqlite_file.NAME, lambda: _database(patient), mend)
    yield Check(portcheck.PORT, lambda: _port(patient), mend)
    yield Check(portcheck.ADDRESS, lambda: _address(patient), mend)
    yield from installation.checks()


def _no_home(home: Path) -> Finding:
    if home.exists():
        return fault("home", f"{home} is no folder", "name the folder with --home")
    advice = f"{command_of(home)} init --host NAME"
    return fault("home", f"there is no server in {home}", advice)


def _settings(patient: Patient) -> Iterator[Finding]:
    path = patient.home / CONFIG_FILE
    if not path.exists():
        yield fault(CONFIG_FILE, "it is missing", f"put {path} back from a backup")
        return
    yield from patient.settings.findings(path, "every key is known and within its range")


def _sites(home: Path) -> Iterator[Finding]:
    now = dt.datetime.now(dt.UTC)
    sites = Roster(home / ROSTER_FILE).sites()
    standing = {
        name: max(entry.not_after for entry in entries if entry.stands(now))
        for name, entries in sites.items()
        if any(entry.stands(now) for entry in entries)
    }
    soon = [name for name, end in standing.items() if end < now + SITE_SOON]
    lapsed = [
        name
        for name, entries in sites.items()
        if name not in standing and any(e.revoked is None and e.retired is None for e in entries)
    ]
    behind = [
        name
        for name, entries in sites.items()
        if name not in standing and any(e.retired is not None for e in entries)
    ]
    anew = "a running site renews its own: see why it does not run, or invite it again"
    if lapsed:
        yield warning(SITES, f"certificate expired: {_named(lapsed)}", anew)
    if soon:
        yield warning(
            SITES, f"certificate expires within {SITE_SOON.days} days: {_named(soon)}", anew
        )
    if behind:
        words = f"cut off by the last change of roots: {_named(behind)}"
        yield warning(SITES, words, f"{command_of(home)} invite SITE")
    if not (lapsed or soon or behind):
        yield ok(SITES, f"{counted(len(standing), 'site')} admitted, of {len(sites)} ever enrolled")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _files(home: Path) -> list[Path]:
    names = (CONFIG_FILE, ROSTER_FILE, "state.db", "pki", "pki/root.pem", "pki/operator.pub")
    return [home / name for name in names]


def _database(patient: Patient) -> Iterator[Finding]:
    if patient.config is None:
        yield unchecked(sqlite_file.NAME, *_no_config())
        return
    url = make_url(patient.config.database)
    if url.get_backend_name() != "sqlite":
        yield _elsewhere(patient, patient.config.database)
        return
    path, advice = Path(str(url.database)), "start the server, which ends that mode"
    (line,) = sqlite_file.database(path, if_wal=advice)
    if line.mark != "ok" or not path.exists():
        yield line
    elif sqlite_file.is_being_written(path):
        words = "a write is under way or was cut off"
        yield unchecked(sqlite_file.NAME, words, "start the server, which completes it")
    else:
        yield _whole(path, line)


def _whole(path: Path, line: Finding) -> Finding:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found == "ok":
        return line
    words = f"{path.name} is damaged: {found}"
    return fault(sqlite_file.NAME, words, "stop the server and put a backup back")


def _elsewhere(patient: Patient, url: str) -> Finding:
    """A database that is not a file: whether it answers."""
    if patient.is_offline:
        return unchecked(sqlite_file.NAME, "left out by --offline", "leave --offline out")
    database = Database(url)
    with closing(database), database.reading() as connection:
        connection.exec_driver_sql("SELECT 1")
    return ok(sqlite_file.NAME, f"{database.place} answers")


def _port(patient: Patient) -> Iterator[Finding]:
    if patient.config is None:
        yield unchecked(portcheck.PORT, *_no_config())
    else:
        yield from portcheck.port(patient.home, patient.config)


def _address(patient: Patient) -> Iterator[Finding]:
    if patient.config is None:
        yield unchecked(portcheck.ADDRESS, *_no_config())
    elif patient.is_offline:
        yield unchecked(portcheck.ADDRESS, "left out by --offline", "leave --offline out")
    else:
        yield from portcheck.address(patient.home, patient.config)


def _no_config() -> tuple[str, str]:
    return f"{CONFIG_FILE} cannot be used", f"correct {CONFIG_FILE} first"
