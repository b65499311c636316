"""A site's account: every charge in a signed ledger, and the bytes that wait to be sent.

One SQLite file holds both, so that a charge and its bytes can never disagree. For each round of a
job: reserve all of its steps -> train -> store the finished bytes -> send -> acknowledge. A
reservation without bytes is reused with fresh randomness, since nothing left; with bytes, the same
bytes are sent again: one charge and one release a round. A crash can only leave a charge without
a release.

A commit that failed is in doubt: a reservation is known by its job and round, so asking again
charges once, whichever way it went.

Not covered: a home that is copied back from a backup, but for what ``require_witnessed`` finds;
another history written by an owner of the key.
"""

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from client.config import SiteHome
from client.importing import OLD_TABLES, import_account, require_no_release
from client.journal import Journal, Writer
from client.lifetime import cap_of
from client.reserved import (
    JobRow,
    RoundKey,
    charge_of,
    keep_start,
    open_job,
    require_next,
    require_same_input,
    sha256_of,
    versions,
    whole,
)
from client.signing import AccountKey
from common.errors import InvalidInput, JobRefused, LedgerBroken, RoundRefused
from common.job import find_job
from common.privacy.account import (
    ENDED,
    Account,
    Charge,
    Reservation,
    Submission,
    spent,
    steps_of,
)
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import (
    Closed,
    Committed,
    Created,
    Decided,
    Purpose,
    Rekeyed,
    Released,
    Reserved,
    Submitted,
    Terms,
)
from common.privacy.ledger import Head
from common.privacy.lifetime import cap_to_dict

__all__ = ["Charge", "JobRow", "Outbox", "RoundKey", "Submission", "Terms", "spent"]

Within = Callable[[list[Charge]], None]
Admits = Callable[[list[Submission], list[Charge]], None]


