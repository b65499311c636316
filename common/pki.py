"""Certificates: who a site is, by X.509 (RFC 5280) with ECDSA P-256 keys.

    root (10 years, its key kept offline)
    └── intermediate (2 years, online)
        ├── server: serverAuth, its DNS names and addresses, veiltune://server, 30 days
        └── site: clientAuth, veiltune://site/<SITE>, 30 days

A site's key is made at the site and never travels: what travels is a signing request, of which
nothing but the public key and the name is taken over. Chains are built by cryptography's own
verifier; this module adds the reasons in words. Leaves are renewed at two thirds of their life
(client/upkeep.py, server/certificate.py). The operator signs jobs with Ed25519 (RFC 8032).

Not covered: revocation (server/roster.py); keys held in hardware; CRL and OCSP.
"""

import datetime as dt
import ipaddress
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.address import check_host, is_ip
from common.certificates import (
    SERVER_URI,
    check_server_chain,
    check_site_chain,
    days_left,
    fingerprint,
    hosts_of,
    leaf_key,
    load_certificates,
    read_identity,
    renewal_time,
    site_uri,
    to_pem,
)
from common.config import check_name
from common.errors import InvalidInput
from common.keys import (
    load_key,
    load_operator_key,
    new_key,
    new_operator_key,
    operator_public_hex,
    read_key,
)

# Certificates and keys have modules of their own; whoever needs identity imports this one.
__all__ = [
    "Credential",
    "check_server_chain",
    "check_site_chain",
    "create_csr",
    "create_intermediate",
    "create_root",
    "days_left",
    "fingerprint",
    "hosts_of",
    "issue_server",
    "issue_site",
    "leaf_key",
    "load_certificates",
    "load_key",
    "load_operator_key",
    "new_operator_key",
    "new_site_key_and_csr",
    "operator_public_hex",
    "organisation",
    "read_csr",
    "read_identity",
    "read_key",
    "renewal_time",
    "site_uri",
    "to_pem",
]

_ORGANISATION = NameOID.ORGANIZATION_NAME
ROOT_DAYS = 3650
INTERMEDIATE_DAYS = 730
SERVER_DAYS = 30
SITE_DAYS = 30

# Clocks of two institutions differ: a certificate is valid from a little before it was made.
_CLOCK_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate (PEM; a leaf with its intermediate after it) and its private key (PEM)."""

    certificate: bytes
    key: bytes = field(repr=False)


def create_root(name: str, *, now: dt.datetime | None = None) -> Credential:
    """A self-signed root for the federation ``name``; it signs intermediates alone."""
    return _create_authority(name, "Veiltune root", None, ROOT_DAYS, pathlen=1, now=now)


def create_intermediate(root: Credential, *, now: dt.datetime | None = None) -> Credential:
    """The online authority below ``root``; it signs leaves alone."""
    return _create_authority(
        organisation(root.certificate),
        "Veiltune intermediate",
        root,
        INTERMEDIATE_DAYS,
        pathlen=0,
        now=now,
    )


def issue_server(
    intermediate: Credential, hosts: Sequence[str], *, now: dt.datetime | None = None
) -> Credential:
    """A server's certificate for ``hosts`` (DNS names and IP addresses), with a new key.

    Raises:
        InvalidInput: no host, a malformed one, or an intermediate that has expired.
    """
    if not hosts:
        raise InvalidInput("hosts must be at least one DNS name or IP address, got none")
    key = new_key()
    public_key, purpose = load_key(key).public_key(), ExtendedKeyUsageOID.SERVER_AUTH
    names = [*map(_general_name, dict.fromkeys(hosts)), x509.UniformResourceIdentifier(SERVER_URI)]
    certificate = _issue_leaf(intermediate, public_key, "server", names, purpose, SERVER_DAYS, now)
    return Credential(certificate, key)


def new_site_key_and_csr(site: str) -> tuple[bytes, bytes]:
    """A new private key and the request for its certificate, both PEM.

    Raises:
        InvalidInput: ``site`` is no name.
    """
    key = new_key()
    return key, create_csr(site, key)


def create_csr(site: str, key_pem: bytes) -> bytes:
    """The signing request of ``site`` for the key it has.

    Raises:
        InvalidInput: ``site`` is no name, or the key is no P-256 key.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name("site", site))])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(load_key(key_pem), hashes.SHA256()).public_bytes(Encoding.PEM)


