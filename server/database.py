"""A database opened so that what was acknowledged stays, and what went wrong is one sentence.

SQLite by default, in rollback-journal mode with synchronous=EXTRA: an acknowledged commit survives
a power cut, and the WAL-reset bug of SQLite before 3.51.3 (https://sqlite.org/wal.html) cannot
happen. Any other database that SQLAlchemy knows is used as its URL says.

Not covered: network file systems whose locks or syncs lie.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from common.errors import InvalidInput, StorageFailed
from common.files import make_private

_BUSY_S = 30.0


class Database:
    """Transactions, one at a time, from any thread of this process."""

    def __init__(self, url: str) -> None:
        """Get ready to connect; the first transaction does.

        Raises:
            InvalidInput: the URL is none that SQLAlchemy can open here.
            StorageFailed: an SQLite file cannot be made.
        """
        parsed = _parse(url)
        self.place = _place(parsed)
        self._lock = threading.RLock()
        self._engine = _engine(parsed)
        self._reader = self._engine.execution_options(read_only=True)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that is durable when the block ends, and undone when it raises.

        Raises:
            StorageFailed: the write is in doubt.
        """
        with self._translated("written to"), self._lock, self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view; works on a full disk too.

        Raises:
            StorageFailed: the database cannot be read.
        """
        with self._translated("read from"), self._lock, self._reader.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # Of SQLAlchemy's text only the driver's own sentence: the rest shows values.
            cause = str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
            sentence = " ".join(cause.split())
            raise StorageFailed(
                f"checkpoint must be {doing} {self.place}, got: {sentence}"
            ) from error


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise InvalidInput(
            "database must be an SQLAlchemy URL such as sqlite:///state.db, got one that is none"
        ) from error


def _place(url: URL) -> str:
    """Where the database is, as an error may say it."""
    is_file = url.get_backend_name() == "sqlite" and url.database
    return str(url.database) if is_file else url.render_as_string(hide_password=True)


def _engine(url: URL) -> Engine:
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": _BUSY_S, "check_same_thread": False}
        if url.database in (None, "", ":memory:"):
            options["poolclass"] = StaticPool  # a second connection would be a second database
        else:
            make_private(Path(url.database))
    try:
        engine = sa.create_engine(url, **options)
    except (SQLAlchemyError, ImportError) as error:
        raise InvalidInput(
            f"database driver must be installed, got {url.drivername!r} ({error})"
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not guessed by the driver
    mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
    if mode not in ("delete", "memory"):
        raise sqlite3.OperationalError(f"journal mode {mode} instead of delete")
    extra = sqlite3.sqlite_version_info >= (3, 12, 0)
    connection.execute(f"PRAGMA synchronous={'EXTRA' if extra else 'FULL'}")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # IMMEDIATE: what is decided from a read below cannot change before its write.
    reading = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
