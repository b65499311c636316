"""One SQLite file with a site's ledger and the bytes beside it: opened, checked, appended to.

Every transaction first reads the entries that this process has not seen, checks them and replays
them, so a decision rests on what is durable and on nothing that was kept in memory through a failed
commit.

Not covered: what may be written when (client/outbox.py); network file systems whose locks lie.
"""

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.signing import AccountKey
from common.errors import LedgerBroken, StorageFailed
from common.failpoints import reach, register
from common.files import make_private
from common.privacy.account import Account
from common.privacy.entries import Created, Entry, Rekeyed, write_entry
from common.privacy.ledger import Chain, Head, Row, Tail

SCHEMA = (
    "CREATE TABLE entry (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL, "
    "signature BLOB NOT NULL) STRICT",
    "CREATE TRIGGER entry_stays BEFORE UPDATE ON entry "
    "BEGIN SELECT RAISE(ABORT, 'entries stay'); END",
    "CREATE TRIGGER entry_kept BEFORE DELETE ON entry "
    "BEGIN SELECT RAISE(ABORT, 'entries stay'); END",
    "CREATE TABLE manifest (job_sha256 TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT",
    "CREATE TABLE content (job_sha256 TEXT NOT NULL, round INTEGER NOT NULL, start BLOB, "
    "payload BLOB, PRIMARY KEY (job_sha256, round)) STRICT",
)
TABLES = {"entry", "manifest", "content"}
OPERATIONS = (
    "create", "open-job", "reserve", "store", "acknowledge", "close-job", "decide", "rekey",
)  # fmt: skip
_POINTS = ("begin", "before-commit", "after-commit")
register(*(f"ledger.{operation}.{point}" for operation in OPERATIONS for point in _POINTS))

_BUSY_S = 30.0


@dataclass
class Writer:
    """A transaction under way: its connection, and where the next entry goes."""

    db: sqlite3.Connection
    _tail: Tail
    _key: AccountKey

    def append(self, model: type[Entry], **fields: object) -> None:
        """Write the next entry; a key that is new to the ledger is named before it signs.

        Raises:
            InvalidInput: a field is not what the schema allows.
        """
        key = self._key.key
        if model in (Created, Rekeyed):
            fields |= {"public_key": key.public, "is_ephemeral": key.is_ephemeral}
        elif self._tail.public_key != key.public:
            self.append(Rekeyed)
        given = {"seq": self._tail.seq, "at": _now(), "salt": secrets.token_hex(16), **fields}
        row = self._tail.row(write_entry(model, **given), key.private)
        self.db.execute(
            "INSERT INTO entry (seq, body, hash, signature) VALUES (?, ?, ?, ?)",
            (row.seq, row.body, row.hash, row.signature),
        )
        self._tail = self._tail.after(row, key.public)


class Journal:
    """The file at ``path``; safe to share between threads and processes.

    Attributes:
        account: what the entries add up to, as of the latest transaction.

    Raises:
        StorageFailed: a write did not complete; it may or may not stand.
        LedgerBroken: an entry is not the one that this site wrote.
    """

    def __init__(self, path: Path, key: AccountKey) -> None:
        self.account = Account()
        self._path = path
        self._key = key
        self._chain = Chain()
        self._lock = threading.Lock()
        make_private(path)  # SQLite gives its journal the same mode

    def create(self, fill: Callable[[Writer, set[str]], None]) -> None:
        """Make tables and let ``fill`` write the first entries, unless that was done before.

        ``fill`` is told which tables the file has already, from a version before the ledger.
        """
        with self._open() as db:
            db.execute("BEGIN")
            if "entry" in _tables(db):
                self._catch_up(db)
                return
        with self.writing("create") as writer:
            before = _tables(writer.db)
            if "entry" in before:
                return  # another process was first
            if not before & TABLES:
                for statement in SCHEMA:
                    writer.db.execute(statement)
            fill(writer, before)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view, once all of its entries were checked."""
        with self._open() as db:
            db.execute("BEGIN")
            self._catch_up(db)
            yield db

    @contextmanager
    def writing(self, operation: str) -> Iterator[Writer]:
        """One transaction: durable when the block ends, undone when it raises."""
        with self._open() as db:
            reach(f"ledger.{operation}.begin")
            db.execute("BEGIN IMMEDIATE")
            try:
                if "entry" in _tables(db):
                    self._catch_up(db)
                yield Writer(db, self._chain.tail, self._key)
                reach(f"ledger.{operation}.before-commit")
            except BaseException:
                db.rollback()
                raise
            db.commit()
            reach(f"ledger.{operation}.after-commit")
            self._catch_up(db)  # what was written is read back, and missed if it is gone later

    def head(self) -> Head:
        """The signed head of now."""
        with self.reading():
            is_known = self._chain.tail.public_key == self._key.key.public
        if not is_known:
            with self.writing("rekey") as writer:
                writer.append(Rekeyed)
        with self.reading():
            return self._chain.head(self._key.key.private)

    def root(self, size: int) -> str | None:
        """The root (hex) over the first ``size`` entries; ``None`` when there are fewer."""
        with self.reading():
            return self._chain.root(size).hex() if size <= self._chain.size else None

    @property
    def keys(self) -> tuple[str, ...]:
        """The public keys that signed, as of the latest transaction."""
        return self._chain.keys

    def rows(self) -> list[Row]:
        """Every entry as it is stored."""
        with self.reading() as db:
            return list(_rows(db, None))

    def verify(self) -> None:
        """Check the whole file anew: SQLite's own structure, then every entry from the first."""
        with self._open() as db:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise LedgerBroken(f"account must be a whole database, got: {found}")
        fresh = Journal(self._path, self._key)
        with fresh.reading():
            return

    def _catch_up(self, db: sqlite3.Connection) -> None:
        """Check and replay the entries since the last time, after the last one seen then."""
        rows = _rows(db, self._chain.size - 1 if self._chain.size else None)
        if self._chain.size:
            self._chain.require_last(next(rows, None))
        for row in rows:
            self.account.apply(self._chain.extend(row))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: nothing is shared over fork, and a failed one is never reused.
        with self._lock:
            try:
                db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
                try:
                    _set_up(db, self._path)
                    yield db
                finally:
                    db.close()
            # The latter is how sqlite3 fails to tell of a damaged schema.
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise StorageFailed(
                    f"account must be written to {self._path}, got: {error}"
                ) from error


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        raise StorageFailed(
            f"account must be kept with a rollback journal (journal_mode=DELETE), got {mode} in "
            f"{path}, where acknowledged charges may have been lost"
        )
    # A text that was damaged is then another text, not an error of Python's own.
    db.text_factory = lambda text: text.decode(errors="replace")
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=EXTRA")


def _tables(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _rows(db: sqlite3.Connection, first: int | None) -> Iterator[Row]:
    where = "" if first is None else f"WHERE seq >= {first:d}"
    found = db.execute(f"SELECT seq, body, hash, signature FROM entry {where} ORDER BY seq")
    return (Row(*row) for row in found)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