class Outbox:
    """The account at ``path``; safe to share between threads and processes.

    Every method commits before it returns.

    Args:
        path: the SQLite file; made if there is none, and brought up to date, but for a reader.
        key: the site's private key (PEM), which signs the entries; where there is none, a key is
            made beside the account.
        site: whose account it is; written when it is made.
        cap: the lifetime cap, in whatever form its filter has; written when it is made.
        unit: the privacy unit that the site insists on, or empty; written when it is made.
        is_reader: whether to leave the account as it is found.

    Raises:
        InvalidInput: for a reader, there is no account that is up to date; or a schedule was to
            begin after earlier releases.
        StorageFailed: a write did not complete; the charge may or may not stand, so re-read it.
        LedgerBroken: the account is not the one that this site wrote; it trains no more.
    """

    def __init__(
        self,
        path: Path,
        key: Path | None = None,
        *,
        site: str = "",
        cap: Mapping[str, Any] | None = None,
        unit: str = "",
        is_reader: bool = False,
    ) -> None:
        def fill(writer: Writer, before: set[str]) -> None:
            if before not in (set(), OLD_TABLES):
                raise LedgerBroken(
                    f"account must be new, a ledger or one of the first version, got tables "
                    f"{', '.join(sorted(before))}"
                )
            if before and dict(cap or {}).get("kind") == "pld-schedule":
                require_no_release(writer.db)
            writer.append(Created, site=site, cap=dict(cap or {}), unit=unit, binds_keys=True)
            if before:
                import_account(writer)

        self.journal = Journal(path, AccountKey(path, key))
        if is_reader:
            self.journal.require_made()
        else:
            self.journal.create(fill)

    @classmethod
    def of(cls, home: SiteHome, *, is_reader: bool = False) -> "Outbox":
        """The account of a site's home, signed with its key and made with its policy's cap.

        Raises:
            LedgerBroken: it is another site's.
            InvalidInput: another key than this site's signed last.
        """
        found = cls.unclaimed(home, is_reader=is_reader)
        found.journal.require_key()
        return found

    @classmethod
    def unclaimed(cls, home: SiteHome, *, is_reader: bool = False) -> "Outbox":
        """Like ``of``, whosever key signed: for the command that names a new one."""
        policy = home.config.policy
        found = cls(
            home.account_path,
            home.path(home.config.certificates.key),
            site=home.site,
            cap=cap_to_dict(cap_of(policy)),
            unit=policy.required_unit or "",
            is_reader=is_reader,
        )
        if (created := found.created()).site != home.site:
            raise LedgerBroken(
                f"ledger must be that of site {home.site}, got that of site {created.site!r}"
            )
        return found

    @property
    def _account(self) -> Account:
        return self.journal.account

    def lifetime_cap(self) -> dict[str, Any]:
        """The cap over the life of the site's data, as it was fixed when the account was made."""
        return dict(self.created().cap)

    def created(self) -> Created:
        """The ledger's first entry.

        Raises:
            LedgerBroken: there is none.
        """
        with self.journal.reading():
            created = self._account.created
        if created is None:
            raise LedgerBroken("ledger must have a first entry, got an empty one")
        return created

    def hand_overs(self) -> list[Rekeyed]:
        """Every entry that named a new key."""
        with self.journal.reading():
            return list(self._account.hand_overs)

    def fixed_unit(self) -> str:
        """The privacy unit that the account was made with; empty for none."""
        return self.created().unit

    def head(self) -> Head:
        """The ledger's signed head, for somebody else to remember."""
        return self.journal.head()

    def require_witnessed(self, witnessed: Head | None) -> None:
        """Check that this ledger continues the one whose head the server remembers.

        Raises:
            JobRefused: it does not: an older copy was put back, or another process went on from a
                copy. Or the head is none that this site signed.
        """
        if witnessed is None:
            return
        found = self.journal.root(witnessed.size)
        if found is None:
            size = self.head().size
            raise JobRefused(
                f"ledger must hold the {witnessed.size} entries that the server witnessed, got "
                f"{size}: an older copy was put back"
            )
        if found != witnessed.root:
            raise JobRefused(
                f"ledger must begin with the {witnessed.size} entries that the server witnessed, "
                f"got others: it went on from a copy"
            )

    def open_job(
        self,
        sha256: str,
        name: str,
        manifest: bytes,
        cap_bytes: int = 0,
        plan: GaussianSteps | None = None,
        terms: Terms | None = None,
        within: Admits | None = None,
        *,
        metrics: GaussianSteps | None = None,
    ) -> None:
        """Record that this site accepted a job; again is no change.

        Args:
            sha256: the job's.
            name: what people call it.
            manifest: as it was signed.
            cap_bytes: the most that a message of it may have; 0 where no link brings any.
            plan: all of its steps, beyond which no round is charged; ``None`` for no such limit.
            terms: what the steps are charged under.
            within: given all jobs and charges so far, raises if there is no room for this one. It
                is asked in the same transaction, so that no two processes pass it together.
            metrics: what its counts cost; ``None`` where none leave.

        Raises:
            Refusal: what ``within`` raises.
        """
        with self.journal.writing("open-job") as writer:
            if sha256 in self._account.jobs:
                return
            if within is not None:
                within(list(self._account.jobs.values()), self._account.charges())
            writer.append(
                Submitted,
                job_sha256=sha256,
                name=name,
                manifest_sha256=sha256_of(manifest),
                message_cap_bytes=cap_bytes,
                plan=plan and steps_of(plan),
                terms=terms or Terms(),
                metrics=metrics and steps_of(metrics),
                **versions(),
            )
            writer.db.execute("INSERT INTO manifest VALUES (?, ?)", (sha256, manifest))

    def cap(self, job_sha256: str) -> int | None:
        """The most bytes that a message of a job may have; ``None`` before it is accepted.

        It outlives the process, as an order that the server sends again after a restart comes
        before the job is ready again.
        """
        with self.journal.reading():
            job = self._account.jobs.get(job_sha256)
        return (job.message_cap_bytes or None) if job else None

    def close_job(self, sha256: str, state: str, final_sha256: str) -> None:
        """Record a job's end, once and for ever: a later one changes nothing.

        Bytes that waited for it are let go, and so is what it has not charged of its plan; its
        charges stay.

        Raises:
            InvalidInput: ``state`` is no end.
        """
        if state not in ENDED:
            raise InvalidInput(f"state must be one of {', '.join(ENDED)}, got {state[:80]!r}")
        with self.journal.writing("close-job") as writer:
            job = self._account.jobs.get(sha256)
            if job is None or not job.is_open:
                return
            writer.append(
                Closed,
                job_sha256=sha256,
                state=state,
                final_sha256=final_sha256,
                is_final=True,
                steps=self._account.charged_steps(sha256),
                counts=self._account.releases_of_counts(sha256),
            )
            writer.db.execute("DELETE FROM content WHERE job_sha256 = ?", (sha256,))

    def reserve(
        self,
        key: RoundKey,
        event: GaussianSteps,
        start: bytes,
        terms: Terms | None = None,
        within: Within | None = None,
        *,
        purpose: Purpose = "update",
    ) -> None:
        """Charge a round's steps before a record is touched.

        Args:
            key: the round.
            event: all of its steps.
            start: the input adapter's bytes, against which the next round's step is measured.
            terms: what they are charged under.
            within: given every charge with this one, raises if they are too many. It is asked in
                the same transaction, so that no two processes pass it together.
            purpose: a round's update, or the job's counts.

        Raises:
            RoundRefused: the job is not open or has not so many steps left, another input was
                reserved for this round, or a later round exists.
        """
        with self.journal.writing("reserve") as writer:
            job = open_job(self._account, key)
            found = self._account.rounds.get((key.job_sha256, key.round))
            if found is not None:
                require_same_input(found, key)
                return
            require_next(self._account, job, key, event, purpose)
            if within is not None:
                within([*self._account.charges(), charge_of(key, event)])
            writer.append(
                Reserved,
                job_sha256=key.job_sha256,
                round=key.round,
                input_sha256=key.input_sha256,
                start_sha256=sha256_of(start),
                charge=steps_of(event),
                terms=terms or job.terms,
                job_steps=self._account.charged_steps(key.job_sha256)
                + (event.steps if purpose == "update" else 0),
                **({} if purpose == "update" else {"purpose": purpose}),
                **versions(),
            )
            keep_start(writer.db, key, start)

    def store(self, key: RoundKey, payload: bytes) -> bytes:
        """Keep a round's finished bytes; the bytes that will be sent.

        Those stored first win: a second set would be a second release.

        Raises:
            RoundRefused: the round was not reserved for this input, or its job has ended.
        """
        with self.journal.writing("store") as writer:
            found = self._account.rounds.get((key.job_sha256, key.round))
            if found is None:
                raise RoundRefused(
                    f"round {key.round} must be reserved before its release, got none"
                )
            require_same_input(found, key)
            open_job(self._account, key)  # it may have ended while the round was trained
            if found.charge.is_released:
                return self._kept(writer.db, key, found)
            writer.append(
                Released,
                job_sha256=key.job_sha256,
                round=key.round,
                payload_sha256=sha256_of(payload),
            )
            writer.db.execute(
                "INSERT INTO content (job_sha256, round, payload) VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET payload = excluded.payload",
                (key.job_sha256, key.round, payload),
            )
            return payload

    def stored(self, key: RoundKey) -> bytes | None:
        """The round's finished bytes, or ``None`` when it has yet to be trained.

        Raises:
            RoundRefused: the round was reserved for another input, or its job was closed.
        """
        with self.journal.reading() as db:
            found = self._account.rounds.get((key.job_sha256, key.round))
            if found is None:
                return None
            require_same_input(found, key)
            return self._kept(db, key, found) if found.charge.is_released else None

    def released(self, job_sha256: str, round_: int) -> bytes:
        """The bytes of a round that may leave.

        Raises:
            RoundRefused: it has none, or its job was closed.
        """
        with self.journal.reading() as db:
            found = self._account.rounds.get((job_sha256, round_))
            if found is None or not found.charge.is_released:
                raise RoundRefused(f"round {round_} must be ready to leave, got none")
            return self._kept(db, RoundKey(job_sha256, round_, found.input_sha256), found)

    def _kept(self, db: sqlite3.Connection, key: RoundKey, found: Reservation) -> bytes:
        if not self._account.jobs[key.job_sha256].is_open:
            raise RoundRefused(f"round {key.round} must belong to an open job, got a closed one")
        row = db.execute(
            "SELECT payload FROM content WHERE job_sha256 = ? AND round = ?",
            (key.job_sha256, key.round),
        ).fetchone()
        return whole(row and row[0], found.charge.payload_sha256, f"bytes of round {key.round}")

    def acknowledge(
        self, job_sha256: str, round_: int, payload_sha256: str, *, accepted: bool
    ) -> None:
        """Record the server's receipt for a round; one for other bytes changes nothing."""
        with self.journal.writing("acknowledge") as writer:
            found = self._account.rounds.get((job_sha256, round_))
            if (
                found is None
                or not found.charge.is_released
                or found.charge.payload_sha256 != payload_sha256
                or found.charge.is_acknowledged
            ):
                return
            writer.append(
                Committed,
                job_sha256=job_sha256,
                round=round_,
                payload_sha256=payload_sha256,
                is_accepted=accepted,
            )

    def latest_input(self, job_sha256: str) -> tuple[int, bytes] | None:
        """The latest reserved round of a job and the adapter that it started from."""
        with self.journal.reading() as db:
            round_ = self._account.latest_round(job_sha256)
            row = db.execute(
                "SELECT start FROM content WHERE job_sha256 = ? AND round = ?", (job_sha256, round_)
            ).fetchone()
            if not round_ or row is None:
                return None
            found = self._account.rounds[job_sha256, round_]
            return round_, whole(row[0], found.start_sha256, f"start of round {round_}")

    def charges(self, job_sha256: str | None = None) -> list[Charge]:
        """Every charge of this site, or of one job, in order."""
        with self.journal.reading():
            return self._account.charges(job_sha256)

    def submissions(self) -> list[Submission]:
        """Every job that this site accepted with its whole budget, oldest first."""
        with self.journal.reading():
            return list(self._account.jobs.values())

    def jobs(self) -> list[JobRow]:
        """Every job that this site accepted, oldest first."""
        with self.journal.reading() as db:
            manifests = dict(db.execute("SELECT job_sha256, content FROM manifest"))
            return [
                JobRow(
                    job.sha256,
                    job.name,
                    whole(manifests.get(job.sha256), job.manifest_sha256, f"job {job.name}"),
                    job.state,
                    job.final_sha256,
                )
                for job in self._account.jobs.values()
            ]

    def job(self, prefix_or_name: str) -> JobRow:
        """The one job of that name, or whose sha256 starts so.

        Raises:
            InvalidInput: there is none, or more than one.
        """
        return find_job(self.jobs(), prefix_or_name)

    def decide(
        self, job_sha256: str, decision: Literal["approve", "refuse"], who: str, note: str = ""
    ) -> None:
        """Record that a person approved or refused a job, for ever; the latest decision counts."""
        with self.journal.writing("decide") as writer:
            writer.append(Decided, job_sha256=job_sha256, decision=decision, who=who, note=note)

    def decisions(self) -> list[Decided]:
        """Every decision of a person, in order."""
        with self.journal.reading():
            return list(self._account.decisions)

    def verify(self) -> int:
        """Check the whole account from the first entry on, and all bytes; how many entries.

        Raises:
            LedgerBroken: the first thing that is not as this site wrote it.
        """
        self.journal.verify()
        self.jobs()  # every manifest
        for job in self.submissions():
            self.latest_input(job.sha256)
            for charge in self.charges(job.sha256) if job.is_open else ():
                source = self._account.rounds[job.sha256, charge.round].input_sha256
                self.stored(RoundKey(job.sha256, charge.round, source))
        return len(self.journal.rows())
