"""A simulated site's ledger, in memory: the same entries, chain and proofs as a real one's.

A server checks what comes from it as it checks any site's. Nothing of it is durable, and its key is
made for the run: it accounts for nobody's records.

Not covered: hand-overs, decisions and peers, which a simulation has none of; a process that ends.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.privacy.account import Account
from common.privacy.charge import HeadOf, LedgerRow, SignedCharge, SignedEnding
from common.privacy.entries import Created, Entry, write_entry
from common.privacy.ledger import Chain, Head, Row, public_hex


class MemoryLedger:
    """A ledger that begins with the run.

    Attributes:
        account: what its entries add up to.
    """

    def __init__(self, site: str, cap: dict[str, Any], unit: str) -> None:
        self.account = Account()
        self._chain = Chain()
        self._rows: list[Row] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        key = {"public_key": public_hex(self._key), "is_ephemeral": True}
        self.append(Created, site=site, cap=cap, unit=unit, binds_keys=True, **key)

    def append(self, model: type[Entry], **fields: object) -> None:
        """Write the next entry.

        Raises:
            InvalidInput: a field is not what the schema allows.
            LedgerBroken: the entry cannot follow those before it.
        """
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        given = {"seq": self._chain.size, "at": at, "salt": secrets.token_hex(16), **fields}
        row = self._chain.tail.row(write_entry(model, **given), self._key)
        entry = self._chain.extend(row)
        self.account.apply(entry)
        self._rows.append(row)

    def head(self) -> Head:
        """The signed head of now."""
        return self._chain.head(self._key)

    def charge(self, job_sha256: str, round_: int, prove: Sequence[HeadOf]) -> SignedCharge:
        """A round's charge under the head of now, with the proof from the head that was asked."""
        found = self.account.rounds[job_sha256, round_]
        return SignedCharge(**self._proof(found.seq, prove))

    def ending(self, job_sha256: str, prove: Sequence[HeadOf]) -> SignedEnding | None:
        """The entry that ended a job; ``None`` where there is none."""
        job = self.account.jobs.get(job_sha256)
        if job is None or job.end is None:
            return None
        return SignedEnding(**self._proof(job.end, prove))

    def _proof(self, seq: int, prove: Sequence[HeadOf]) -> dict[str, Any]:
        since = prove[0] if prove else None
        link = () if since is None else self._chain.consistency_proof(since.size)
        return {
            "row": self._row(seq),
            "head": HeadOf.of(self.head()),
            "since": since,
            "consistency": tuple(part.hex() for part in link),
            # A proof from the start on shows the entry that names the key.
            "hand_overs": () if since else (self._row(0),),
        }

    def _row(self, seq: int) -> LedgerRow:
        return LedgerRow.of(self._rows[seq], self._rows[seq - 1] if seq else None, self._chain)
