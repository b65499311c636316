"""What this site knows of its peers' ledgers, from the receipts that orders bring.

From each closed round's receipt it learns the head of every peer, and from the peer's charge in it
that this head goes on from the one before (client/continuation.py). A ledger that forks or shrinks,
or a receipt that lacks or alters this site's own charge, raises an alarm, which stays: with that
peer, or in that job, this site trains no more.

Not covered: a peer's key where the root has signed no roster: it is then the server's word at the
first sight; a grid without certificates, which makes no receipts.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from client import trust
from client.config import SiteHome
from client.continuation import judge
from client.heads import head_row, is_ours, roots_of, row_of
from client.journal import Journal, key_words
from client.outbox import Outbox
from common import heads, pki
from common.errors import JobRefused, RoundRefused, UpdateRejected
from common.heads import Alarm, State
from common.job import Job
from common.privacy.charge import HeadOf, LedgerRow, SignedCharge, check_charge
from common.privacy.ledger import Chain
from common.receipt import RoundReceipt, SignedReceipt, verify_signed

log = structlog.get_logger(__name__)


class Peers:
    """The other sites' heads in the account of a home; durable before each method returns.

    Args:
        outbox: the account.
        home: whose it is.
    """

    def __init__(self, outbox: Outbox, home: SiteHome) -> None:
        self._journal, self._home = outbox.journal, home

    def take(self, receipts: Sequence[SignedReceipt], job_sha256: str, sites: int) -> None:
        """Learn from the receipts of rounds that were closed, oldest first.

        Args:
            receipts: as an order or a close brings them.
            job_sha256: whose they have to be.
            sites: how many that job has.

        Raises:
            RoundRefused: one is not our server's, of another job, or does not follow the last one.
        """
        roots = roots_of(self._home)
        for signed in receipts if roots is not None else ():
            if signed.receipt.job_sha256 != job_sha256:
                raise RoundRefused("receipt must be of this job, got one of another")
            verify_signed(signed, roots or b"")
            self._take(signed, sites)

    def _take(self, signed: SignedReceipt, sites: int) -> None:
        receipt = signed.receipt
        alarms: list[Alarm] = []
        with self._journal.writing("heads") as writer:
            heads.prepare(writer.db)
            last = _last_receipt(writer.db, receipt)
            if last is not None and _sha256_of(writer.db, receipt) == signed.sha256:
                return
            _require_next(writer.db, last, receipt)
            by = pki.fingerprint(signed.chain.encode())
            if fault := _own_fault(writer.db, self._journal, self._home.site, receipt):
                alarms.append(Alarm(self._home.site, receipt.job_sha256, _now(), fault))
            else:
                _keep_own(writer.db, self._journal.chain, self._home.site, receipt, by)
            is_anew = last is not None and receipt.round <= last
            for site in sorted(receipt.heads.keys() - {self._home.site}):
                alarms.extend(self._learn(writer.db, site, receipt, by, sites, is_anew=is_anew))
            for alarm in alarms:
                heads.raise_alarm(writer.db, alarm)
            _keep_receipt(writer.db, signed)
        for alarm in alarms:
            log.error("this site trains no more with", site=alarm.site, reason=alarm.words)

    def _learn(
        self,
        db: sqlite3.Connection,
        site: str,
        receipt: RoundReceipt,
        by: str,
        sites: int,
        *,
        is_anew: bool,
    ) -> list[Alarm]:
        """Keep what a receipt says of a peer's head; an alarm if that cannot be."""
        head, job = receipt.heads[site], receipt.job_sha256
        charge = receipt.charges.get(site)
        is_held = charge is None or self._holds(db, site, charge)
        state: State | None = "FORKED"
        if is_held:
            state = judge(db, site, receipt, sites=sites, is_anew=is_anew)
        heads.keep_shown(db, job, site, head.size)
        if state is None:
            return []
        place = (receipt.closed_at, job, receipt.round, by, state)
        heads.keep(db, head_row(site, head, *place))
        if state not in heads.BAD:
            return []
        return [Alarm(site, job, _now(), _alarm_words(site, head, state, receipt))]

    def _holds(self, db: sqlite3.Connection, site: str, charge: SignedCharge) -> bool:
        """Whether a peer's charge is signed and proved, by a key that is the peer's."""
        roster = trust.read_roster(self._home)
        admitted = roster.sites.get(site, ()) if roster is not None else None
        seen = {row.public_key for row in heads.history(db, site)}

        def is_key(public_key: str) -> bool:
            return admitted is None or public_key in seen or key_words(public_key) in admitted

        try:
            check_charge(charge, is_key)
        except UpdateRejected as error:
            log.error("peer's charge not proved", site=site, reason=str(error))
            return False
        return True

    def alarms(self) -> list[Alarm]:
        """Every reason to train no more, oldest first."""
        with self._journal.reading() as db:
            return heads.alarms(db)

    def require_quiet(self, job: Job) -> None:
        """Check that no alarm keeps this site from a job.

        Raises:
            JobRefused: one does.
        """
        own = self._home.site
        for alarm in self.alarms():
            is_own = alarm.site == own and alarm.job_sha256 == job.sha256
            if is_own or (alarm.site != own and alarm.site in job.sites):
                raise JobRefused(alarm.words)


