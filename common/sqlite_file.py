"""An SQLite file looked at from outside: the library's version, the journal it keeps.

Nothing is opened as a database, which could end what another process began. Not covered: what is
in it.
"""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from common.diagnosis import Finding, fault, ok

NAME = "database"
# STRICT tables, https://sqlite.org/stricttables.html
_OLDEST_SQLITE = (3, 37, 0)
_WAL_HEADER = 2  # https://sqlite.org/fileformat2.html, offsets 18 and 19
_ATTEMPTS, _PAUSE_S = 10, 0.1


def database(path: Path, *, if_wal: str) -> Iterator[Finding]:
    """SQLite's version and a file's journal mode, read without opening it as a database.

    Args:
        path: the file; it may be absent.
        if_wal: what to do where it keeps a write-ahead log.
    """
    version = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        least = ".".join(map(str, _OLDEST_SQLITE))
        yield fault(NAME, f"{version} is too old", f"use a Python with SQLite {least} or later")
    elif not path.exists():
        yield ok(NAME, f"{version}; {path.name} is not made yet")
    elif _WAL_HEADER in _header(path)[18:20]:
        yield fault(NAME, f"{path.name} is in journal mode wal, with {version}", if_wal)
    else:
        yield ok(NAME, f"{version}, {path.name} with a rollback journal")


def is_being_written(path: Path) -> bool:
    """Whether a journal lies beside a database: opening it would end what was interrupted."""
    journal = path.with_name(f"{path.name}-journal")
    for attempt in range(_ATTEMPTS):
        if not (journal.exists() and journal.stat().st_size):
            return False
        time.sleep(_PAUSE_S if attempt + 1 < _ATTEMPTS else 0)
    return True


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)
