"""A backup put back: checked whole beside the home, then given its name.

Nothing that is known since is forgotten without a word: over a home that holds a server, a backup
goes only if it knows all that the home does, every job, dispatch, receipt, ledger head,
certificate, revocation, signed roster and authority. The home before is kept beside the new one.

An older state is safe for the sites' privacy: an account is the site's own, its head wins over an
older one that the server remembers, and a round that is asked again is answered with the bytes of
the first time. Which rounds were asked since is not known any more, so a job that has not ended
counts all of its rounds as asked of all its sites, until their replies say otherwise. What else the
server alone knew since the backup is gone: jobs submitted, sites enrolled or revoked, which the
operator does again. A site that only renewed is admitted by its key (server/roster.py).

Not covered: a power cut between the two renames, after which the home has to be given its name by
hand; both are there.
"""

import contextlib
import datetime as dt
import itertools
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.certificates import fingerprint, read_certificate
from common.errors import InvalidInput, StorageFailed
from common.files import exists, make_folder, sync_folder
from common.keys import load_operator_key, read_key
from server import archive
from server.archive import Manifest
from server.authority import NEXT_INTERMEDIATE
from server.backup import database_of
from server.checkpoint import Checkpoints
from server.config import CONFIG_FILE, load_server_config
from server.counts import assume_asked
from server.enrolment import ROSTER_FILE
from server.home import LOCK_NAME, alone
from server.notices import read_documents
from server.publication import published
from server.roster import Roster

Rows = Callable[[str], set[tuple[Any, ...]]]

_ENDED = 2  # the last stage of a job
_RUNS = "home must have no running server to be restored, got one on"
_KEYS = ("server.key", "intermediate.key")
# What identifies a row that must not be lost; of a head, a longer one holds the shorter.
_ROWS = {
    "jobs": "SELECT sha256 FROM jobs",
    "dispatches": "SELECT job_sha256, round, site FROM dispatches",
    "rounds": "SELECT job_sha256, round, output_sha256 FROM rounds",
    "receipts": "SELECT job_sha256, round, site, payload_sha256 FROM receipts",
    "counts": "SELECT job_sha256, site, payload_sha256 FROM counts",
}


@dataclass(frozen=True, slots=True)
class Restored:
    """What ``restore`` put in place; ``before`` is where the former home lies now, if any."""

    home: Path
    manifest: Manifest
    jobs: int
    sites: int
    before: Path | None


def restore(home: Path, file: Path) -> Restored:
    """Make ``home`` what the backup in ``file`` says.

    Raises:
        InvalidInput: ``file`` is no whole backup; a server runs on ``home``, or what it holds is
            newer than the backup or of another federation. Nothing is changed.
        StorageFailed: the disk is full, or the like; nothing is changed.
    """
    home = home.resolve()
    make_folder(home.parent)
    aside = home.with_name(f".{home.name}.{secrets.token_hex(8)}.tmp")
    with contextlib.ExitStack() as held:
        if home.exists():
            held.enter_context(alone(home, _RUNS))
        try:
            with archive.opened(file) as (packed, manifest):
                make_folder(aside)
                archive.unpack(packed, manifest, aside)
            jobs, sites = _check(aside, manifest)
            if (home / CONFIG_FILE).exists() or (home / "pki").exists():
                _require_not_newer(home, aside)
            _assume_asked(aside)
            return Restored(home, manifest, jobs, sites, _swap(aside, home))
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _check(folder: Path, manifest: Manifest) -> tuple[int, int]:
    """A server could start on this; how many jobs and sites it knows."""
    found = fingerprint(read_certificate(folder / "pki" / "root.pem"))
    if found != manifest.root_sha256:
        raise InvalidInput(f"root must be {manifest.root_sha256[:12]}, got {found[:12]}")
    for name in _KEYS:
        read_key(folder / "pki" / name)
    load_operator_key(folder / "pki" / "operator.key")
    sites = len(Roster(folder / ROSTER_FILE).sites())
    database = database_of(folder)
    if not database.is_file():
        return 0, sites
    with _read(database) as rows:
        if rows("PRAGMA integrity_check(1)") != {("ok",)}:
            raise InvalidInput("database in the backup must be whole, got a damaged one")
        return len(rows(_ROWS["jobs"])), sites


def _assume_asked(folder: Path) -> None:
    """Charge sites for whatever the server may have asked since, never too little."""
    if not database_of(folder).is_file():
        return
    with closing(Checkpoints(load_server_config(folder).database)) as checkpoints:
        for row in checkpoints.jobs():
            if _stage(row.state) < _ENDED:
                job = row.signed.job
                checkpoints.assume_dispatched(job.sha256, job.training.rounds, job.sites)
                assume_asked(checkpoints, job)


