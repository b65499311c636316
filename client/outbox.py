"""The durable account of a site's releases, and the bytes that wait to be sent.

One SQLite file holds both, so that a charge and its bytes can never disagree. For each round of a
job: reserve all of its steps -> train -> store the finished bytes -> send -> acknowledge. A
reservation without bytes is reused with fresh randomness, since nothing left; with bytes, the same
bytes are sent again: one charge and one release a round. A crash can only leave a charge without
a release.

``journal_mode=DELETE`` with ``synchronous=EXTRA`` loses no acknowledged commit; SQLite before
3.51.3 may in WAL mode.

Not covered: a home that is copied back from a backup, or edited by its owner.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import RoundRefused, StorageFailed
from common.files import make_private
from common.job import find_job
from common.privacy.accounting import GaussianSteps, epsilon

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, manifest BLOB NOT NULL,
    state TEXT NOT NULL, final_sha256 TEXT NOT NULL DEFAULT '',
    cap_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS release (
    job_sha256 TEXT NOT NULL REFERENCES job (sha256), round INTEGER NOT NULL,
    input_sha256 TEXT NOT NULL, input BLOB,
    steps INTEGER NOT NULL, sampling_rate REAL NOT NULL, noise_multiplier REAL NOT NULL,
    payload BLOB, payload_sha256 TEXT NOT NULL DEFAULT '',
    acknowledged INTEGER NOT NULL DEFAULT 0, accepted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job_sha256, round)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class RoundKey:
    """What a release answers: one round of one job from one input adapter."""

    job_sha256: str
    round: int
    input_sha256: str


@dataclass(frozen=True, slots=True)
class Charge:
    """A durable charge: a round's steps, released or not."""

    job_sha256: str
    round: int
    event: GaussianSteps
    payload_sha256: str
    is_acknowledged: bool

    @property
    def is_private(self) -> bool:
        """Whether the steps had noise; without, no epsilon bounds them."""
        return self.event.noise_multiplier > 0

    @property
    def is_released(self) -> bool:
        """Whether finished bytes exist, which may have left."""
        return bool(self.payload_sha256)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job that this site takes or took part in."""

    sha256: str
    name: str
    manifest: bytes
    state: str
    final_sha256: str


class Outbox:
    """The account at ``path``; safe to share between threads and processes.

    Every method commits before it returns.

    Raises:
        StorageFailed: a write did not complete; the charge may or may not stand, so re-read it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        make_private(path)  # SQLite gives its journal the same mode
        with self._open() as db:
            db.executescript(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: nothing is shared over fork, and a failed one is never reused.
        with self._lock:
            try:
                db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
                try:
                    db.execute("PRAGMA journal_mode=DELETE")
                    db.execute("PRAGMA synchronous=EXTRA")
                    db.execute("PRAGMA foreign_keys=ON")
                    yield db
                finally:
                    db.close()
            except sqlite3.Error as error:
                raise StorageFailed(
                    f"account must be written to {self._path}, got: {error}"
                ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()

    def open_job(self, sha256: str, name: str, manifest: bytes, cap_bytes: int = 0) -> None:
        """Record that this site accepted a job; again is no change.

        Args:
            sha256: the job's.
            name: what people call it.
            manifest: as it was signed.
            cap_bytes: the most that a message of it may have; 0 where no link brings any.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO job (sha256, name, manifest, state, cap_bytes) "
                "VALUES (?, ?, ?, 'running', ?) ON CONFLICT DO NOTHING",
                (sha256, name, manifest, cap_bytes),
            )

    def cap(self, job_sha256: str) -> int | None:
        """The most bytes that a message of a job may have; ``None`` before it is accepted.

        It outlives the process, as an order that the server sends again after a restart comes
        before the job is ready again.
        """
        with self._open() as db:
            found = db.execute(
                "SELECT cap_bytes FROM job WHERE sha256 = ?", (job_sha256,)
            ).fetchone()
        return (int(found[0]) or None) if found else None

    def close_job(self, sha256: str, state: str, final_sha256: str) -> None:
        """Record a job's end; bytes that waited for it are let go, the charges stay."""
        with self._transaction() as db:
            db.execute(
                "UPDATE job SET state = ?, final_sha256 = ? WHERE sha256 = ?",
                (state, final_sha256, sha256),
            )
            db.execute(
                "UPDATE release SET payload = NULL, input = NULL WHERE job_sha256 = ?", (sha256,)
            )

    def reserve(self, key: RoundKey, event: GaussianSteps, start: bytes) -> None:
        """Charge a round's steps before a record is touched.

        Args:
            key: the round.
            event: all of its steps.
            start: the input adapter's bytes, against which the next round's step is measured.

        Raises:
            RoundRefused: the job is not open, another input was reserved for this round, or a
                later round exists.
        """
        with self._transaction() as db:
            _require_open(db, key)
            found = db.execute(
                "SELECT input_sha256 FROM release WHERE job_sha256 = ? AND round = ?",
                (key.job_sha256, key.round),
            ).fetchone()
            if found is not None:
                _require_same_input(found[0], key)
                return
            (latest,) = db.execute(
                "SELECT COALESCE(MAX(round), 0) FROM release WHERE job_sha256 = ?",
                (key.job_sha256,),
            ).fetchone()
            if key.round <= latest:
                raise RoundRefused(f"round must be after {latest} of this job, got {key.round}")
            # Only the latest input is needed.
            db.execute("UPDATE release SET input = NULL WHERE job_sha256 = ?", (key.job_sha256,))
            db.execute(
                "INSERT INTO release (job_sha256, round, input_sha256, input, steps, "
                "sampling_rate, noise_multiplier) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    key.job_sha256,
                    key.round,
                    key.input_sha256,
                    start,
                    event.steps,
                    event.sampling_rate,
                    event.noise_multiplier,
                ),
            )

    def store(self, key: RoundKey, payload: bytes) -> bytes:
        """Keep a round's finished bytes; the bytes that will be sent.

        Those stored first win: a second set would be a second release.

        Raises:
            RoundRefused: the round was not reserved for this input.
        """
        with self._transaction() as db:
            found = db.execute(
                "SELECT input_sha256, payload, payload_sha256 FROM release "
                "WHERE job_sha256 = ? AND round = ?",
                (key.job_sha256, key.round),
            ).fetchone()
            if found is None:
                raise RoundRefused(
                    f"round {key.round} must be reserved before its release, got none"
                )
            _require_same_input(found[0], key)
            if found[2]:
                return _still_kept(found[1], key)
            db.execute(
                "UPDATE release SET payload = ?, payload_sha256 = ? "
                "WHERE job_sha256 = ? AND round = ?",
                (payload, hashlib.sha256(payload).hexdigest(), key.job_sha256, key.round),
            )
            return payload

    def stored(self, key: RoundKey) -> bytes | None:
        """The round's finished bytes, or ``None`` when it has yet to be trained.

        Raises:
            RoundRefused: the round was reserved for another input, or its job was closed.
        """
        with self._open() as db:
            found = db.execute(
                "SELECT input_sha256, payload, payload_sha256 FROM release "
                "WHERE job_sha256 = ? AND round = ?",
                (key.job_sha256, key.round),
            ).fetchone()
        if found is None:
            return None
        _require_same_input(found[0], key)
        return _still_kept(found[1], key) if found[2] else None

    def acknowledge(
        self, job_sha256: str, round_: int, payload_sha256: str, *, accepted: bool
    ) -> None:
        """Record the server's receipt for a round; one for other bytes changes nothing."""
        with self._transaction() as db:
            db.execute(
                "UPDATE release SET acknowledged = 1, accepted = ? "
                "WHERE job_sha256 = ? AND round = ? AND payload_sha256 = ?",
                (int(accepted), job_sha256, round_, payload_sha256),
            )

    def latest_input(self, job_sha256: str) -> tuple[int, bytes] | None:
        """The latest reserved round of a job and the adapter that it started from."""
        with self._open() as db:
            found = db.execute(
                "SELECT round, input FROM release WHERE job_sha256 = ? AND input IS NOT NULL "
                "ORDER BY round DESC LIMIT 1",
                (job_sha256,),
            ).fetchone()
        return (int(found[0]), bytes(found[1])) if found else None

    def charges(self, job_sha256: str | None = None) -> list[Charge]:
        """Every charge of this site, or of one job, in order."""
        with self._open() as db:
            rows = db.execute(
                "SELECT job_sha256, round, sampling_rate, noise_multiplier, steps, "
                "payload_sha256, acknowledged FROM release "
                "WHERE ?1 IS NULL OR job_sha256 = ?1 ORDER BY rowid",
                (job_sha256,),
            ).fetchall()
        return [
            Charge(
                job, round_, GaussianSteps(rate, noise, steps), payload_sha256, bool(acknowledged)
            )
            for job, round_, rate, noise, steps, payload_sha256, acknowledged in rows
        ]

    def jobs(self) -> list[JobRow]:
        """Every job that this site accepted, oldest first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT sha256, name, manifest, state, final_sha256 FROM job ORDER BY rowid"
            ).fetchall()
        return [JobRow(*row) for row in rows]

    def job(self, prefix_or_name: str) -> JobRow:
        """The one job of that name, or whose sha256 starts so.

        Raises:
            InvalidInput: there is none, or more than one.
        """
        return find_job(self.jobs(), prefix_or_name)


def spent(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of all private charges together, whether or not their bytes were ever sent."""
    return epsilon((c.event for c in charges if c.is_private), delta)


def _require_open(db: sqlite3.Connection, key: RoundKey) -> None:
    found = db.execute("SELECT state FROM job WHERE sha256 = ?", (key.job_sha256,)).fetchone()
    state = found[0] if found else "unknown"
    if state != "running":
        raise RoundRefused(f"round {key.round} must belong to an open job, got one that is {state}")


def _require_same_input(recorded: str, key: RoundKey) -> None:
    if recorded != key.input_sha256:
        raise RoundRefused(
            f"round {key.round} must start from the adapter it was reserved for, "
            f"{recorded[:16]}, got {key.input_sha256[:16]}"
        )


def _still_kept(payload: bytes | None, key: RoundKey) -> bytes:
    if payload is None:
        raise RoundRefused(f"round {key.round} must belong to an open job, got a closed one")
    return payload
