"""Reading certificates: whose they are, how long they last, whether a root vouches for them.

Chains are built by cryptography's verifier (RFC 5280 with the CA/Browser Forum's profile), which
says no without saying why; the reasons in words are worked out here, after it has refused.

Not covered: revocation (server/roster.py); CRL and OCSP.
"""

import datetime as dt
import ipaddress
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from common.address import check_host, is_ip
from common.config import check_name
from common.errors import InvalidInput
from common.files import read_file
from common.keys import MAX_PEM_BYTES

SERVER_URI = "veiltune://server"
SITE_URI = "veiltune://site/"

# What reading an extension of somebody's certificate may raise.
UNREADABLE = (
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    ValueError,
)


def site_uri(site: str) -> str:
    """The URI by which certificates name ``site``."""
    return SITE_URI + check_name("site", site)


def read_identity(certificate: bytes | x509.Certificate) -> str:
    """The site that a certificate names: its one subject alternative name, a site's URI.

    Raises:
        InvalidInput: no alternative name, several, one of another kind, or no site's URI.
    """
    leaf = _leaf(certificate)
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE as error:
        raise InvalidInput("certificate must name a site, got no name that can be read") from error
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(names) != 1 or len(uris) != 1 or not uris[0].startswith(SITE_URI):
        got = ", ".join(str(name.value)[:80] for name in list(names)[:3])
        raise InvalidInput(f"certificate must name one site as {SITE_URI}NAME, got {got!r}")
    return check_name("site", uris[0].removeprefix(SITE_URI))


def days_left(certificate: bytes | x509.Certificate, *, now: dt.datetime | None = None) -> int:
    """Whole days until ``certificate`` expires; negative once it has."""
    return (_leaf(certificate).not_valid_after_utc - (now or dt.datetime.now(dt.UTC))).days


def renewal_time(certificate: bytes | x509.Certificate) -> dt.datetime:
    """When to renew ``certificate``: from 2/3 of its life on, up to 1/24 of it later.

    The certificate's own hash says how much later, so that sites enrolled on one day do not all ask
    at once, and a process that starts again finds the same moment.
    """
    leaf = _leaf(certificate)
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    spread = int.from_bytes(leaf.fingerprint(hashes.SHA256())[:4], "big") / 2**32
    return leaf.not_valid_before_utc + life * (2 / 3 + spread / 24)


def fingerprint(certificate: bytes | x509.Certificate) -> str:
    """sha256 of the (first) certificate, hex: what two people compare over the telephone."""
    return _leaf(certificate).fingerprint(hashes.SHA256()).hex()


def leaf_key(certificate: bytes | x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The public key of the (first) certificate.

    Raises:
        InvalidInput: it is no elliptic-curve key, or no key at all.
    """
    try:
        key: object = _leaf(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput("certificate must hold an ECDSA P-256 key, got none") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInput("certificate must hold an ECDSA P-256 key, got another")
    return key


def hosts_of(certificate: bytes | x509.Certificate) -> tuple[str, ...]:
    """The DNS names and addresses that a server's certificate is for; empty if none can be read."""
    leaf = _leaf(certificate)
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE:
        return ()
    kinds = (x509.DNSName, x509.IPAddress)
    return tuple(str(name.value) for name in names if isinstance(name, kinds))


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM file, in order.

    Raises:
        InvalidInput: there is none, or one cannot be parsed.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise InvalidInput("certificate must be X.509 in PEM, got something else") from error


def to_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def read_certificate(path: Path) -> bytes:
    """The PEM of a certificate file, parsed once to see that it is one.

    Raises:
        InvalidInput: unreadable, too large, or no certificate.
    """
    pem = read_file(path, max_bytes=MAX_PEM_BYTES)
    load_certificates(pem)
    return pem


def check_site_chain(chain_pem: bytes, root_pem: bytes, *, now: dt.datetime | None = None) -> str:
    """The site whose certificate chain leads to the root, for use as a client, today.

    Args:
        chain_pem: leaf first, then its intermediates.
        root_pem: the root that is trusted, or both while one follows the other.
        now: the moment to check at.

    Raises:
        InvalidInput: expired, not yet valid, of another root, for another purpose, or no site's.
    """
    chain, store = load_certificates(chain_pem), _store(root_pem)
    moment = now or dt.datetime.now(dt.UTC)
    verifier = verification.PolicyBuilder().store(store).time(moment).build_client_verifier()
    try:
        verifier.verify(chain[0], chain[1:])
    except (verification.VerificationError, ValueError) as error:
        why = _why_not(chain, root_pem, ExtendedKeyUsageOID.CLIENT_AUTH, moment)
        raise InvalidInput(why or f"site certificate must be valid, got: {error}") from error
    return read_identity(chain[0])


def check_server_chain(
    chain_pem: bytes, root_pem: bytes, host: str, *, now: dt.datetime | None = None
) -> None:
    """Check that a server's chain leads to the root, for ``host``, today.

    Raises:
        InvalidInput: as ``check_site_chain``; also a certificate for other hosts.
    """
    chain, store = load_certificates(chain_pem), _store(root_pem)
    moment = now or dt.datetime.now(dt.UTC)
    builder = verification.PolicyBuilder().store(store).time(moment)
    try:
        builder.build_server_verifier(_verified_name(host)).verify(chain[0], chain[1:])
    except (verification.VerificationError, ValueError) as error:
        why = _why_not(chain, root_pem, ExtendedKeyUsageOID.SERVER_AUTH, moment)
        raise InvalidInput(
            why or f"server certificate must be for {host}, got one for {_list(hosts_of(chain[0]))}"
        ) from error


def _store(root_pem: bytes) -> verification.Store:
    return verification.Store(load_certificates(root_pem))


def _verified_name(host: str) -> verification.Subject:
    if is_ip(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(check_host(host))


def _why_not(
    chain: list[x509.Certificate],
    root_pem: bytes,
    purpose: x509.ObjectIdentifier,
    moment: dt.datetime,
) -> str:
    """The first of the usual reasons that holds; empty when none does."""
    kind = "site" if purpose == ExtendedKeyUsageOID.CLIENT_AUTH else "server"
    if not _leads_to(chain, load_certificates(root_pem)):
        return f"{kind} certificate must be issued under our root, got one of another root"
    for certificate in (*chain, *load_certificates(root_pem)):
        name = f"{kind} certificate" if certificate is chain[0] else "its issuer's certificate"
        if certificate.not_valid_after_utc < moment:
            expired = certificate.not_valid_after_utc
            return f"{name} must be valid today, got one that expired on {expired:%Y-%m-%d}"
        if certificate.not_valid_before_utc > moment:
            start = certificate.not_valid_before_utc
            return f"{name} must be valid today, got one that is not valid before {start:%Y-%m-%d}"
    if purpose not in _purposes(chain[0]):
        return f"{kind} certificate must be for use as a {kind}, got one for another purpose"
    return ""


def _leads_to(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> bool:
    """Whether each certificate is signed by the next, and the last by a root."""
    if not all(_issued(above, below) for below, above in pairwise(chain)):
        return False
    return any(_issued(root, chain[-1]) for root in roots)


def _issued(above: x509.Certificate, below: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except UNREADABLE:
        return []


def _list(hosts: tuple[str, ...]) -> str:
    return ", ".join(hosts) or "none"


def _leaf(certificate: bytes | x509.Certificate) -> x509.Certificate:
    if isinstance(certificate, x509.Certificate):
        return certificate
    return load_certificates(certificate)[0]
