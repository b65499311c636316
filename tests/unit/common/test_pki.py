"""Certificates as OpenSSL sees them: its command line reads, verifies and refuses what we issue."""

import contextlib
import datetime as dt
import re
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from common import pki
from common.certificates import check_server_chain, check_site_chain
from common.errors import InvalidInput

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
ROOT = pki.create_root("north", now=NOW)
INTERMEDIATE = pki.create_intermediate(ROOT, now=NOW)
SERVER = pki.issue_server(INTERMEDIATE, ["fl.example.org", "192.0.2.7", "2001:db8::7"], now=NOW)
KEY, CSR = pki.new_site_key_and_csr("ward-7")
SITE = pki.issue_site(CSR, INTERMEDIATE, now=NOW)
OTHER_ROOT = pki.create_root("north", now=NOW)

HOSTILE_NAMES = [
    "../x", "..", ".", "", "a/b", "a\\b", "a\x00", "\x00", "a\n", "\na", "a b", "-rf", ".hidden",
    "A" * 64, "A" * 300, "\u0410", "\uff21", "A\u202eB", "A\u0301", "A%2f", "a:b", "~", "_a", "A\r",
]  # fmt: skip


def openssl(*words: str, stdin: bytes = b"") -> str:
    done = subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode()


def text(certificate: bytes) -> str:
    return openssl("x509", "-noout", "-text", stdin=certificate)


