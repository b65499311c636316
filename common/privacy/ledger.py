"""The chain of a site's entries: each signed, each bound to all before it, one root over all.

hash_i = sha256(domain || hash_(i-1) || body_i), signed with ECDSA P-256 by the site's key. A byte
that is changed, an entry that is missing, moved or put between breaks the chain at its number. A
signed head (size, RFC 9162 root) lets somebody else remember how far the ledger had come.

A new key is named by an entry that it signs itself, so that entry says why it is the site's: the
key before signed it over, or a person accepted it. An entry that says neither is read only where an
earlier version may have written it: in a ledger that such a version began, before the first entry
that does.

Not covered: entries cut off at the end, or an older copy put back, which no chain can show without
a head that was kept elsewhere; an owner of the key who writes another history before any head is;
whether the last key is the site's (the caller knows that key).
"""

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from common.errors import InvalidInput, LedgerBroken
from common.privacy import merkle
from common.privacy.entries import AnyEntry, Created, Rekeyed, read_entry

ENTRY_DOMAIN = b"veiltune ledger entry v1\n"
SIGNATURE_DOMAIN = b"veiltune ledger signature v1\n"
HEAD_DOMAIN = b"veiltune ledger head v1\n"
HAND_OVER_DOMAIN = b"veiltune ledger hand-over v1\n"
WITNESSED = "witnessed"  # the record of a message that holds the last head its sender saw
_BEFORE_ALL = bytes(32)
_SHA256 = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored: its number, canonical body, hash (32 bytes) and signature (DER)."""

    seq: int
    body: bytes
    hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """A site's word for the first ``size`` entries; hashes, signature and key (DER) in hex."""

    size: int
    root: str
    signature: str
    public_key: str

    def is_signed(self) -> bool:
        """Whether the key that it names signed it; whose key that is, is not asked here."""
        try:
            signed, root = bytes.fromhex(self.signature), bytes.fromhex(self.root)
            key = load_public(self.public_key)
            said = _head_bytes(self.size, root)
        except (ValueError, OverflowError):  # the latter from a size that no ledger has
            return False
        return _is_signed(key, signed, said)


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the next entry goes: its number, the hash before it, and the key (hex) that signs."""

    seq: int
    before: bytes
    public_key: str

    def row(self, body: bytes, key: ec.EllipticCurvePrivateKey) -> Row:
        """The signed row of a body."""
        digest = _entry_hash(self.before, body)
        return Row(self.seq, body, digest, key.sign(SIGNATURE_DOMAIN + digest, _SHA256))

    def endorse(self, public_key: str, key: ec.EllipticCurvePrivateKey) -> str:
        """The signature (hex) with which ``key`` hands over to another, here and nowhere else."""
        return key.sign(_hand_over_bytes(self.before, public_key), _SHA256).hex()

    def after(self, row: Row, public_key: str) -> "Tail":
        """Where the entry after ``row`` goes."""
        return Tail(row.seq + 1, row.hash, public_key)


class Chain:
    """The entries that were read and found whole, oldest first."""

    def __init__(self) -> None:
        self._hashes: list[bytes] = []
        self._leaves: list[bytes] = []
        self._keys: list[str] = []
        self._key: ec.EllipticCurvePublicKey | None = None
        self._binds_keys = False

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self._hashes)

    @property
    def keys(self) -> tuple[str, ...]:
        """The public keys (DER, hex) that signed, in order; the last one signs now."""
        return tuple(self._keys)

    def root(self, size: int | None = None) -> bytes:
        """The RFC 9162 root over the hashes of the first ``size`` entries, by default all."""
        return merkle.root(self._leaves[:size])

    def inclusion_proof(self, seq: int) -> list[bytes]:
        """That entry ``seq`` is under the root (common/privacy/merkle.py)."""
        return merkle.inclusion_proof(self._leaves, seq)

    def consistency_proof(self, old_size: int) -> list[bytes]:
        """That the ledger of ``old_size`` entries begins this one."""
        return merkle.consistency_proof(self._leaves, old_size)

    def head(self, key: ec.EllipticCurvePrivateKey) -> Head:
        """The head of now, signed with ``key``."""
        root = self.root()
        signature = key.sign(_head_bytes(self.size, root), _SHA256)
        return Head(self.size, root.hex(), signature.hex(), public_hex(key))

    @property
    def tail(self) -> "Tail":
        """Where the next entry goes."""
        return Tail(self.size, self._last, self._keys[-1] if self._keys else "")

    def extend(self, row: Row) -> AnyEntry:
        """Check the row after the last one and take it in.

        Raises:
            LedgerBroken: it is not the next row that this site's key signed.
        """
        entry = self.check(row)
        self.take(row, entry)
        return entry

    def check(self, row: Row) -> AnyEntry:
        """The entry of the row after the last one, which is not taken in yet.

        Raises:
            LedgerBroken: it is not the next row that this site's key signed.
        """
        if not all(isinstance(part, bytes) for part in (row.body, row.hash, row.signature)):
            raise LedgerBroken(f"ledger entry {self.size} must be bytes, got another type")
        if row.seq != self.size:
            raise LedgerBroken(f"ledger entry {self.size} must be there, got entry {row.seq}")
        if row.hash != _entry_hash(self._last, row.body):
            raise LedgerBroken(f"ledger entry {row.seq} must match its hash, got other bytes")
        entry = read_entry(row.body, row.seq)
        if entry.seq != row.seq:
            raise LedgerBroken(f"ledger entry {row.seq} must say its number, got {entry.seq}")
        key = self._key_for(entry)
        if not _is_signed(key, row.signature, SIGNATURE_DOMAIN + row.hash):
            raise LedgerBroken(f"ledger entry {row.seq} must be signed by its key, got another's")
        return entry

    def take(self, row: Row, entry: AnyEntry) -> None:
        """Take in a row that was checked."""
        if isinstance(entry, Created | Rekeyed):
            self._key = load_public(entry.public_key)
            self._keys.append(entry.public_key)
            self._binds_keys |= (
                entry.binds_keys
                if isinstance(entry, Created)
                else bool(entry.endorsement or entry.accepted_by)
            )
        self._hashes.append(row.hash)
        self._leaves.append(merkle.leaf_hash(row.hash))

    def require_last(self, row: Row | None) -> None:
        """Check that a row read again is the last one of this chain, or absent with none.

        Raises:
            LedgerBroken: the ledger was replaced or cut since it was read.
        """
        if self.size and (row is None or (row.seq, row.hash) != (self.size - 1, self._last)):
            raise LedgerBroken(
                f"ledger entry {self.size - 1} must be the one read before, got another or none"
            )

    @property
    def _last(self) -> bytes:
        return self._hashes[-1] if self._hashes else _BEFORE_ALL

    def _key_for(self, entry: AnyEntry) -> ec.EllipticCurvePublicKey:
        if isinstance(entry, Created) != (entry.seq == 0):
            raise LedgerBroken(
                f"ledger entry {entry.seq} must be of another kind, got {entry.kind}"
            )
        if isinstance(entry, Rekeyed):
            self._require_hand_over(entry)
        if isinstance(entry, Created | Rekeyed):
            try:
                return load_public(entry.public_key)
            except InvalidInput as error:
                raise LedgerBroken(f"ledger entry {entry.seq}: {error}") from error
        if self._key is None:
            raise LedgerBroken(f"ledger entry {entry.seq} must follow a key, got none")
        return self._key

    def _require_hand_over(self, entry: Rekeyed) -> None:
        if self._key is not None and entry.endorsement:
            said = _hand_over_bytes(self._last, entry.public_key)
            if not _is_signed(self._key, bytes.fromhex(entry.endorsement), said):
                raise LedgerBroken(
                    f"ledger entry {entry.seq} must be endorsed by the key before, got another's "
                    f"signature"
                )
        elif self._binds_keys and not entry.accepted_by:
            raise LedgerBroken(
                f"ledger entry {entry.seq} must name a key that the one before or a person "
                f"endorsed, got one that nobody did"
            )


def row_hash(before: bytes, body: bytes) -> bytes:
    """The hash of an entry after the one of hash ``before``; zeros before the first."""
    return _entry_hash(before, body)


def is_row_signed(public_key: str, digest: bytes, signature: bytes) -> bool:
    """Whether that key (DER, hex) signed the entry of this hash."""
    try:
        return _is_signed(load_public(public_key), signature, SIGNATURE_DOMAIN + digest)
    except InvalidInput:
        return False


def is_handed_over(old: str, before: bytes, entry: Rekeyed) -> bool:
    """Whether the key before signed the new one over, or a person accepted it.

    ``old`` is the key before (DER, hex), ``before`` the hash of the entry before.
    """
    if not entry.endorsement:
        return bool(entry.accepted_by)
    try:
        said = _hand_over_bytes(before, entry.public_key)
        return _is_signed(load_public(old), bytes.fromhex(entry.endorsement), said)
    except (InvalidInput, ValueError):
        return False


def public_hex(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half as entries and heads name it: SubjectPublicKeyInfo (DER), hex."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der.hex()


def _entry_hash(before: bytes, body: bytes) -> bytes:
    return hashlib.sha256(ENTRY_DOMAIN + before + body).digest()


def _head_bytes(size: int, root: bytes) -> bytes:
    return HEAD_DOMAIN + size.to_bytes(8, "big") + root


def _hand_over_bytes(before: bytes, public_key: str) -> bytes:
    """It holds at one place of one ledger: after the entry of that hash."""
    return HAND_OVER_DOMAIN + before + bytes.fromhex(public_key)


def _is_signed(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data, _SHA256)
    except (InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def load_public(public_key: str) -> ec.EllipticCurvePublicKey:
    """The key that entries and heads name so.

    Raises:
        InvalidInput: no P-256 key.
    """
    try:
        key = load_der_public_key(bytes.fromhex(public_key))
    except (ValueError, UnsupportedAlgorithm) as error:  # the latter for what OpenSSL has no name
        raise InvalidInput("public key must be a P-256 key (DER), got none") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("public key must be a P-256 key, got another")
    return key
