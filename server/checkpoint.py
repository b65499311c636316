"""What the server must remember through a crash: jobs, rounds, receipts and the global adapter.

Each method is one durable transaction, so a crash between any two statements leaves the state of
the last one whole; a failed commit is in doubt and says so.

Not covered: two servers on one database (the daemon's lock is per home); an account of privacy (the
sites own theirs; what they state is kept in the receipts).
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from common.errors import InvalidInput, StorageFailed
from common.job import Job, SignedJob, find_job
from common.privacy.charge import HeadOf, SignedCharge, SignedEnding
from common.privacy.ledger import Head
from common.receipt import (
    Confirmation,
    Reply,
    ServerKey,
    SignedConfirmation,
    SignedReceipt,
    read_receipt,
)
from server import tables
from server.database import Database
from server.longest import keep_longest, longest
from server.receipts import (
    endings_of,
    keep_charge,
    keep_ending,
    make_receipt,
    now,
    receipts_of,
    to_show,
)
from server.records import (
    STATES,
    JobRow,
    Receipt,
    RoundRecord,
    State,
    Witnessed,
    job_row,
    names,
)
from server.rounds import keep_round

__all__ = ["STATES", "Checkpoints", "JobRow", "Receipt", "RoundRecord", "State", "Witnessed"]

HoldsKey = Callable[[str, str], bool]


class Checkpoints:
    """The server's durable state; safe to use from several threads of one process."""

    def __init__(
        self,
        url: str,
        holds_key: HoldsKey = lambda site, key_sha256: True,
        server_key: Callable[[], ServerKey | None] = lambda: None,
    ) -> None:
        """Open the database at ``url``, making its tables if there are none.

        Args:
            url: as SQLAlchemy has it.
            holds_key: whether a site has a certificate for the key with this sha256; by default,
                where sites have none, any key will do.
            server_key: signs confirmations and receipts; by default, where the server has no
                certificate, confirmations are not signed and there are no receipts.

        Raises:
            InvalidInput: the URL is none that SQLAlchemy can open here.
            StorageFailed: the database cannot be read or written.
        """
        self._database, self.holds_key = Database(url), holds_key
        self._server_key = server_key
        with self._database.writing() as connection:
            tables.metadata.create_all(connection)
            for column in tables.ADDED:
                _add_column(connection, column)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def reading(self) -> AbstractContextManager[Connection]:
        """One consistent view of the tables, for figures over all jobs.

        Raises:
            StorageFailed: the database cannot be read.
        """
        return self._database.reading()

    def writing(self) -> AbstractContextManager[Connection]:
        """One durable transaction, for tables that other modules keep.

        Raises:
            StorageFailed: the write is in doubt.
        """
        return self._database.writing()

    def add_job(self, signed: SignedJob) -> bool:
        """Queue a job; False when it is here already, in whatever state."""
        row = {"sha256": signed.job.sha256, "name": signed.job.job.name, "state": "queued"}
        moment = now()
        with self._database.writing() as connection:
            if _exists(connection, signed.job.sha256):
                return False
            connection.execute(
                tables.jobs.insert().values(
                    **row,
                    reason="",
                    signed=signed.to_bytes(),
                    submitted_at=moment,
                    changed_at=moment,
                )
            )
        return True

    def jobs(self) -> list[JobRow]:
        """Every job, in order of submission."""
        with self._database.reading() as connection:
            rows = connection.execute(
                sa.select(tables.jobs).order_by(tables.jobs.c.number)
            ).mappings()
            return [job_row(row) for row in rows]

    def job(self, prefix_or_name: str) -> JobRow:
        """The one job of that name, or whose sha256 starts so.

        Raises:
            InvalidInput: there is none, or more than one.
        """
        return find_job(self.jobs(), prefix_or_name)

    def set_state(self, job_sha256: str, state: State, reason: str = "") -> None:
        """Record how a job stands, with the reason in words."""
        if state not in STATES:
            raise InvalidInput(f"state must be one of {', '.join(STATES)}, got {state!r}")
        self._update(job_sha256, state=state, reason=reason)

    def dispatch(self, job_sha256: str, round_: int, sites: Iterable[str]) -> None:
        """Record, before any message of the round goes out, who may be charged for it."""
        self._dispatch(job_sha256, {(round_, site) for site in sites})

    def assume_dispatched(self, job_sha256: str, rounds: int, sites: Iterable[str]) -> None:
        """Record that every round up to ``rounds`` may have been asked of all these sites."""
        numbers = range(1, rounds + 1)
        self._dispatch(job_sha256, {(round_, site) for site in sites for round_ in numbers})

    def _dispatch(self, job_sha256: str, asked: set[tuple[int, str]]) -> None:
        with self._database.writing() as connection:
            known = {(row.round, row.site) for row in connection.execute(_keys(job_sha256))}
            fresh = [
                {"job_sha256": job_sha256, "round": round_, "site": site}
                for round_, site in sorted(asked - known)
            ]
            if fresh:
                connection.execute(tables.dispatches.insert(), fresh)

    def save_round(
        self,
        job_sha256: str,
        record: RoundRecord,
        vector: bytes,
        receipts: Iterable[Receipt],
        *,
        is_best: bool = False,
        memory: bytes = b"",
    ) -> None:
        """Close a round: its record, its receipts and the new global adapter, all or nothing.

        Args:
            job_sha256: the job.
            record: the round; ``seconds`` is the one field that a repetition may change.
            vector: the (P,) float32 buffer that the next round starts from.
            receipts: every reply of the round, accepted or not.
            is_best: whether ``vector`` is kept as the job's best as well.
            memory: of the server's optimiser, where the job has one.

        Raises:
            StorageFailed: the write is in doubt, or the round is closed with another content.
        """
        key = self._server_key()
        with self._database.writing() as connection:
            keep_round(
                connection,
                job_sha256,
                record,
                vector,
                receipts,
                key,
                is_best=is_best,
                memory=memory,
            )

    def memory(self, job_sha256: str) -> bytes:
        """What the server's optimiser remembers after the last closed round; empty if nothing.

        Raises:
            StorageFailed: it is another round's.
        """
        kept, closed = tables.memories, tables.rounds
        last = sa.select(sa.func.max(closed.c.round)).where(closed.c.job_sha256 == job_sha256)
        held = sa.select(kept.c.round, kept.c.vector).where(kept.c.job_sha256 == job_sha256)
        with self._database.reading() as connection:
            row, round_ = connection.execute(held).first(), connection.execute(last).scalar()
        if row is None:
            return b""
        if row.round != round_:
            raise StorageFailed(
                f"optimizer's memory must be of round {round_}, got one of round {row.round}"
            )
        return bytes(row.vector)

    def latest(self, job_sha256: str) -> tuple[int, bytes] | None:
        """The last closed round and the (P,) float32 buffer that it ended with.

        Raises:
            StorageFailed: the buffer read back is not the one that was written.
        """
        return self._adapter(tables.adapters, job_sha256)

    def best(self, job_sha256: str) -> tuple[int, bytes] | None:
        """The best closed round and the (P,) float32 buffer that it ended with.

        Raises:
            StorageFailed: the buffer read back is not the one that was written.
        """
        return self._adapter(tables.best_adapters, job_sha256)

    def _adapter(self, table: sa.Table, job_sha256: str) -> tuple[int, bytes] | None:
        joined = sa.select(table.c.round, table.c.vector, tables.rounds.c.vector_sha256).join(
            tables.rounds,
            (tables.rounds.c.job_sha256 == table.c.job_sha256)
            & (tables.rounds.c.round == table.c.round),
        )
        with self._database.reading() as connection:
            row = connection.execute(joined.where(table.c.job_sha256 == job_sha256)).first()
        if row is None:
            return None
        round_, vector, expected = row
        actual = hashlib.sha256(vector).hexdigest()
        if actual != expected:
            raise StorageFailed(
                f"adapter of round {round_} must be read from {self._database.place} as written "
                f"({expected[:12]}), got {actual[:12]}"
            )
        return int(round_), bytes(vector)

    def rounds(self, job_sha256: str) -> list[RoundRecord]:
        """The closed rounds, first to last."""
        return [
            RoundRecord(**{name: row[name] for name in names(RoundRecord)})
            for row in self._of_job(tables.rounds, job_sha256)
        ]

    def receipts(self, job_sha256: str) -> list[Receipt]:
        """Every receipt, by round and site."""
        return [
            Receipt(**{name: row[name] for name in names(Receipt)})
            for row in self._of_job(tables.receipts, job_sha256)
        ]

    def dispatched(self, job_sha256: str) -> list[tuple[int, str]]:
        """(round, site) of every message that may have gone out."""
        return [(row["round"], row["site"]) for row in self._of_job(tables.dispatches, job_sha256)]

    def witness(self, site: str, head: Head) -> Witnessed:
        """Remember a site's ledger head if it goes on from the one that is remembered.

        Returns:
            ``longer``, and then it is kept; ``same`` or ``shorter``, which a repeated reply may be;
            ``forked`` when another ledger of the same size was shown before; ``foreign`` when its
            key is not the site's.
        """
        key_sha256 = hashlib.sha256(bytes.fromhex(head.public_key)).hexdigest()
        if not self.holds_key(site, key_sha256):
            return "foreign"
        with self._database.writing() as connection:
            return keep_longest(connection, site, head)

    def head(self, site: str) -> Head | None:
        """The longest ledger head that a site has shown."""
        with self._database.reading() as connection:
            return longest(connection, site)

    def confirm(
        self, job_sha256: str, round_: int, site: str, charge: SignedCharge
    ) -> SignedConfirmation | Confirmation:
        """Keep a charge that was checked, and its head; the word for it, once it is durable.

        Asked again for a round, it confirms the head that was kept first.

        Raises:
            UpdateRejected: it is another charge for the round, or does not go on from the last.
            StorageFailed: the write is in doubt; nothing is confirmed.
        """
        with self._database.writing() as connection:
            head = keep_charge(connection, job_sha256, round_, site, charge)
        said = Confirmation(job_sha256=job_sha256, round=round_, site=site, head=head, at=now())
        key = self._server_key()
        return said if key is None else key.confirm(said)

    def close_counts(self, job: Job, vector_sha256: str, replies: Iterable[Reply]) -> None:
        """Sign, once, who was asked for a job's counts, who gave some, and every charge for them.

        Args:
            job: whose counts nobody is asked for any more.
            vector_sha256: of the adapter that they are of.
            replies: the counts that were taken.

        Raises:
            StorageFailed: the write is in doubt.
        """
        key, ends = self._server_key(), (vector_sha256, vector_sha256)
        if key is None:
            return
        with self._database.writing() as connection:
            if not receipts_of(connection, job.sha256, job.metrics_round):
                make_receipt(connection, job.sha256, job.metrics_round, ends, list(replies), key)

    def are_counts_closed(self, job: Job) -> bool:
        """Whether a receipt says what came of asking for a job's counts."""
        with self._database.reading() as connection:
            return bool(receipts_of(connection, job.sha256, job.metrics_round))

    def round_receipts(self, job_sha256: str) -> list[SignedReceipt]:
        """The signed receipt of every closed round that has one, first to last; counts' after."""
        with self._database.reading() as connection:
            return [read_receipt(content) for content in receipts_of(connection, job_sha256)]

    def keep_ending(self, job_sha256: str, site: str, ending: SignedEnding) -> None:
        """Keep a site's last word on a job that was checked; the first one stays.

        Raises:
            StorageFailed: the write is in doubt.
        """
        with self._database.writing() as connection:
            keep_ending(connection, job_sha256, site, ending)

    def endings(self, job_sha256: str) -> dict[str, SignedEnding]:
        """The last word on a job of each site that was there when it ended."""
        with self._database.reading() as connection:
            return endings_of(connection, job_sha256)

    def to_show(self, job_sha256: str, site: str, before: int) -> tuple[list[bytes], list[HeadOf]]:
        """Receipts from before a round that a site has not seen, and heads to prove from."""
        with self._database.reading() as connection:
            return to_show(connection, job_sha256, site, before)

    def _of_job(self, table: sa.Table, job_sha256: str) -> list[RowMapping]:
        order = [column for column in table.primary_key if column.name != "job_sha256"]
        query = sa.select(table).where(table.c.job_sha256 == job_sha256).order_by(*order)
        with self._database.reading() as connection:
            return list(connection.execute(query).mappings())

    def _update(self, job_sha256: str, **values: str) -> None:
        change = tables.jobs.update().where(tables.jobs.c.sha256 == job_sha256)
        with self._database.writing() as connection:
            if connection.execute(change.values(changed_at=now(), **values)).rowcount != 1:
                raise InvalidInput(f"job must be one that was added, got {job_sha256[:12]}")


def _add_column(connection: Connection, column: sa.Column[Any]) -> None:
    """Give a table of an earlier version a column that came later."""
    name = column.table.name
    if column.name in {known["name"] for known in sa.inspect(connection).get_columns(name)}:
        return
    kind = column.type.compile(connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {column.name} {kind}")


def _exists(connection: Connection, job_sha256: str) -> bool:
    query = sa.select(tables.jobs.c.number).where(tables.jobs.c.sha256 == job_sha256)
    return connection.execute(query).first() is not None


def _keys(job_sha256: str) -> sa.Select[tuple[int, str]]:
    table = tables.dispatches.c
    return sa.select(table.round, table.site).where(table.job_sha256 == job_sha256)