def verify(
    folder: Path, chain: bytes, purpose: str, *more: str, root: bytes = ROOT.certificate
) -> str:
    leaf, _, rest = chain.partition(b"-----END CERTIFICATE-----\n")
    (folder / "root.pem").write_bytes(root)
    (folder / "above.pem").write_bytes(rest)
    (folder / "leaf.pem").write_bytes(leaf + b"-----END CERTIFICATE-----\n")
    return openssl(
        *("verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(folder / "root.pem")),
        *("-untrusted", str(folder / "above.pem"), *more, str(folder / "leaf.pem")),
    )


def signed_request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request as a stranger would make it: any common name, by cryptography's builder."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def leaf_named(*names: x509.GeneralName, san: bool = True) -> bytes:
    """A self-made certificate with any alternative names."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 7, NOW, NOW + DAY)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def authority_below(issuer: pki.Credential, name: str) -> pki.Credential:
    """What a thief of ``issuer``'s key might make: an authority of his own."""
    key = pki.create_root("x").key
    above = pki.load_certificates(issuer.certificate)[0]
    names = [(NameOID.ORGANIZATION_NAME, "north"), (NameOID.COMMON_NAME, name)]
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    public_key = pki.load_key(key).public_key()
    builder = x509.CertificateBuilder(above.subject, subject, public_key, 7, NOW, NOW + DAY)
    for extension in (
        x509.BasicConstraints(ca=True, path_length=0),
        above.extensions.get_extension_for_class(x509.KeyUsage).value,
    ):
        builder = builder.add_extension(extension, critical=True)
    for identifier in (
        x509.SubjectKeyIdentifier.from_public_key(public_key),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(pki.leaf_key(above)),
    ):
        builder = builder.add_extension(identifier, critical=False)
    signed = builder.sign(pki.load_key(issuer.key), hashes.SHA256())
    return pki.Credential(signed.public_bytes(Encoding.PEM), key)


def test_openssl_accepts_a_site_as_client_alone(tmp_path: Path) -> None:
    assert verify(tmp_path, SITE, "sslclient").endswith("leaf.pem: OK\n")
    assert re.search(
        "uns(upported|uitable) certificate purpose", verify(tmp_path, SITE, "sslserver")
    )


def test_openssl_accepts_the_server_for_its_hosts_alone(tmp_path: Path) -> None:
    chain = SERVER.certificate
    for check in (
        ("-verify_hostname", "fl.example.org"),
        ("-verify_ip", "192.0.2.7"),
        ("-verify_ip", "2001:db8::7"),
    ):
        assert verify(tmp_path, chain, "sslserver", *check).endswith("leaf.pem: OK\n")
    assert "hostname mismatch" in verify(
        tmp_path, chain, "sslserver", "-verify_hostname", "x.example.org"
    )
    assert not verify(tmp_path, chain, "sslclient").endswith("OK\n")


def test_openssl_refuses_another_root_of_the_same_name(tmp_path: Path) -> None:
    said = verify(tmp_path, SITE, "sslclient", root=OTHER_ROOT.certificate)
    assert not said.endswith("OK\n")


def test_a_site_cannot_sign_for_another(tmp_path: Path) -> None:
    as_authority = pki.Credential(SITE, KEY)
    _, csr = pki.new_site_key_and_csr("B")
    forged = pki.issue_site(csr, as_authority, now=NOW) + INTERMEDIATE.certificate
    assert not verify(tmp_path, forged, "sslclient").endswith("OK\n")
    with pytest.raises(InvalidInput):
        check_site_chain(forged, ROOT.certificate, now=NOW)


def test_an_intermediate_cannot_make_another(tmp_path: Path) -> None:
    # Under a name of its own: a path length does not count an authority that has its issuer's
    # name (RFC 5280, 6.1.4 l).
    below = authority_below(INTERMEDIATE, "below")
    chain = pki.issue_site(CSR, below, now=NOW) + INTERMEDIATE.certificate
    assert "path length" in verify(tmp_path, chain, "sslclient")
    with pytest.raises(InvalidInput):
        check_site_chain(chain, ROOT.certificate, now=NOW)


def test_extensions_are_as_openssl_prints_them() -> None:
    site, server = text(SITE), text(SERVER.certificate)
    assert "URI:veiltune://site/ward-7\n" in site
    assert "TLS Web Client Authentication\n" in site
    assert re.search(r"X509v3 Subject Alternative Name: \n\s+URI:[^,\n]+\n", site)
    assert "CA:FALSE" in site
    assert "NIST CURVE: P-256" in site
    assert "ecdsa-with-SHA256" in site
    assert "TLS Web Server Authentication\n" in server
    assert (
        "DNS:fl.example.org, IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:7, "
        "URI:veiltune://server\n"
    ) in server
    assert "CA:TRUE, pathlen:1" in text(ROOT.certificate)
    assert "CA:TRUE, pathlen:0" in text(INTERMEDIATE.certificate)
    assert "Certificate Sign, CRL Sign" in text(INTERMEDIATE.certificate)


@pytest.mark.parametrize(
    ("certificate", "days"),
    [
        (ROOT.certificate, 3650),
        (INTERMEDIATE.certificate, 730),
        (SITE, 30),
        (SERVER.certificate, 30),
    ],
)
def test_lifetimes_are_as_promised(certificate: bytes, days: int) -> None:
    ends = openssl("x509", "-noout", "-enddate", stdin=certificate).strip()
    end = dt.datetime.strptime(ends, "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=dt.UTC)
    assert abs(end - NOW - days * DAY) < dt.timedelta(seconds=2)
    assert pki.days_left(certificate, now=end - 3 * DAY) == 3
    assert pki.days_left(certificate, now=end + DAY) == -1


def test_a_certificate_does_not_outlive_its_issuer() -> None:
    late = NOW + 700 * DAY
    leaf = pki.load_certificates(pki.issue_site(CSR, INTERMEDIATE, now=late))[0]
    issuer = pki.load_certificates(INTERMEDIATE.certificate)[0]
    assert leaf.not_valid_after_utc == issuer.not_valid_after_utc
    with pytest.raises(InvalidInput, match="must be valid today"):
        pki.issue_site(CSR, INTERMEDIATE, now=NOW + 731 * DAY)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (NOW + 91 * DAY, "expired on"),
        (NOW - DAY, "not valid before"),
        (NOW + 91 * DAY - dt.timedelta(minutes=1), "expired on"),
    ],
)
def test_a_site_out_of_its_time_is_refused_in_words(
    moment: dt.datetime, words: str, tmp_path: Path
) -> None:
    said = verify(tmp_path, SITE, "sslclient", "-attime", str(int(moment.timestamp())))
    assert not said.endswith("OK\n")
    with pytest.raises(InvalidInput, match=words):
        check_site_chain(SITE, ROOT.certificate, now=moment)


def test_chains_are_accepted_and_refused_with_the_reason() -> None:
    assert check_site_chain(SITE, ROOT.certificate, now=NOW) == "ward-7"
    check_server_chain(SERVER.certificate, ROOT.certificate, "192.0.2.7", now=NOW)
    check_server_chain(SERVER.certificate, ROOT.certificate, "fl.example.org", now=NOW)
    with pytest.raises(InvalidInput, match="another root"):
        check_site_chain(SITE, OTHER_ROOT.certificate, now=NOW)
    with pytest.raises(InvalidInput, match="another root"):  # the intermediate is missing
        check_site_chain(SITE[: SITE.index(b"-----END") + 26], ROOT.certificate, now=NOW)
    with pytest.raises(InvalidInput, match="another purpose"):
        check_site_chain(SERVER.certificate, ROOT.certificate, now=NOW)
    with pytest.raises(InvalidInput, match="another purpose"):
        check_server_chain(SITE, ROOT.certificate, "fl.example.org", now=NOW)
    with pytest.raises(InvalidInput, match=r"must be for b\.example, got one for fl"):
        check_server_chain(SERVER.certificate, ROOT.certificate, "b.example", now=NOW)