def _require_not_newer(home: Path, restored: Path) -> None:
    """Check that nothing which the home knows would be forgotten."""
    try:
        newer = _news(home, restored)
    except (InvalidInput, StorageFailed) as error:
        raise InvalidInput(
            f"home must be readable to be compared with the backup, got: {error} "
            f"(move {home} away to restore all the same)"
        ) from error
    if newer:
        raise InvalidInput(
            f"home must know nothing that the backup does not, got {newer} "
            f"(move {home} away to restore all the same)"
        )


def _news(home: Path, restored: Path) -> str:
    if authority := _newer_authority(home, restored):
        return authority
    if roster := _newer_roster(home, restored):
        return roster
    if certificates := _certificates(home) - _certificates(restored):
        site, serial, is_revoked = min(certificates)
        return f"certificate {serial[:12]} of {site} {'revoked' if is_revoked else 'issued'} since"
    database, other = database_of(home), database_of(restored)
    if not database.is_file():
        return ""
    if not other.is_file():
        return "a database"
    with _read(database) as known, _read(other) as kept:
        for table, query in _ROWS.items():
            if not known(f"SELECT 1 FROM sqlite_master WHERE name = '{table}'"):
                continue  # a database of an earlier version
            if more := known(query) - kept(query):
                return f"{len(more)} more {table}"
        return _newer_head(known, kept) or _newer_state(known, kept)
    return ""


def _newer_authority(home: Path, restored: Path) -> str:
    mine, its = (fingerprint(read_certificate(f / "pki" / "root.pem")) for f in (home, restored))
    if mine != its:
        return f"another federation or another root of it, {mine[:12]}"
    signed, known = read_documents(home), read_documents(restored)
    if signed.handover not in (b"", known.handover):
        return "a change of roots that began since"
    if signed.retirement not in (b"", known.retirement):
        return "a change of roots that ended since"
    for name in ("intermediate.pem", NEXT_INTERMEDIATE):
        mine, its = (_fingerprint(folder / "pki" / name) for folder in (home, restored))
        if mine not in ("", its):
            return f"another intermediate, {mine[:12]}"
    return ""


def _fingerprint(path: Path) -> str:
    return fingerprint(read_certificate(path)) if exists(path) else ""


def _newer_roster(home: Path, restored: Path) -> str:
    """Sites that have seen the newer one would refuse this server."""
    mine, its = published(home), published(restored)
    if mine is None or mine == its or (its is not None and mine.sequence < its.sequence):
        return ""
    return f"a roster signed since, number {mine.sequence}"


def _newer_head(known: Rows, kept: Rows) -> str:
    query = "SELECT site, size, root FROM heads"
    heads = {site: (size, root) for site, size, root in kept(query)}
    for site, size, root in known(query):
        its_size, its_root = heads.get(site, (0, ""))
        if size > its_size or (size == its_size and root != its_root):
            return f"a later ledger head of site {site}"
    return ""


def _newer_state(known: Rows, kept: Rows) -> str:
    query = "SELECT sha256, name, state FROM jobs"
    states = {sha256: state for sha256, _, state in kept(query)}
    for sha256, name, state in known(query):
        its = states[sha256]  # every job is there: that was looked at first
        if state != its and _stage(state) >= _stage(its):
            return f"job {name} {state}, which is {its} in the backup"
    return ""


def _stage(state: str) -> int:
    """How far a job has come; every end is as far as any other."""
    return {"queued": 0, "running": 1}.get(state, _ENDED)


def _certificates(home: Path) -> set[tuple[str, str, bool]]:
    """Every certificate, and once more each that was revoked."""
    found = set()
    for site, entries in Roster(home / ROSTER_FILE).sites().items():
        for entry in entries:
            found.add((site, entry.serial, False))
            if entry.revoked is not None:
                found.add((site, entry.serial, True))
    return found


@contextlib.contextmanager
def _read(database: Path) -> Iterator[Rows]:
    try:
        uri = f"file:{quote(str(database))}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            yield lambda query: set(connection.execute(query))
    except sqlite3.Error as error:
        raise InvalidInput(f"{database.name} must be a server's database, got: {error}") from error


def _swap(aside: Path, home: Path) -> Path | None:
    """Give the folder its name; where the one before lies then."""
    before = None
    try:
        if home.exists() and {path.name for path in home.iterdir()} - {LOCK_NAME}:
            before = _free_name(home)
            home.rename(before)
        elif home.exists():
            shutil.rmtree(home)
        try:
            aside.rename(home)
        except OSError:
            if before is not None:
                before.rename(home)
            raise
    except OSError as error:
        raise StorageFailed(f"{home} must be replaced, but {error.strerror}") from error
    sync_folder(home.parent)
    return before


def _free_name(home: Path) -> Path:
    stem = f"{home.name}.before-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := home.with_name(name)).exists())
