"""Documents that a root signs: JSON in canonical form (RFC 8785), ECDSA P-256 over its bytes.

Each kind has a domain of its own under the signature, so that none can be taken for another. The
root's key signs nothing else but certificates, whose bytes begin differently (DER).

Not covered: what a document means; how often one may be replaced by an older one (client/trust.py).
"""

from typing import Annotated, Any, Literal, TypeVar

import rfc8785
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, Field, StringConstraints

from common import pki
from common.config import Name, Section, Sha256, Whole, parse
from common.errors import InvalidInput, Refusal
from common.strict_json import parse_json

MAX_DOCUMENT_BYTES = 256 * 1024  # three of them fit one frame of the link

Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,80}\z")]
Serial = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,40}\z")]
Pem = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e\r\n]+\z", max_length=64 * 1024)]


class Document(Section):
    """What every kind begins with; ``root``: sha256 of the root whose key signs."""

    root: Sha256
    federation: Name


class SignedRoster(Document):
    """Who takes part: each site's name and the keys (sha256) that were admitted for it.

    Keys and not serial numbers, because certificates are renewed every month by the online
    intermediate and keys are not. Serial numbers that were revoked stand in ``denied``.
    """

    veiltune_roster: Literal[1] = 1
    sequence: Whole = Field(ge=1)
    signed_at: AwareDatetime
    sites: dict[Name, tuple[Sha256, ...]]
    denied: tuple[Serial, ...] = ()


class Handover(Document):
    """The word of ``root`` for another root (PEM) that sites are to trust beside it."""

    veiltune_handover: Literal[1] = 1
    successor: Pem


class Retirement(Document):
    """The word of ``root`` that the one before it (sha256) is to be trusted no more."""

    veiltune_retirement: Literal[1] = 1
    retired: Sha256


class _Envelope(Section):
    document: dict[str, object]
    signature: Hex


Kind = TypeVar("Kind", SignedRoster, Handover, Retirement)


def sign(document: Document, root: pki.Credential) -> bytes:
    """The document and its signature, as JSON.

    Raises:
        InvalidInput: the key is not the root's, or the document names another root.
    """
    key = pki.load_key(root.key)
    if key.public_key() != pki.leaf_key(root.certificate):
        raise InvalidInput("signing key must be the root's, got another")
    if document.root != pki.fingerprint(root.certificate):
        raise InvalidInput(f"document must be of this root, got one of {document.root[:16]}...")
    content = document.model_dump(mode="json")
    signature = key.sign(_message(document, content), ec.ECDSA(hashes.SHA256()))
    return rfc8785.dumps({"document": content, "signature": signature.hex()}) + b"\n"


def read(kind: type[Kind], data: bytes) -> Kind:
    """Parse what ``sign`` made; checks the schema, not the signature.

    Raises:
        Refusal: too large, malformed, or of another kind.
    """
    return _open(kind, data)[0]


def verify(kind: type[Kind], data: bytes, roots: bytes) -> Kind:
    """The document, if one of ``roots`` (PEM) signed it.

    Raises:
        Refusal: too large, malformed, of another kind, of no root here, or edited after signing.
    """
    document, content, signature = _open(kind, data)
    root = _named(document.root, roots)
    if root is None:
        raise Refusal(
            f"{_name(kind)} must be signed by a root that is trusted, "
            f"got one of {document.root[:16]}..."
        )
    try:
        message = _message(document, content)
        pki.leaf_key(root).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, rfc8785.CanonicalizationError) as error:
        raise Refusal(
            f"{_name(kind)} must be signed by the root it names, got another signature "
            "(edited after signing?)"
        ) from error
    return document


def _open(kind: type[Kind], data: bytes) -> tuple[Kind, dict[str, object], bytes]:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise Refusal(f"{_name(kind)} must be at most {MAX_DOCUMENT_BYTES} bytes, got {len(data)}")
    try:
        content = parse_json(data)
        envelope = parse(_Envelope, content, _name(kind))
        document = parse(kind, envelope.document, _name(kind))
    except (ValueError, TypeError) as error:
        raise Refusal(f"{_name(kind)} must be a signed document, got: {error}") from error
    return document, envelope.document, bytes.fromhex(envelope.signature)


def _message(document: Document, content: dict[str, Any]) -> bytes:
    return f"veiltune {_name(type(document))} v1\n".encode() + rfc8785.dumps(content)


def _named(sha256: str, roots: bytes) -> x509.Certificate | None:
    known = pki.load_certificates(roots)
    return next((root for root in known if pki.fingerprint(root) == sha256), None)


def _name(kind: type[Document]) -> str:
    return {SignedRoster: "roster", Handover: "handover", Retirement: "retirement"}[kind]
