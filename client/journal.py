"""One SQLite file with a site's ledger and the bytes beside it: opened, checked, appended to.

Every transaction first reads the entries that this process has not seen, checks them and replays
them, so a decision rests on what is durable and on nothing that was kept in memory through a failed
commit. One entry that is not as it must be ends this process' use of the account for good.

Not covered: what may be written when (client/outbox.py); network file systems whose locks lie.
"""

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from client.anchor import Anchor, require_anchored, require_nothing_lost
from client.signing import AccountKey
from common.errors import InvalidInput, LedgerBroken, StorageFailed
from common.failpoints import reach, register
from common.files import exists, make_private
from common.privacy.account import Account
from common.privacy.entries import Created, Entry, Rekeyed, write_entry
from common.privacy.ledger import Chain, Head, Row, Tail, public_hex

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
    "create", "open-job", "reserve", "store", "confirm", "acknowledge", "heads", "close-job",
    "decide", "rekey",
)  # fmt: skip
_POINTS = ("begin", "before-commit", "after-commit")
register(*(f"ledger.{operation}.{point}" for operation in OPERATIONS for point in _POINTS))

_BUSY_S = 30.0

log = structlog.get_logger(__name__)


@dataclass
class Writer:
    """A transaction under way: its connection, and where the next entry goes."""

    db: sqlite3.Connection
    _tail: Tail
    _key: AccountKey

    def append(self, model: type[Entry], **fields: object) -> None:
        """Write the next entry, signed by the key that signed the one before.

        Raises:
            InvalidInput: a field is not what the schema allows, or this site has another key.
        """
        if model not in (Created, Rekeyed):
            require_key(self._key, self._tail.public_key)
        key = self._key.make() if model is Created else self._key.key
        if model in (Created, Rekeyed):
            fields |= {"public_key": key.public, "is_ephemeral": key.is_ephemeral}
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
        self._anchor = Anchor(path)
        self._broken = ""
        self._lock = threading.Lock()

    def create(self, fill: Callable[[Writer, set[str]], None]) -> None:
        """Make tables and let ``fill`` write the first entries, unless that was done before.

        ``fill`` is told which tables the file has already, from a version before the ledger.

        Raises:
            LedgerBroken: a ledger was here, and is gone.
        """
        if self._has_ledger():
            with self.reading():
                return
        make_private(self._path)  # SQLite gives its journal the same mode
        with self.writing("create") as writer:
            before = _tables(writer.db)
            if "entry" in before:
                return  # another process was first
            if not before & TABLES:
                for statement in SCHEMA:
                    writer.db.execute(statement)
            fill(writer, before)
        # A site sees this once in its life. A simulated one is made by every run.
        say = log.info if self._key.key.is_ephemeral else log.warning
        say("ledger made anew", account=str(self._path), imported=bool(before))

    def require_made(self) -> None:
        """Check that there is a ledger, without making one.

        Raises:
            InvalidInput: there is none yet, or an account of the first version.
            LedgerBroken: a ledger was here, and is gone.
        """
        if self._has_ledger():
            with self.reading():
                return
        raise InvalidInput(
            f"account in {self._path} must be a ledger, got an older or empty one "
            f"(starting the site brings it up to date)"
        )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view, once all of its entries were checked."""
        with self._open() as db:
            anchored = self._anchored()
            db.execute("BEGIN")
            self._catch_up(db, anchored)
            yield db

    @contextmanager
    def writing(self, operation: str) -> Iterator[Writer]:
        """One transaction: durable when the block ends, undone when it raises."""
        with self._open() as db:
            anchored = self._anchored()
            reach(f"ledger.{operation}.begin")
            db.execute("BEGIN IMMEDIATE")
            try:
                if operation != "create" or "entry" in _tables(db):
                    self._catch_up(db, anchored)
                yield Writer(db, self._chain.tail, self._key)
                reach(f"ledger.{operation}.before-commit")
            except BaseException:
                db.rollback()
                raise
            db.commit()
            reach(f"ledger.{operation}.after-commit")
            size = self._chain.size
            self._catch_up(db)  # what was written is read back, and missed if it is gone later
            if self._chain.size > size:
                self._anchor.write(self._chain.head(self._key.key.private))

    def head(self) -> Head:
        """The signed head of now; nothing is written for it.

        Raises:
            InvalidInput: this site's key is not the one that signed last.
        """
        with self.reading():
            return self.signed_head()

    @property
    def chain(self) -> Chain:
        """The entries as of the latest transaction."""
        return self._chain

    def signed_head(self) -> Head:
        """The signed head as of the transaction under way.

        Raises:
            InvalidInput: as ``head``.
        """
        require_key(self._key, self._chain.tail.public_key)
        return self._chain.head(self._key.key.private)

    def require_key(self) -> None:
        """Check that the last entry's key is this site's.

        Raises:
            InvalidInput: it is not, or this site's is not at hand.
        """
        with self.reading():
            require_key(self._key, self._chain.tail.public_key)

    @property
    def own_key(self) -> str:
        """This site's public key, which signs or is yet to."""
        return self._key.key.public

    def rekey(self, accepted_by: str, old: ec.EllipticCurvePrivateKey | None = None) -> None:
        """Let this site's key sign from here on; again is no change.

        Args:
            accepted_by: the person who takes it on, and every entry before it.
            old: the key before, which hands over if it is at hand.

        Raises:
            InvalidInput: ``old`` is not the key before.
        """
        with self.writing("rekey") as writer:
            tail, new = self._chain.tail, self._key.key.public
            if tail.public_key == new:
                return
            if old is not None and public_hex(old) != tail.public_key:
                raise InvalidInput("old key must be the one that signed last, got another")
            endorsement = "" if old is None else tail.endorse(new, old)
            writer.append(Rekeyed, accepted_by=accepted_by, endorsement=endorsement)

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
        try:
            with fresh.reading():
                return
        finally:
            self._broken = self._broken or fresh._broken

    def _has_ledger(self) -> bool:
        anchored = self._anchor.read()  # before the file, which another process may make meanwhile
        is_there = exists(self._path)
        if is_there:
            with self._open() as db:
                is_there = "entry" in _tables(db)
        if not is_there:
            require_nothing_lost(anchored)
        return is_there

    def _anchored(self) -> Head | None:
        """The anchor, for this process' first look; to be read before any entry is."""
        return None if self._chain.size else self._anchor.read()

    def _catch_up(self, db: sqlite3.Connection, anchored: Head | None = None) -> None:
        """Check and replay the entries since the last time, after the last one seen then."""
        try:
            rows = _rows(db, self._chain.size - 1 if self._chain.size else None)
            if self._chain.size:
                self._chain.require_last(next(rows, None))
            for row in rows:
                entry = self._chain.check(row)
                self.account.apply(entry)
                self._chain.take(row, entry)
            require_anchored(anchored, self._chain)
        except LedgerBroken as error:
            self._broken = str(error)  # what is in memory may be a part only
            raise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: nothing is shared over fork, and a failed one is never reused.
        with self._lock:
            if self._broken:
                raise LedgerBroken(self._broken)
            try:
                db = sqlite3.connect(_uri(self._path), _BUSY_S, isolation_level=None, uri=True)
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


def require_key(own: AccountKey, last: str) -> None:
    """Check that the key which signed last is the site's own.

    Raises:
        InvalidInput: it is another: another's ledger, or a key that was changed.
    """
    if not own.signs(last):
        raise InvalidInput(
            f"ledger must be signed last by this site's key (sha256 "
            f"{key_words(own.key.public)[:16]}), got one by {key_words(last)[:16]} "
            f"('fl-client ledger rekey' says what it means to go on)"
        )


def key_words(public_key: str) -> str:
    """A key's sha256, as ``fl-client init`` and the operator see it."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()


def _uri(path: Path) -> str:
    """So that opening a file which is gone makes no new one."""
    return f"file:{quote(str(path.absolute()))}?mode=rw"


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
    found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {str(name) for (name,) in found}  # a damaged one may be of another type


def _rows(db: sqlite3.Connection, first: int | None) -> Iterator[Row]:
    where = "" if first is None else f"WHERE seq >= {first:d}"
    found = db.execute(f"SELECT seq, body, hash, signature FROM entry {where} ORDER BY seq")
    return (Row(*row) for row in found)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
