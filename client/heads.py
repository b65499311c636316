"""This site's own ledger heads: what it shows of them, and those that the server confirmed.

A round's bytes leave once the server has confirmed a head of this ledger that holds their charge. A
site with a root in its home wants that signed; one without, as in a simulation, takes it as it is.

Not covered: what the heads of others say (client/peers.py); what is charged (client/outbox.py).
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

from client import trust
from client.config import SiteHome
from client.outbox import Outbox
from common import heads, pki
from common.certificates import read_certificate
from common.errors import RoundRefused
from common.files import exists
from common.heads import UNSIGNED, HeadRow, State
from common.privacy.charge import (
    MAX_LINKS,
    HeadOf,
    LedgerRow,
    Link,
    SignedCharge,
    SignedEnding,
)
from common.privacy.ledger import Chain, Row
from common.receipt import Confirmation, SignedConfirmation, fitted, to_bytes, verify_signed


class Heads:
    """This site's heads in the account of its home.

    Args:
        outbox: the account.
        home: whose it is; its roots decide whether the server has to sign.
    """

    def __init__(self, outbox: Outbox, home: SiteHome) -> None:
        self._journal, self._home = outbox.journal, home

    def charge(
        self, job_sha256: str, round_: int, prove: Sequence[HeadOf], sites: int
    ) -> SignedCharge:
        """A round's charge under the head of now, with proofs from earlier heads.

        Args:
            job_sha256: the job's.
            round_: a round that is reserved.
            prove: heads that the server wants proofs from, the one it confirmed last first. Where
                that is not the one of the job's last charge, proofs from all that this site knows
                to be confirmed come too, the longest first, up to ``MAX_LINKS`` in all, and no
                more than have room where the job has many sites.
            sites: how many the job has.

        Raises:
            RoundRefused: the round is not reserved, or a head is not this ledger's.
            InvalidInput: this site's key is not the one that signed last.
        """
        with self._journal.reading() as db:
            found = self._journal.account.rounds.get((job_sha256, round_))
            if found is None:
                raise RoundRefused(f"round {round_} must be reserved to be shown, got none")
            chain = self._journal.chain
            own = _own_heads(db, self._home.site)
            if prove and not is_ours(chain, prove[0]):
                raise RoundRefused(
                    f"ledger must go on from the {prove[0].size} entries that the server "
                    f"confirmed, got others or fewer"
                )
            links = _links(chain, [*prove, *_unasked(own, prove, job_sha256)])
            proof = self._proof(db, found.seq, prove[0] if prove else None)
            charge = SignedCharge(**proof, also=tuple(links[1:] if prove else links))
            return fitted(charge, sites)

    def ending(self, job_sha256: str, prove: Sequence[HeadOf]) -> SignedEnding | None:
        """The entry that ended a job, with all that the job was charged, under the head of now.

        ``None`` where there is none, or where ``prove`` begins with a head that is not this
        ledger's: the job has ended all the same.
        """
        with self._journal.reading() as db:
            job = self._journal.account.jobs.get(job_sha256)
            if job is None or job.end is None:
                return None
            if prove and not is_ours(self._journal.chain, prove[0]):
                return None
            return SignedEnding(**self._proof(db, job.end, prove[0] if prove else None))

    def _proof(self, db: sqlite3.Connection, seq: int, since: HeadOf | None) -> dict[str, Any]:
        """The fields of ``SignedEntry`` for entry ``seq``."""
        chain = self._journal.chain
        named = self._naming(since.size if since else 0, seq)
        return {
            "row": row_of(db, chain, seq),
            "head": HeadOf.of(self._journal.signed_head()),
            "since": since,
            "consistency": _links(chain, [since])[0].consistency if since else (),
            "hand_overs": tuple(row_of(db, chain, place) for place in named),
        }

    def _naming(self, since: int, seq: int) -> list[int]:
        """Entries that name the keys from a head of ``since`` entries on, or from the first."""
        named = [0, *(entry.seq for entry in self._journal.account.hand_overs)]
        if any(seq < place < since for place in named):  # the charge is by a key from before
            return named
        return [place for place in named if place >= since]

    def confirm(self, said: SignedConfirmation | Confirmation) -> tuple[str, int]:
        """Keep the server's word for a head that holds a round's charge; the job and the round.

        Raises:
            RoundRefused: it is not signed where this site has a root, is for another site, or its
                head does not hold a released round's charge.
        """
        confirmation, by = self._believed(said)
        head, job, round_ = confirmation.head, confirmation.job_sha256, confirmation.round
        with self._journal.writing("confirm") as writer:
            found, chain = self._journal.account.rounds.get((job, round_)), self._journal.chain
            if found is None or not found.charge.is_released:
                raise RoundRefused(f"round {round_} must be ready when it is confirmed, got none")
            if head.size <= found.seq or not is_ours(chain, head):
                raise RoundRefused(
                    f"confirmed head must be this ledger's with round {round_} in it, got another"
                )
            heads.prepare(writer.db)
            writer.db.execute(
                "INSERT OR REPLACE INTO confirmation VALUES (?, ?, ?)",
                (job, round_, to_bytes(said)),
            )
            known = heads.latest(writer.db, self._home.site)
            if known is None or known.size < head.size:
                state: State = "consistent" if known else "first"
                row = head_row(confirmation.site, head, confirmation.at, job, round_, by, state)
                heads.keep(writer.db, row)
        return job, round_

    def _believed(self, said: SignedConfirmation | Confirmation) -> tuple[Confirmation, str]:
        """What a confirmation says and who signed it, if this site has reason to believe it."""
        roots = roots_of(self._home)
        if isinstance(said, SignedConfirmation):
            confirmation, by = said.confirmation, pki.fingerprint(said.chain.encode())
            if roots is not None:
                verify_signed(said, roots)
        else:
            confirmation, by = said, UNSIGNED
            if roots is not None:
                raise RoundRefused("confirmation must be signed by our server, got no signature")
        if confirmation.site != self._home.site:
            raise RoundRefused(
                f"confirmation must be for site {self._home.site}, got one for {confirmation.site}"
            )
        return confirmation, by


def roots_of(home: SiteHome) -> bytes | None:
    """The roots that a site trusts; ``None`` where it has none, as in a simulation."""
    path = trust.root_path(home)
    return read_certificate(path) if exists(path) else None


def _own_heads(db: sqlite3.Connection, site: str) -> list[HeadRow]:
    """This site's confirmed heads, longest first, as many as a charge has proofs at most."""
    return heads.longest(db, site, MAX_LINKS) if heads.has_tables(db) else []


