"""The server's signed words about a job's rounds: a head that it confirmed, a round that it closed.

A confirmation says that the server holds a site's ledger head, durably, before anything of that
round left the site. A round's receipt says what went in, what came out, who was asked, what each
reply was and every site's charge and head; each holds the hash of the one before. Both are RFC 8785
canonical JSON under ECDSA P-256 by the server's TLS key, with a domain each, and carry the chain of
its certificate, so that a root alone is needed to check them.

Not covered: a server key that was stolen after its certificate ended and dates backwards; what
another federation under the same root was told.
"""

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Literal, TypeVar

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, StringConstraints

from common import pki
from common.config import Flag, Name, Section, Sha256, parse
from common.errors import InvalidInput, UpdateRejected
from common.privacy.charge import MAX_LINKS, HeadOf, LedgerRow, SignedCharge, SignedEnding
from common.privacy.entries import Stamp
from common.signed import Hex, Pem
from common.strict_json import parse_json

__all__ = [
    "Confirmation",
    "HeadOf",
    "LedgerRow",
    "Reply",
    "RoundReceipt",
    "ServerKey",
    "SignedCharge",
    "SignedConfirmation",
    "SignedEnding",
    "SignedReceipt",
    "fitted",
    "has_room",
    "most_charge_bytes",
    "read_charge",
    "read_confirmation",
    "read_ending",
    "read_receipt",
    "read_unsigned_confirmation",
    "read_whole",
    "to_bytes",
    "verify_signed",
]

MAX_CHARGE_BYTES = 128 * 1024
_MAX_CONFIRMATION_BYTES = 128 * 1024
MAX_SIGNED_BYTES = 32 * 1024 * 1024
_CHARGES_BYTES = 28 * 1024 * 1024  # of all in one receipt; the rest is under 1.3 KiB a site
# A proof between heads of 2^53 entries: 54 hashes in hex, beside the head that it starts from.
_MAX_LINK_BYTES = 54 * 67 + 600
MAX_DEPTH = 12  # brackets within each other; ours have eight
MAX_SITES = 10_000

Round = Annotated[int, Field(ge=1, lt=2**53)]
Earlier = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?\z")]


class Confirmation(Section):
    """The server's word that it keeps a site's head, given before that round's bytes leave."""

    veiltune_confirmation: Literal[1] = 1
    job_sha256: Sha256
    round: Round
    site: Name
    head: HeadOf
    at: Stamp


class Reply(Section):
    """What one site answered: sha256 of the content's bytes, and whether it counts."""

    site: Name
    payload_sha256: Sha256
    accepted: Flag


class RoundReceipt(Section):
    """One closed round, or the one asking for a job's counts.

    Counts have the number after the last round that the job may have, also where patience ended it
    earlier; ``input_sha256`` and ``output_sha256`` are then both of the adapter that was kept, and
    ``replies`` are the counts that were taken.

    Attributes:
        job_sha256: the job's.
        round: its number, from 1.
        closed_at: by the server's clock.
        before: sha256 of the receipt before it (``SignedReceipt.sha256``); empty for the first.
        input_sha256: of the global adapter that went in.
        output_sha256: of the one that came out.
        asked: every site that was asked, sorted; one that was silent counts as charged.
        replies: updates that arrived, by site.
        charges: the charge of each site whose head was confirmed in this round.
        heads: the latest confirmed head of each of the job's sites.
    """

    veiltune_round_receipt: Literal[1] = 1
    job_sha256: Sha256
    round: Round
    closed_at: Stamp
    before: Earlier
    input_sha256: Sha256
    output_sha256: Sha256
    asked: Annotated[tuple[Name, ...], Field(max_length=MAX_SITES)]
    replies: Annotated[tuple[Reply, ...], Field(max_length=MAX_SITES)]
    charges: Annotated[dict[Name, SignedCharge], Field(max_length=MAX_SITES)]
    heads: Annotated[dict[Name, HeadOf], Field(max_length=MAX_SITES)]


class _Signed(Section):
    """``chain``: the server's certificate (PEM), leaf first, then its intermediate."""

    signature: Hex
    chain: Pem


class SignedConfirmation(_Signed):
    """A confirmation under the server's signature."""

    confirmation: Confirmation


class SignedReceipt(_Signed):
    """A round's receipt under the server's signature."""

    receipt: RoundReceipt

    @property
    def sha256(self) -> str:
        """What the next receipt calls this one by: of its canonical bytes, signature and all."""
        return hashlib.sha256(to_bytes(self)).hexdigest()


_DOMAINS: dict[type[Section], bytes] = {
    RoundReceipt: b"veiltune round receipt v1\n",
    Confirmation: b"veiltune head confirmation v1\n",
}


class ServerKey:
    """The server's TLS key, as it signs receipts and confirmations.

    Args:
        chain: its certificate (PEM), leaf first, then its intermediate.
        key: the leaf's private key (PEM).

    Raises:
        InvalidInput: the key is not the certificate's.
    """

    def __init__(self, chain: bytes, key: bytes) -> None:
        self._key = pki.load_key(key)
        self._chain = chain.decode()
        if self._key.public_key() != pki.leaf_key(chain):
            raise InvalidInput("server key must be that of its certificate, got another")

    def sign_receipt(self, receipt: RoundReceipt) -> SignedReceipt:
        """The receipt under this key."""
        return SignedReceipt(receipt=receipt, signature=self._sign(receipt), chain=self._chain)

    def confirm(self, confirmation: Confirmation) -> SignedConfirmation:
        """The confirmation under this key."""
        return SignedConfirmation(
            confirmation=confirmation, signature=self._sign(confirmation), chain=self._chain
        )

    def _sign(self, document: Section) -> str:
        return self._key.sign(_message(document), ec.ECDSA(hashes.SHA256())).hex()


