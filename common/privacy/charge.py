"""A site's signed charge: one ``reserved`` entry of its ledger, shown without the rest of it.

The entry comes with its place under a signed head (RFC 9162 inclusion) and with the proof that this
head goes on from the one that was witnessed before (consistency). Where the site's key changed in
between, the ``rekeyed`` entries come too, so that the new key is the ledger's own word.

Not covered: whose key a head names (the caller knows the keys that were admitted); what the other
entries say, which stay salted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

from pydantic import Field, StringConstraints

from common.config import Section, Sha256
from common.errors import InvalidInput, LedgerBroken, UpdateRejected
from common.privacy import merkle
from common.privacy.entries import (
    AnyEntry,
    Closed,
    Count,
    Created,
    PublicKeyDer,
    Rekeyed,
    Reserved,
    SignatureDer,
    read_entry,
)
from common.privacy.ledger import Chain, Head, Row, is_handed_over, is_row_signed, row_hash

MAX_BODY_CHARACTERS = 8 * 1024
MAX_HAND_OVERS = 64
MAX_LINKS = 16
_BEFORE_ALL = "0" * 64

Proof = Annotated[tuple[Sha256, ...], Field(max_length=64)]  # a tree of 2^63 leaves at most


class HeadOf(Section):
    """A site's word for the first ``size`` entries of its ledger (common/privacy/ledger.Head)."""

    size: Annotated[int, Field(ge=1, lt=2**53)]
    root: Sha256
    signature: SignatureDer
    public_key: PublicKeyDer

    @classmethod
    def of(cls, head: Head) -> "HeadOf":
        """The same head as the ledger makes it."""
        return cls(**asdict(head))

    @property
    def head(self) -> Head:
        """The same head as the ledger reads it."""
        return Head(self.size, self.root, self.signature, self.public_key)

    def is_same(self, other: "HeadOf | None") -> bool:
        """Whether it speaks of the same entries; signatures differ each time."""
        return other is not None and (self.size, self.root) == (other.size, other.root)


class LedgerRow(Section):
    """An entry as it stands in the ledger, with its place under a head.

    Attributes:
        seq: its number, from 0.
        before: hash of the entry before it; zeros for the first.
        body: RFC 8785 canonical JSON of the entry.
        hash: sha256 over domain, ``before`` and ``body``.
        signature: ECDSA P-256 by the site's key of then.
        inclusion: RFC 9162 inclusion proof under the head that it comes with, lowest first.
    """

    seq: Count
    before: Sha256
    body: Annotated[str, StringConstraints(max_length=MAX_BODY_CHARACTERS)]
    hash: Sha256
    signature: SignatureDer
    inclusion: Proof

    @classmethod
    def of(cls, row: Row, before: Row | None, chain: Chain) -> "LedgerRow":
        """A row of the ledger that ``chain`` has taken in, after the row ``before``."""
        return cls(
            seq=row.seq,
            before=before.hash.hex() if before else _BEFORE_ALL,
            body=row.body.decode(),
            hash=row.hash.hex(),
            signature=row.signature.hex(),
            inclusion=tuple(part.hex() for part in chain.inclusion_proof(row.seq)),
        )


class Link(Section):
    """That a head goes on from an earlier one: RFC 9162 consistency proof, in hex."""

    since: HeadOf
    consistency: Proof


class SignedEntry(Section):
    """An entry of a site's ledger, as the site proves it.

    Attributes:
        row: the entry.
        head: the ledger's head under which it stands.
        since: the head of this site that was confirmed before; ``None`` for the first.
        consistency: RFC 9162 proof from ``since`` to ``head``; empty without ``since``.
        hand_overs: every entry from ``since`` to ``head`` that named a key, oldest first; without
            ``since``, or where the key changed between the charge and a later ``since``, all from
            the ledger's first entry on.
        also: proofs from other heads, by which somebody who missed some may know this ledger.
    """

    row: LedgerRow
    head: HeadOf
    since: HeadOf | None = None
    consistency: Proof = ()
    hand_overs: Annotated[tuple[LedgerRow, ...], Field(max_length=MAX_HAND_OVERS)] = ()
    also: Annotated[tuple[Link, ...], Field(max_length=MAX_LINKS)] = ()

    @property
    def links(self) -> tuple[Link, ...]:
        """Every proof, with the head that it starts from."""
        if self.since is None:
            return self.also
        return (Link(since=self.since, consistency=self.consistency), *self.also)

    @property
    def named(self) -> Iterator[Created | Rekeyed]:
        """The entries that named a key, of those that are shown.

        Raises:
            UpdateRejected: one cannot be read.
        """
        entries = (_entry(row) for row in self.hand_overs)
        return (entry for entry in entries if isinstance(entry, Created | Rekeyed))


class SignedCharge(SignedEntry):
    """A round's charge: its row is the ``reserved`` entry."""

    @property
    def reserved(self) -> Reserved:
        """What the entry says.

        Raises:
            UpdateRejected: it is no ``reserved`` entry.
        """
        entry = _entry(self.row)
        if not isinstance(entry, Reserved):
            raise UpdateRejected(f"charge must be a reserved entry, got one {entry.kind}")
        return entry


