"""Private keys: ECDSA P-256 for TLS, Ed25519 (RFC 8032) for the operator's signature under a job.

A key file that others than its owner could read is refused, not repaired: somebody may have.

Not covered: keys under a pass-phrase or in hardware.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from common.errors import InvalidInput
from common.files import read_private

MAX_PEM_BYTES = 64 * 1024


def new_key() -> bytes:
    """A new ECDSA P-256 key (PEM)."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Parse a TLS private key.

    Raises:
        InvalidInput: no PEM, encrypted, or no P-256 key.
    """
    key = _parse_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("private key must be an ECDSA P-256 key, got another")
    return key


def read_key(path: Path) -> bytes:
    """The PEM of a TLS private key that its owner alone may read.

    Raises:
        InvalidInput: missing, readable by others, or no P-256 key.
    """
    pem = read_private(path, max_bytes=MAX_PEM_BYTES)
    load_key(pem)
    return pem


def new_operator_key() -> bytes:
    """A new Ed25519 key (PEM) with which an operator signs jobs."""
    return _key_pem(Ed25519PrivateKey.generate())


def load_operator_key(path: Path) -> Ed25519PrivateKey:
    """The operator's signing key, from a file that its owner alone may read.

    Raises:
        InvalidInput: missing, readable by others, or no Ed25519 key.
    """
    key = _parse_key(read_private(path, max_bytes=MAX_PEM_BYTES))
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput("operator key must be an Ed25519 key, got another")
    return key


def operator_public_hex(key_pem: bytes) -> str:
    """The public half of an operator's key, as jobs and site policies name it."""
    key = _parse_key(key_pem)
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput("operator key must be an Ed25519 key, got another")
    return key.public_key().public_bytes_raw().hex()


def public_key_sha256(key: ec.EllipticCurvePublicKey) -> str:
    """sha256 of a public key (DER SubjectPublicKeyInfo), hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def _parse_key(pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInput("private key must be an unencrypted key in PEM, got none") from error


def _key_pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