def most_charge_bytes(sites: int) -> int:
    """How long a charge of a job of so many sites may be: all of them fit one receipt.

    >>> most_charge_bytes(4), most_charge_bytes(1500)
    (131072, 19573)
    """
    return min(MAX_CHARGE_BYTES, _CHARGES_BYTES // max(sites, 1))


def fitted(charge: SignedCharge, sites: int) -> SignedCharge:
    """The charge without those of its further proofs that have no room, the last ones first."""
    size, most, kept = len(to_bytes(charge)), most_charge_bytes(sites), list(charge.also)
    while size > most and kept:
        size -= len(to_bytes(kept.pop())) + 1  # and a comma
    return charge.model_copy(update={"also": tuple(kept)})


def has_room(charge: SignedCharge, sites: int) -> bool:
    """Whether one more proof would have fitted, however long it is."""
    size = len(to_bytes(charge)) + _MAX_LINK_BYTES
    return len(charge.links) < MAX_LINKS and size <= most_charge_bytes(sites)


def to_bytes(document: Section) -> bytes:
    """The RFC 8785 canonical JSON of a charge, a receipt or a confirmation."""
    return rfc8785.dumps(document.model_dump(mode="json"))


def read_charge(data: bytes) -> SignedCharge:
    """Parse what a site sent as its charge; signatures are not checked.

    Raises:
        UpdateRejected: too large, no charge, or not in canonical form.
    """
    return read_whole(SignedCharge, data, "charge", MAX_CHARGE_BYTES)


def read_ending(data: bytes) -> SignedEnding:
    """Parse a site's last word on a job; signatures are not checked.

    Raises:
        UpdateRejected: as ``read_charge``.
    """
    return read_whole(SignedEnding, data, "ending", MAX_CHARGE_BYTES)


def read_receipt(data: bytes) -> SignedReceipt:
    """Parse a signed receipt; the signature is not checked.

    Raises:
        UpdateRejected: too large, too deep, no receipt, or not in canonical form.
    """
    return read_whole(SignedReceipt, data, "receipt", MAX_SIGNED_BYTES)


def read_confirmation(data: bytes) -> SignedConfirmation:
    """Parse a signed confirmation; the signature is not checked.

    Raises:
        UpdateRejected: as ``read_receipt``.
    """
    return read_whole(SignedConfirmation, data, "confirmation", _MAX_CONFIRMATION_BYTES)


def read_unsigned_confirmation(data: bytes) -> Confirmation:
    """Parse a confirmation of a server that has no key.

    Raises:
        UpdateRejected: as ``read_receipt``.
    """
    return read_whole(Confirmation, data, "confirmation", _MAX_CONFIRMATION_BYTES)


def verify_signed(signed: SignedReceipt | SignedConfirmation, roots: bytes) -> None:
    """Check the signature, and that its certificate led to one of ``roots`` (PEM) at the time.

    Raises:
        UpdateRejected: another signature, no server's certificate, or one of another root.
    """
    document: Section
    if isinstance(signed, SignedReceipt):
        document, said_at, name = signed.receipt, signed.receipt.closed_at, "receipt"
    else:
        document, said_at, name = signed.confirmation, signed.confirmation.at, "confirmation"
    try:
        moment = datetime.strptime(said_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        chain = signed.chain.encode()
        host = next(iter(pki.hosts_of(chain)), "localhost")
        pki.check_server_chain(chain, roots, host, now=moment)
        key, signature = pki.leaf_key(chain), bytes.fromhex(signed.signature)
        key.verify(signature, _message(document), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise UpdateRejected(f"{name} must be signed by its server's key, got another") from error
    except (InvalidInput, ValueError) as error:
        raise UpdateRejected(f"{name} must be signed by our server, got: {error}") from error


def _message(document: Section) -> bytes:
    return _DOMAINS[type(document)] + to_bytes(document)


AnyKind = TypeVar("AnyKind", bound=Section)


def read_whole(kind: type[AnyKind], data: bytes, name: str, most: int) -> AnyKind:
    """Parse canonical JSON of at most ``most`` bytes; ``name`` is how errors call it.

    Raises:
        UpdateRejected: too large, too deep, not of the schema, or not in canonical form.
    """
    if len(data) > most:
        raise UpdateRejected(f"{name} must be at most {most} bytes, got {len(data)}")
    if _depth(data) > MAX_DEPTH:
        raise UpdateRejected(f"{name} must nest at most {MAX_DEPTH} levels, got more")
    try:
        found = parse(kind, parse_json(data), name)
    except (ValueError, TypeError) as error:
        raise UpdateRejected(f"{name} must keep to its schema, got: {str(error)[:300]}") from error
    if to_bytes(found) != data:
        raise UpdateRejected(f"{name} must be canonical JSON, got another form")
    return found


# Strings are passed over whole, so that no bracket in one counts.
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{\]}]', re.DOTALL)


def _depth(data: bytes) -> int:
    """Brackets within each other."""
    depth = deepest = 0
    for found in _BRACKETS.findall(data):
        if found in b"[{":
            depth += 1
        elif found in b"]}":
            depth -= 1
        deepest = max(deepest, depth)
    return deepest