def _unasked(own: Sequence[HeadRow], prove: Sequence[HeadOf], job_sha256: str) -> list[HeadOf]:
    """Heads to prove from though the server asked for no proof from them.

    Peers know those of the job from its receipts, each of which goes on from the one before. Of a
    job's first charge nobody can say which earlier heads a peer knows, nor where the server has
    forgotten some: so that no peer takes this ledger for another, it has proofs from all.
    """
    known = [
        HeadOf(size=row.size, root=row.root, signature=row.signature, public_key=row.public_key)
        for row in own
    ]
    is_usual = prove and known and known[0].is_same(prove[0]) and own[0].job_sha256 == job_sha256
    return [] if is_usual else known


def _links(chain: Chain, since: Sequence[HeadOf]) -> list[Link]:
    """A proof from each of these heads that is this ledger's, once each, the first that fit."""
    ours: dict[tuple[int, str], HeadOf] = {}
    for head in since:
        if is_ours(chain, head):
            ours.setdefault((head.size, head.root), head)
    return [
        Link(
            since=head,
            consistency=tuple(part.hex() for part in chain.consistency_proof(head.size)),
        )
        for head in list(ours.values())[:MAX_LINKS]
    ]


def is_ours(chain: Chain, head: HeadOf) -> bool:
    """Whether a head is of this ledger's beginning."""
    return head.size <= chain.size and chain.root(head.size).hex() == head.root


def row_of(db: sqlite3.Connection, chain: Chain, seq: int) -> LedgerRow:
    """Entry ``seq``, with its proof under the head of now."""
    query = "SELECT seq, body, hash, signature FROM entry WHERE seq IN (?, ?) ORDER BY seq"
    rows = [Row(*row) for row in db.execute(query, (seq - 1, seq))]
    return LedgerRow.of(rows[-1], rows[0] if seq else None, chain)


def head_row(
    site: str, head: HeadOf, at: str, job: str, round_: int, by: str, state: State
) -> HeadRow:
    """A head as the history keeps it."""
    return HeadRow(
        site, head.size, head.root, at, job, round_, by, state, head.signature, head.public_key
    )