def test_openssl_accepts_the_request() -> None:
    said = openssl("req", "-noout", "-verify", "-text", stdin=CSR)
    assert "verify OK" in said
    assert "CN = ward-7" in said


def test_a_request_from_openssl_is_accepted_without_its_extensions(tmp_path: Path) -> None:
    csr = openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(tmp_path / "k"), "-subj", "/O=Evil/CN=B"),
        *("-addext", "subjectAltName=URI:veiltune://site/A,DNS:fl.example.org"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-out", str(tmp_path / "csr")),
    )
    csr = (tmp_path / "csr").read_text()
    issued = pki.issue_site(csr.encode(), INTERMEDIATE, now=NOW)
    printed = text(issued)
    assert pki.read_identity(issued) == "B"
    assert "CA:FALSE" in printed
    assert "Evil" not in printed
    assert "fl.example.org" not in printed


def test_a_request_edited_after_signing_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(CSR).public_bytes(Encoding.DER))
    position = der.index(b"ward-7")
    der[position : position + 6] = b"ward-8"
    edited = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(InvalidInput, match="signed by its own key"):
        pki.issue_site(edited, INTERMEDIATE, now=NOW)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
)
def test_only_p256_requests_are_signed(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    with pytest.raises(InvalidInput, match="P-256"):
        pki.issue_site(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), INTERMEDIATE)


@pytest.mark.parametrize("count", [0, 2])
def test_a_request_holds_one_name(count: int) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")] * count)
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    with pytest.raises(InvalidInput, match=f"one common name, got {count}"):
        pki.issue_site(signed.public_bytes(Encoding.PEM), INTERMEDIATE)


@pytest.mark.filterwarnings("ignore:Attribute's length")  # our own forging of them
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_gets_no_request_and_no_certificate(name: str) -> None:
    with pytest.raises(InvalidInput):
        pki.new_site_key_and_csr(name)
    with pytest.raises(InvalidInput):
        pki.site_uri(name)
    try:
        csr = signed_request(name, ec.generate_private_key(ec.SECP256R1()))
    except ValueError:
        return  # not even a request can hold it
    with pytest.raises(InvalidInput):
        pki.issue_site(csr, INTERMEDIATE, now=NOW)


@settings(max_examples=60)
@given(st.text(max_size=70))
def test_what_is_issued_names_exactly_a_plain_name(name: str) -> None:
    plain = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,62}", name))
    try:
        _, csr = pki.new_site_key_and_csr(name)
        issued = pki.read_identity(pki.issue_site(csr, INTERMEDIATE, now=NOW))
    except InvalidInput:
        assert not plain
    else:
        assert plain
        assert issued == name


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True))
@settings(max_examples=30)
def test_a_plain_name_survives_the_certificate(name: str) -> None:
    _, csr = pki.new_site_key_and_csr(name)
    assert pki.read_identity(pki.issue_site(csr, INTERMEDIATE, now=NOW)) == name


URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    "certificate",
    [
        leaf_named(san=False),
        leaf_named(URI("veiltune://site/A"), URI("veiltune://site/B")),
        leaf_named(URI("veiltune://site/A"), URI("veiltune://site/A")),
        leaf_named(URI("veiltune://site/A"), x509.DNSName("b.example")),
        leaf_named(x509.DNSName("A")),
        leaf_named(URI("veiltune://server")),
        leaf_named(URI("veiltune://site/")),
        leaf_named(URI("veiltune://site/../x")),
        leaf_named(URI("veiltune://site/A/B")),
        leaf_named(URI("veiltune://site/A?x")),
        leaf_named(URI("VEILTUNE://site/A")),
        leaf_named(URI("https://site/A")),
        leaf_named(URI("veiltune://site/A\n")),
        leaf_named(URI("veiltune://site/A\x00B")),
        leaf_named(URI("veiltune://site/" + "A" * 300)),
        SERVER.certificate,
        ROOT.certificate,
    ],
)
def test_a_certificate_without_one_plain_site_uri_has_no_identity(certificate: bytes) -> None:
    with pytest.raises(InvalidInput):
        pki.read_identity(certificate)


@settings(max_examples=100)
@given(st.binary(max_size=300), st.integers(0, 400))
def test_bytes_that_are_no_certificate_are_refused(junk: bytes, position: int) -> None:
    edited = SITE[:position] + junk + SITE[position + len(junk) :]
    for data in (junk, edited, CSR[:position] + junk):
        for read in (pki.read_identity, pki.read_csr, pki.load_key):
            with contextlib.suppress(InvalidInput):  # and with nothing else
                read(data)