def issue_site(
    csr_pem: bytes,
    intermediate: Credential,
    *,
    days: int = SITE_DAYS,
    now: dt.datetime | None = None,
) -> bytes:
    """The certificate chain (PEM, leaf then intermediate) that a site's request asks for.

    The request gives its public key and its name; any extension or other subject in it is ignored.

    Raises:
        InvalidInput: the request is malformed, not signed by its own key, of another key type,
            or of a name that is no site's; or the intermediate has expired.
    """
    site, public_key = read_csr(csr_pem)
    uri = x509.UniformResourceIdentifier(site_uri(site))
    return _issue_leaf(
        intermediate, public_key, site, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, days, now
    )


def read_csr(csr_pem: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Name and public key of a signing request, checked.

    Raises:
        InvalidInput: as ``issue_site``.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        key = csr.public_key()
        signed = csr.is_signature_valid
        with warnings.catch_warnings(action="ignore"):  # of odd lengths, which are refused below
            names = [a.value for a in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InvalidInput("signing request must be a PKCS #10 request in PEM, got none") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("signing request must hold an ECDSA P-256 key, got another")
    if not signed:
        raise InvalidInput("signing request must be signed by its own key, got another signature")
    if len(names) != 1:
        raise InvalidInput(f"signing request must hold one common name, got {len(names)}")
    return check_name("site", str(names[0])), key


def organisation(certificate: bytes) -> str:
    """The federation that the (first) certificate names; empty for none."""
    subject = load_certificates(certificate)[0].subject
    return str(next((a.value for a in subject.get_attributes_for_oid(_ORGANISATION)), ""))


def _now(now: dt.datetime | None) -> dt.datetime:
    return now or dt.datetime.now(dt.UTC)


def _general_name(host: str) -> x509.GeneralName:
    if is_ip(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(check_host(host))


def _subject(organisation: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _create_authority(
    organisation: str,
    common_name: str,
    issuer: Credential | None,
    days: int,
    *,
    pathlen: int,
    now: dt.datetime | None,
) -> Credential:
    key = new_key()
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=pathlen), True),
        (_key_usage(authority=True), True),
    ]
    subject = _subject(check_name("federation", organisation), common_name)
    signed_by = issuer or Credential(b"", key)
    certificate = _sign(signed_by, subject, load_key(key).public_key(), extensions, days, now)
    return Credential(certificate.public_bytes(Encoding.PEM), key)


def _issue_leaf(
    issuer: Credential,
    public_key: ec.EllipticCurvePublicKey,
    common_name: str,
    names: Iterable[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    days: int,
    now: dt.datetime | None,
) -> bytes:
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(authority=False), True),
        (x509.ExtendedKeyUsage([purpose]), False),
        (x509.SubjectAlternativeName(names), False),
    ]
    above = load_certificates(issuer.certificate)[0]
    subject = _subject(organisation(issuer.certificate), common_name)
    leaf = _sign(issuer, subject, public_key, extensions, days, now)
    return leaf.public_bytes(Encoding.PEM) + above.public_bytes(Encoding.PEM)


def _sign(
    issuer: Credential,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
    days: int,
    now: dt.datetime | None,
) -> x509.Certificate:
    """Sign a certificate that does not outlive its issuer; without one, it signs itself."""
    moment = _now(now).replace(microsecond=0)
    above = load_certificates(issuer.certificate)[0] if issuer.certificate else None
    start, end = moment - _CLOCK_SKEW, moment + dt.timedelta(days=days)
    if above:
        if above.not_valid_after_utc <= moment:
            raise InvalidInput(
                "issuing certificate must be valid today, "
                f"got one that expired on {above.not_valid_after_utc:%Y-%m-%d}"
            )
        end = min(end, above.not_valid_after_utc)
    key = load_key(issuer.key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.subject if above else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, hashes.SHA256())