class SignedEnding(SignedEntry):
    """A site's last word on a job, all that the job was charged: its row is the ``closed`` entry.

    Not covered: a site that is away when the job ends gives none.
    """

    @property
    def closed(self) -> Closed:
        """What the entry says.

        Raises:
            UpdateRejected: it is no ``closed`` entry, or one that others may follow.
        """
        entry = _entry(self.row)
        if not isinstance(entry, Closed) or not entry.is_final:
            raise UpdateRejected(f"ending must be a final closed entry, got one {entry.kind}")
        return entry


def check_charge(charge: SignedCharge, is_key: Callable[[str], bool]) -> Reserved:
    """What a charge says, once its signatures and proofs were checked.

    Args:
        charge: as the site sent it.
        is_key: whether a public key (DER, hex) is one that was admitted for the site; it is asked
            for the key that signed the head.

    Raises:
        UpdateRejected: a signature, a proof or the chain of keys does not hold.
    """
    _check(charge, is_key)
    return charge.reserved


def check_ending(ending: SignedEnding, is_key: Callable[[str], bool]) -> Closed:
    """What an ending says, checked as a charge is.

    Raises:
        UpdateRejected: as ``check_charge``.
    """
    _check(ending, is_key)
    return ending.closed


def _check(charge: SignedEntry, is_key: Callable[[str], bool]) -> None:
    if not charge.head.head.is_signed():
        raise UpdateRejected("charge's head must be signed by its key, got another signature")
    if not is_key(charge.head.public_key):
        raise UpdateRejected("charge's head must be by a key admitted for the site, got another")
    _require_consistent(charge)
    keys = _keys(charge)
    _require_row(charge.row, charge.head, _key_at(keys, charge.row.seq))
    if keys[-1][1] != charge.head.public_key:
        raise UpdateRejected("charge's head must be by the ledger's last key, got another")


def _require_consistent(charge: SignedEntry) -> None:
    if charge.since is None and charge.consistency:
        raise UpdateRejected("charge must name the head that its proof is from, got none")
    for link in charge.links:
        if not link.since.head.is_signed():
            raise UpdateRejected("charge's earlier head must be signed by its key, got another")
        if not is_continued(link.since, charge.head, link.consistency):
            raise UpdateRejected(
                f"charge's head of {charge.head.size} entries must continue the one of "
                f"{link.since.size}, got no proof that it does"
            )


def is_continued(since: HeadOf, head: HeadOf, consistency: Sequence[str]) -> bool:
    """Whether the proof shows that the ledger of ``since`` begins that of ``head``."""
    proof = [bytes.fromhex(part) for part in consistency]
    old, new = bytes.fromhex(since.root), bytes.fromhex(head.root)
    return merkle.is_consistent(since.size, old, head.size, new, proof)


def _keys(charge: SignedEntry) -> list[tuple[int, str]]:
    """(first entry that it signs, key) from ``since`` to the head, checked link by link."""
    since = None if _begins(charge) else charge.since
    first = since.size if since else 0
    keys = [(0, since.public_key)] if since else []
    for row in charge.hand_overs:
        entry = _entry(row)
        if not isinstance(entry, Created | Rekeyed) or isinstance(entry, Created) != (not keys):
            raise UpdateRejected(f"charge's entry {row.seq} must name a key, got one {entry.kind}")
        if row.seq < max(first, keys[-1][0] + 1 if keys else 0):
            raise UpdateRejected(f"charge's keys must be in order, got entry {row.seq}")
        if isinstance(entry, Rekeyed) and not is_handed_over(
            keys[-1][1], bytes.fromhex(row.before), entry
        ):
            raise UpdateRejected(f"charge's key of entry {row.seq} must be endorsed, got none")
        _require_row(row, charge.head, entry.public_key)
        keys.append((row.seq, entry.public_key))
    if not keys:
        raise UpdateRejected("charge must show the entry that names its key, got none")
    if charge.since and _key_at(keys, charge.since.size - 1) != charge.since.public_key:
        raise UpdateRejected("charge's earlier head must be by the ledger's key, got another")
    return keys


def _begins(charge: SignedEntry) -> bool:
    """Whether the keys are shown from the ledger's first entry on."""
    return charge.since is None or any(row.seq == 0 for row in charge.hand_overs[:1])


def _key_at(keys: list[tuple[int, str]], seq: int) -> str:
    return next((key for first, key in reversed(keys) if first <= seq), keys[0][1])


def _require_row(row: LedgerRow, head: HeadOf, public_key: str) -> None:
    before, body, digest = bytes.fromhex(row.before), row.body.encode(), bytes.fromhex(row.hash)
    if digest != row_hash(before, body):
        raise UpdateRejected(f"charge's entry {row.seq} must match its hash, got other bytes")
    if not is_row_signed(public_key, digest, bytes.fromhex(row.signature)):
        raise UpdateRejected(f"charge's entry {row.seq} must be signed by the ledger's key")
    proof = [bytes.fromhex(part) for part in row.inclusion]
    root = bytes.fromhex(head.root)
    if not merkle.is_included(merkle.leaf_hash(digest), row.seq, head.size, proof, root):
        raise UpdateRejected(f"charge's entry {row.seq} must be under its head, got no proof of it")


def _entry(row: LedgerRow) -> AnyEntry:
    try:
        entry = read_entry(row.body.encode(), row.seq)
    except (LedgerBroken, InvalidInput) as error:
        raise UpdateRejected(f"charge must hold entries of a ledger, got: {error}") from error
    if entry.seq != row.seq:
        raise UpdateRejected(f"charge's entry {row.seq} must say its number, got {entry.seq}")
    return entry