def test_a_certificate_whose_key_is_no_point_of_the_curve_is_refused() -> None:
    good = pki.load_certificates(SITE)[0]
    point = pki.leaf_key(SITE).public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    der = good.public_bytes(Encoding.DER).replace(point, point[:-1] + bytes([point[-1] ^ 1]))
    spoilt = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    with pytest.raises(InvalidInput, match="must hold an ECDSA P-256 key, got none"):
        pki.leaf_key(spoilt)


def test_a_certificate_or_request_of_an_unknown_version_is_refused() -> None:
    # RFC 5280, section 4.1.2.1, has versions up to 3 (written 2); RFC 2986, section 4.1, has 0.
    leaf = pki.load_certificates(SITE)[0].public_bytes(Encoding.DER)
    request = x509.load_pem_x509_csr(CSR).public_bytes(Encoding.DER)
    for der, version, kind, read in (
        (leaf, b"\xa0\x03\x02\x01\x02", "CERTIFICATE", pki.read_identity),
        (request, b"\x02\x01\x00", "CERTIFICATE REQUEST", pki.read_csr),
    ):
        assert version in der[:20]
        body = b64encode(der.replace(version, version[:-1] + b"\x09", 1)).decode()
        with pytest.raises(InvalidInput, match="must be"):
            read(f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n".encode())


@pytest.mark.parametrize("hosts", [[], [""], ["*.example"], ["a b"], ["10.0.0.256"], ["a..b"]])
def test_a_server_needs_plain_hosts(hosts: list[str]) -> None:
    with pytest.raises(InvalidInput):
        pki.issue_server(INTERMEDIATE, hosts)


def test_keys_are_not_in_reprs_and_fit_openssl(tmp_path: Path) -> None:
    assert b"PRIVATE" in SERVER.key
    assert "PRIVATE" not in repr(SERVER)
    public = openssl("pkey", "-pubout", stdin=SERVER.key)
    assert public == openssl("x509", "-noout", "-pubkey", stdin=SERVER.certificate)
    (tmp_path / "operator.key").write_bytes(pki.new_operator_key())
    assert "ED25519 Private-Key" in openssl(
        "pkey", "-noout", "-text", "-in", str(tmp_path / "operator.key")
    )


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_may_touch_is_refused(mode: int, tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    path = tmp_path / "pki" / "site.key"
    path.write_bytes(KEY)
    path.chmod(mode)
    words = f"pki/site.key must be readable by its owner only \\(mode 0600\\), got 0{mode:o}"
    with pytest.raises(InvalidInput, match=words):
        pki.read_key(path)
    path.chmod(0o600)
    assert pki.read_key(path) == KEY


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    operator, site = tmp_path / "operator.key", tmp_path / "site.key"
    for path, pem in ((operator, pki.new_operator_key()), (site, KEY)):
        path.touch(0o600)
        path.write_bytes(pem)
    assert isinstance(pki.load_operator_key(operator), ed25519.Ed25519PrivateKey)
    with pytest.raises(InvalidInput, match="Ed25519"):
        pki.load_operator_key(site)
    with pytest.raises(InvalidInput, match="P-256"):
        pki.read_key(operator)
    p384 = ec.generate_private_key(ec.SECP384R1())
    site.write_bytes(p384.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidInput, match="P-256"):
        pki.read_key(site)


def test_the_operators_public_half_is_openssls(tmp_path: Path) -> None:
    pem = pki.new_operator_key()
    der = subprocess.run(
        ["openssl", "pkey", "-pubout", "-outform", "DER"],
        input=pem,
        capture_output=True,
        check=True,
    ).stdout
    assert pki.operator_public_hex(pem) == der[-32:].hex()


def test_a_certificate_is_renewed_at_two_thirds_of_its_life_and_not_all_at_once() -> None:
    requests = [pki.new_site_key_and_csr(f"ward-{i}")[1] for i in range(12)]
    chains = [pki.issue_site(csr, INTERMEDIATE, now=NOW) for csr in requests]
    hours = [(pki.renewal_time(chain) - NOW) / dt.timedelta(hours=1) for chain in chains]
    # 2/3 of 30 days, and a twenty-fourth of them later at most; clocks may differ by minutes.
    assert all(480 - 1 < hour < 480 + 30 + 1 for hour in hours)
    assert max(hours) - min(hours) > 3
    assert hours[0] == (pki.renewal_time(chains[0]) - NOW) / dt.timedelta(hours=1)
