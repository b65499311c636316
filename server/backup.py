"""A running server's state in one file: whole or absent, for its owner alone, with hashes.

The database is copied by SQLite's own backup, under which it is one moment's state however much is
written meanwhile; outcomes are those of the jobs that are finished in that copy, which nothing
changes any more. The roster and everything else in the home come after it, so they are never older.

Left out on purpose: the root's key, wherever in the home it lies and whatever it is called, since
nothing here needs it; outcomes of jobs under way, which resuming writes anew; logs, caches, locks.

Not covered: a database that is no SQLite file in the home, which has a backup of its own.
"""

import datetime as dt
import hashlib
import os
import secrets
import sqlite3
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sqlalchemy.engine import make_url

from common.certificates import fingerprint, load_certificates, read_certificate
from common.cli import installed_version
from common.errors import InvalidInput, StorageFailed
from common.files import make_private, new_file
from common.keys import MAX_PEM_BYTES
from server import archive
from server.archive import Kept, Manifest
from server.config import load_server_config
from server.invitations import INVITATIONS_FILE

_ROOT_KEYS = ("root.key", "root.retired.key")
# Invitations end with the state that they were made in: put back, a used token would be good again.
_TRANSIENT = {
    "daemon.lock", "roster.lock", "control.sock", INVITATIONS_FILE, "invitations.lock",
}  # fmt: skip
_ASIDE = {"logs", "cache"}
_JOBS = "jobs"
_BUSY_S = 30.0


@dataclass(frozen=True, slots=True)
class Backup:
    """What ``backup`` wrote; ``left_out`` names files that were expected to be kept and are not."""

    file: Path
    sha256: str
    manifest: Manifest
    left_out: tuple[str, ...]


def backup(home: Path, file: Path) -> Backup:
    """Write the state of the server in ``home`` to ``file``, whether it runs or not.

    Raises:
        InvalidInput: no server in ``home``, a database that is not in it, or ``file`` exists or
            lies in ``home``.
        StorageFailed: the disk is full, or the like; ``file`` is absent then.
    """
    home, file = home.resolve(), file.absolute()
    database = database_of(home)
    if file.resolve().is_relative_to(home):
        raise InvalidInput(f"backup must lie outside of the home that it is of, got {file}")
    root = read_certificate(home / "pki" / "root.pem")
    roots = _roots(home)
    left_out: list[str] = []
    # The database's copy first: what is collected after it is no older.
    copy = file.with_name(f".{file.name[:100]}.{secrets.token_hex(8)}.db.tmp")
    try:
        with new_file(file) as target, zipfile.ZipFile(target, "w") as made:
            kept: dict[str, Kept] = {}
            finished: set[str] = set()
            if database.is_file():
                finished = _snapshot(database, copy)
                name = str(database.relative_to(home))
                kept[name] = archive.add(made, name, copy)
            for name in _files(home, database, finished, left_out):
                if not _is_root_key(home / name, roots):
                    kept[name] = archive.add(made, name, home / name)
            manifest = Manifest(
                software=f"veiltune {installed_version()}",
                made_at=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
                root_sha256=fingerprint(root),
                files=kept,
            )
            archive.finish(made, manifest)
    finally:
        copy.unlink(missing_ok=True)
    with file.open("rb") as whole:
        sha256 = hashlib.file_digest(whole, "sha256").hexdigest()
    return Backup(file, sha256, manifest, tuple(left_out))


def database_of(home: Path) -> Path:
    """The SQLite file of the server in ``home``.

    Raises:
        InvalidInput: no server, or a database that is no file in its home.
    """
    url = make_url(load_server_config(home).database)
    path = Path(str(url.database)) if url.database else None
    is_here = path is not None and path.is_relative_to(home.resolve())
    if url.get_backend_name() != "sqlite" or path is None or not is_here:
        raise InvalidInput(
            "database must be an SQLite file in the home to be in its backup, got another "
            f"({url.get_backend_name()}; back it up by its own means, with the home's files)"
        )
    name = str(path.relative_to(home.resolve()))
    if not archive.may_be_kept(name):
        raise InvalidInput(f"database must have a plain name to be in a backup, got {name[:80]!r}")
    return path


def _snapshot(database: Path, copy: Path) -> set[str]:
    """One moment's state as a file of its own; the jobs that are finished in it."""
    make_private(copy)
    try:
        # Writable, since the rest of a killed server's transaction has to be undone first.
        uri = f"file:{quote(str(database))}?mode=rw"
        with (
            closing(sqlite3.connect(uri, _BUSY_S, uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            (found,) = target.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise StorageFailed(f"database must be whole to be backed up, got: {found}")
            rows = target.execute("SELECT sha256 FROM jobs WHERE state = 'finished'")
            return {str(sha256) for (sha256,) in rows}
    except sqlite3.Error as error:
        raise StorageFailed(f"database must be copied from {database}, got: {error}") from error


def _files(home: Path, database: Path, finished: set[str], left_out: list[str]) -> Iterator[str]:
    """Names of all files to keep but the database, relative to the home."""
    for folder, below, files in os.walk(home):
        place = Path(folder).relative_to(home)
        if place == Path():
            below[:] = [name for name in below if name not in _ASIDE]
        elif place == Path(_JOBS):
            below[:] = [name for name in below if name in finished]
        below[:] = sorted(name for name in below if not name.startswith("."))
        for file in sorted(files):
            name = (place / file).as_posix()
            if name in _TRANSIENT or file.startswith(".") or _is_of(home / name, database):
                continue
            if stat.S_ISREG((home / name).lstat().st_mode) and archive.may_be_kept(name):
                yield name
            else:
                left_out.append(name)


def _is_of(path: Path, database: Path) -> bool:
    """The database, or the journal of a transaction under way."""
    return path.parent == database.parent and path.name in (
        database.name,
        f"{database.name}-journal",
    )


def _roots(home: Path) -> list[x509.Certificate]:
    """The root, and the one that a change under way leads to."""
    files = (home / "pki" / name for name in ("root.pem", "next/root.pem"))
    found = [load_certificates(read_certificate(file)) for file in files if file.exists()]
    return [one for several in found for one in several]


def _is_root_key(path: Path, roots: Sequence[x509.Certificate]) -> bool:
    if path.name in _ROOT_KEYS:
        return True
    if path.stat().st_size > MAX_PEM_BYTES or b"PRIVATE KEY" not in (data := path.read_bytes()):
        return False
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):  # under a passphrase, or not a key after all
        return False
    return isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() in [
        root.public_key() for root in roots
    ]