def _last_receipt(db: sqlite3.Connection, receipt: RoundReceipt) -> int | None:
    """The latest round of the job whose receipt is here."""
    query = "SELECT MAX(round) FROM round_receipt WHERE job_sha256 = ?"
    (found,) = db.execute(query, (receipt.job_sha256,)).fetchone()
    return None if found is None else int(found)


def _sha256_of(db: sqlite3.Connection, receipt: RoundReceipt) -> str:
    """The hash of the receipt of that round; empty for none."""
    query = "SELECT sha256 FROM round_receipt WHERE job_sha256 = ? AND round = ?"
    row = db.execute(query, (receipt.job_sha256, receipt.round)).fetchone()
    return "" if row is None else str(row[0])


def _sha256_before(db: sqlite3.Connection, receipt: RoundReceipt) -> str:
    """The hash of the last receipt before it; empty for none.

    Between the last round and the counts there are numbers that patience left out.
    """
    query = (
        "SELECT sha256 FROM round_receipt WHERE job_sha256 = ? AND round < ? "
        "ORDER BY round DESC LIMIT 1"
    )
    row = db.execute(query, (receipt.job_sha256, receipt.round)).fetchone()
    return "" if row is None else str(row[0])


def _require_next(db: sqlite3.Connection, last: int | None, receipt: RoundReceipt) -> None:
    """The receipt follows what is known; a server that was restored may make a round anew."""
    known = _sha256_before(db, receipt)
    if last is not None and receipt.round <= last:
        log.warning("server closed a round anew", round=receipt.round, job=receipt.job_sha256[:12])
        if known and receipt.before != known:
            raise _unlinked(receipt)
    elif receipt.before != known or (last is None and receipt.before):
        raise _unlinked(receipt)


def _unlinked(receipt: RoundReceipt) -> RoundRefused:
    return RoundRefused(
        f"receipt of round {receipt.round} must follow the last one that this site has, got one "
        f"that does not"
    )


def _keep_receipt(db: sqlite3.Connection, signed: SignedReceipt) -> None:
    place = (signed.receipt.job_sha256, signed.receipt.round)
    db.execute("DELETE FROM round_receipt WHERE job_sha256 = ? AND round >= ?", place)
    db.execute("INSERT INTO round_receipt VALUES (?, ?, ?)", (*place, signed.sha256))


def _own_fault(db: sqlite3.Connection, journal: Journal, site: str, receipt: RoundReceipt) -> str:
    """What a receipt says of this site that is not so; empty when all is."""
    where = f"receipt of round {receipt.round} of job {receipt.job_sha256[:12]}"
    found = journal.account.rounds.get((receipt.job_sha256, receipt.round))
    charge, head = receipt.charges.get(site), receipt.heads.get(site)
    if charge is None:
        query = "SELECT 1 FROM confirmation WHERE job_sha256 = ? AND round = ?"
        if db.execute(query, (receipt.job_sha256, receipt.round)).fetchone() is not None:
            return f"{where} must hold this site's charge, which was confirmed, got none"
    elif found is None or charge.row != _as_shown(db, journal.chain, found.seq, charge.row):
        return f"{where} must hold this site's charge as it was made, got another"
    if head is not None and not is_ours(journal.chain, head):
        return f"{where} must hold this site's head, got one of another ledger"
    payload = next((reply.payload_sha256 for reply in receipt.replies if reply.site == site), "")
    if payload and (found is None or found.charge.payload_sha256 != payload):
        return f"{where} must name the bytes that this site released, got others"
    return ""


def _keep_own(
    db: sqlite3.Connection, chain: Chain, site: str, receipt: RoundReceipt, by: str
) -> None:
    """Keep own heads that were confirmed without this site having heard of it.

    Peers may know this site by them: it has to show proofs from them.
    """
    charge = receipt.charges.get(site)
    for head in (charge.since if charge else None, receipt.heads.get(site)):
        if head is None or not is_ours(chain, head) or not head.head.is_signed():
            continue
        if heads.roots_of(db, site, head.size):
            continue
        state: State = "consistent" if heads.latest(db, site) else "first"
        place = (receipt.closed_at, receipt.job_sha256, receipt.round, by, state)
        heads.keep(db, head_row(site, head, *place))


def _as_shown(db: sqlite3.Connection, chain: Chain, seq: int, row: LedgerRow) -> LedgerRow:
    """This ledger's row under the place of an earlier proof: the tree has grown since."""
    return row_of(db, chain, seq).model_copy(update={"inclusion": row.inclusion})


def _alarm_words(site: str, head: HeadOf, state: State, receipt: RoundReceipt) -> str:
    how = {
        "FORKED": "must go on from the one known here, got another or no proof",
        "SHRUNK": "must be no shorter than the one known here, got a shorter one",
    }[state]
    return (
        f"ledger of site {site} with {head.size} entries in round {receipt.round} of job "
        f"{receipt.job_sha256[:12]} {how}"
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
