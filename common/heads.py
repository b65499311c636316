"""The history of ledger heads that a site keeps in its account: its own and those of its peers.

Plain tables beside the ledger, in the same SQLite file: what others said, not what this site
charged. An account of before them gets them with the first head that is kept.

Not covered: how heads are judged (client/heads.py); who may write to a site's home.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

# first: none was known before; consistent: a proof showed that it goes on from the one before;
# unproven: none could be shown, as after rounds that this site took no part in; FORKED and SHRUNK:
# it does not go on.
State = Literal["first", "consistent", "unproven", "FORKED", "SHRUNK"]
STATES: tuple[State, ...] = get_args(State)
BAD: tuple[State, ...] = ("FORKED", "SHRUNK")
UNSIGNED = "nobody (no certificates)"

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS head (number INTEGER PRIMARY KEY, site TEXT NOT NULL, "
    "size INTEGER NOT NULL, root TEXT NOT NULL, at TEXT NOT NULL, job_sha256 TEXT NOT NULL, "
    "round INTEGER NOT NULL, confirmed_by TEXT NOT NULL, state TEXT NOT NULL, "
    "signature TEXT NOT NULL, public_key TEXT NOT NULL) STRICT",
    "CREATE INDEX IF NOT EXISTS head_of_site ON head (site, size)",
    "CREATE TABLE IF NOT EXISTS confirmation (job_sha256 TEXT NOT NULL, round INTEGER NOT NULL, "
    "content BLOB NOT NULL, PRIMARY KEY (job_sha256, round)) STRICT",
    "CREATE TABLE IF NOT EXISTS round_receipt (job_sha256 TEXT NOT NULL, round INTEGER NOT NULL, "
    "sha256 TEXT NOT NULL, PRIMARY KEY (job_sha256, round)) STRICT",
    "CREATE TABLE IF NOT EXISTS last_shown (job_sha256 TEXT NOT NULL, site TEXT NOT NULL, "
    "size INTEGER NOT NULL, PRIMARY KEY (job_sha256, site)) STRICT",
    "CREATE TABLE IF NOT EXISTS alarm (number INTEGER PRIMARY KEY, site TEXT NOT NULL, "
    "job_sha256 TEXT NOT NULL, at TEXT NOT NULL, words TEXT NOT NULL) STRICT",
)


@dataclass(frozen=True, slots=True)
class HeadRow:
    """A head as it was seen: whose, how far, when, in which round, by whose word, how it goes on.

    ``confirmed_by``: sha256 of the server's certificate.
    """

    site: str
    size: int
    root: str
    at: str
    job_sha256: str
    round: int
    confirmed_by: str
    state: State
    signature: str
    public_key: str

    @property
    def is_bad(self) -> bool:
        """Whether the ledger that it is of was forked or cut."""
        return self.state in BAD


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why this site trains no more: with ``site``, or in the job where that is itself."""

    site: str
    job_sha256: str
    at: str
    words: str


_COLUMNS = ", ".join(field.name for field in fields(HeadRow))
_PLACES = ", ".join("?" for _ in fields(HeadRow))


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables that are missing, within a transaction that is open."""
    for statement in SCHEMA:
        db.execute(statement)


def has_tables(db: sqlite3.Connection) -> bool:
    """Whether any head was ever kept."""
    found = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alarm'")
    return found.fetchone() is not None


def keep(db: sqlite3.Connection, row: HeadRow) -> None:
    """Add a head to the history."""
    db.execute(f"INSERT INTO head ({_COLUMNS}) VALUES ({_PLACES})", tuple(asdict(row).values()))


def history(db: sqlite3.Connection, site: str = "") -> Iterator[HeadRow]:
    """Every head that was kept, or those of a site, in the order in which they came."""
    if has_tables(db):
        where, given = ("WHERE site = ?", (site,)) if site else ("", ())
        found = db.execute(f"SELECT {_COLUMNS} FROM head {where} ORDER BY number", given)
        yield from (HeadRow(*row) for row in found)


def latest(db: sqlite3.Connection, site: str) -> HeadRow | None:
    """The longest head of a site that goes on from what was known, or may."""
    return next(iter(longest(db, site, 1)), None)


def longest(
    db: sqlite3.Connection, site: str, most: int, without: Sequence[State] = BAD
) -> list[HeadRow]:
    """The ``most`` longest heads of a site, longest first, but for those in some states."""
    query = (
        f"SELECT {_COLUMNS} FROM head WHERE site = ? "
        f"AND state NOT IN ({', '.join('?' for _ in without)}) "
        f"ORDER BY size DESC, number LIMIT ?"
    )
    return [HeadRow(*row) for row in db.execute(query, (site, *without, most))]


def roots_of(db: sqlite3.Connection, site: str, size: int) -> set[str]:
    """The roots over the first ``size`` entries that a site has shown."""
    query = "SELECT root FROM head WHERE site = ? AND size = ? AND state NOT IN (?, ?)"
    return {root for (root,) in db.execute(query, (site, size, *BAD))}


def last_shown(db: sqlite3.Connection, job_sha256: str, site: str) -> int | None:
    """How long the last receipt of a job that named a site's head said it is, in entries."""
    query = "SELECT size FROM last_shown WHERE job_sha256 = ? AND site = ?"
    row = db.execute(query, (job_sha256, site)).fetchone()
    return None if row is None else int(row[0])


def keep_shown(db: sqlite3.Connection, job_sha256: str, site: str, size: int) -> None:
    """Keep how long the latest receipt of a job says that a site's head is, in entries."""
    place = (job_sha256, site, size)
    db.execute("INSERT OR REPLACE INTO last_shown VALUES (?, ?, ?)", place)


def alarms(db: sqlite3.Connection) -> list[Alarm]:
    """Every reason not to train, oldest first."""
    if not has_tables(db):
        return []
    found = db.execute("SELECT site, job_sha256, at, words FROM alarm ORDER BY number")
    return [Alarm(*row) for row in found]


def raise_alarm(db: sqlite3.Connection, alarm: Alarm) -> None:
    """Keep an alarm, unless it was raised before."""
    said = db.execute(
        "SELECT 1 FROM alarm WHERE site = ? AND job_sha256 = ? AND words = ?",
        (alarm.site, alarm.job_sha256, alarm.words),
    )
    if said.fetchone() is None:
        db.execute(
            "INSERT INTO alarm (site, job_sha256, at, words) VALUES (?, ?, ?, ?)",
            tuple(asdict(alarm).values()),
        )
