"""Why the link is down, step by step and in one sentence.

gRPC reports a refused certificate, an expired one and a plaintext port alike as "Socket closed".
This goes the same way by hand: name, proxy, connection, TLS 1.3 handshake, first byte. In TLS 1.3 a
client has finished its handshake before the server has looked at its certificate, so a refusal
shows only at the first read; a server that accepts us begins to talk HTTP/2 at once.

Not covered: what the server says inside a session (a revoked site, a second session): gRPC carries
those words itself, and ``client/admission.py`` asks for them. A proxy that no variable names and
that passes TLS on unread is not seen.
"""

import datetime as dt
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from client.obstacles import (
    ADMISSION,
    CERTIFICATE,
    NAME,
    PORT,
    PROXY,
    Way,
    no_connection,
    no_handshake,
)
from common import pki, reach
from common.address import split_address
from common.diagnosis import Finding, fault, ok, warning
from common.errors import InvalidInput
from common.files import as_path
from common.reach import Proxy
from common.validity import closes_soon
from common.words import counted

SERVER_SOON_DAYS = 30

_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it trusts another root than ours",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "by its clock it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of a kind that the server does not take",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The site's chain (PEM, leaf first) and its key (PEM)."""

    certificate: bytes
    key: bytes = field(repr=False)


def diagnose(
    server: str,
    root_pem: bytes,
    certificate_pem: bytes,
    key_pem: bytes,
    site: str,
    *,
    timeout_s: float = 5.0,
) -> str:
    """Say in one sentence why ``site`` has no link to ``server``.

    Never raises for what the other side does. Takes up to ``timeout_s`` for each of connecting,
    shaking hands and the first byte, once more for who issued a certificate that is not trusted,
    and what the system's resolver takes.

    Args:
        server: ``host:port``.
        root_pem: the one root that is trusted.
        certificate_pem: the site's chain, leaf first.
        key_pem: its private key.
        site: whose certificate it should be.
        timeout_s: patience, in seconds.
    """
    try:
        check_own(root_pem, certificate_pem, key_pem, site)
        pair = Pair(certificate_pem, key_pem)
        *_, last = examine(server, root_pem, pair, timeout_s=timeout_s)
    except InvalidInput as error:
        return f"no connection was tried: {error}"
    return last.found


def examine(
    server: str,
    root_pem: bytes,
    pair: Pair | None,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
) -> list[Finding]:
    """Walk to ``server`` and tell each step, up to the first that fails.

    The steps are ``client.obstacles.STEPS``.

    Args:
        server: ``host:port``.
        root_pem: the one root that is trusted.
        pair: what the site shows; without it the server is not asked to take it.
        environment: where a proxy may be named; by default the process's own.
        timeout_s: patience, in seconds.

    Raises:
        InvalidInput: ``server`` is no address, or root, chain or key cannot be used.
    """
    host, port = split_address(server)
    context = _context(root_pem, pair)
    proxy, said = _proxy(host, os.environ if environment is None else environment)
    way, told = Way(server, host, port, proxy, timeout_s), list[Finding]()
    for finding in _walk(way, said, context, is_known=pair is not None):
        told.append(finding)
        if finding.mark == "fault":
            break
    return told


def _walk(
    way: Way, proxy: Finding, context: ssl.SSLContext, *, is_known: bool
) -> Iterator[Finding]:
    if way.proxy is None:
        yield proxy
        yield _name(way)
    try:
        connection = way.connect()
    except OSError as error:
        yield no_connection(way, error)
        return
    if way.proxy is not None:
        yield proxy
        yield ok(NAME, f"{way.host} is looked up by the proxy")
    yield ok(PORT, f"{way.server} takes connections")
    with connection:
        try:
            wrapped = context.wrap_socket(connection, server_hostname=way.host)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            yield no_handshake(way, error)
            return
        with wrapped:
            yield _certificate(wrapped.getpeercert(binary_form=True) or b"")
            if is_known:
                yield _first_byte(way.server, wrapped, way.timeout_s)


def check_own(root_pem: bytes, certificate_pem: bytes, key_pem: bytes, site: str) -> None:
    """Check that the site's chain and key can be used today.

    Raises:
        InvalidInput: expired, of another root, another site's, or for another key.
    """
    owner = pki.check_site_chain(certificate_pem, root_pem)
    if owner != site:
        raise InvalidInput(f"site certificate must be for site {site}, got one for {owner}")
    if pki.leaf_key(certificate_pem) != pki.load_key(key_pem).public_key():
        raise InvalidInput("site key must be the one of the site's certificate, got another")


def _context(root_pem: bytes, pair: Pair | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    roots = pki.load_certificates(root_pem)
    context.load_verify_locations(cadata=b"".join(c.public_bytes(Encoding.DER) for c in roots))
    if pair is not None:
        with as_path(pair.certificate + b"\n" + pair.key) as path:
            context.load_cert_chain(path)
    return context


def _proxy(host: str, environment: Mapping[str, str]) -> tuple[Proxy | None, Finding]:
    try:
        proxy = reach.proxy_for(host, environment)
    except InvalidInput as error:
        advice = "set it as it must be, or unset it: gRPC takes no notice of it as it is"
        return None, warning(PROXY, str(error), advice)
    if proxy is None:
        return None, ok(PROXY, "none: gRPC connects directly")
    return proxy, ok(PROXY, f"{proxy.variable} sends the link through {proxy.place}")


def _name(way: Way) -> Finding:
    try:
        found = reach.addresses(way.host, way.port)
    except OSError:
        advice = "correct server in site.toml, or ask who runs the DNS here for that name"
        return fault(NAME, f"server name {way.host!r} does not resolve", advice)
    shown = ", ".join(list(found)[:4])
    families = set(found.values())
    only = " only" if len(families) == 1 else ""
    kinds = " and ".join(sorted(reach.FAMILIES.get(family, "?") for family in families))
    if not any(reach.has_route(family, address) for address, family in found.items()):
        words = f"server name {way.host!r} has {kinds} addresses{only} ({shown})"
        advice = f"get {kinds} here, or ask the operator for an address of another kind"
        return fault(NAME, f"{words}, and this machine has no route there", advice)
    return ok(NAME, f"{way.host} is {shown} ({kinds}{only})")


def _certificate(der: bytes) -> Finding:
    """A certificate that OpenSSL took: how long it still will."""
    leaf = x509.load_der_x509_certificate(der)
    left = counted(pki.days_left(leaf), "more day")
    words = f"under our root, for {', '.join(pki.hosts_of(leaf))}, for {left}"
    if closes_soon(leaf, SERVER_SOON_DAYS, dt.datetime.now(dt.UTC)):
        return warning(CERTIFICATE, words, "ask the operator to renew it in time")
    return ok(CERTIFICATE, words)


def _first_byte(server: str, wrapped: ssl.SSLSocket, timeout_s: float) -> Finding:
    look = "see the server's log for why, or ask the operator to (fl-server doctor)"
    try:
        data = wrapped.recv(1)
    except TimeoutError:
        words = f"{server} speaks TLS but sent nothing within {timeout_s:g} s (is it overloaded?)"
        return fault(ADMISSION, words, look)
    except OSError as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else ""
        why = _ALERTS.get(reason or "")
        words = f"{server} turned our certificate away: {why}" if why else _turned_away(server)
        return fault(ADMISSION, words, look)
    if not data:
        return fault(ADMISSION, _turned_away(server), look)
    if wrapped.selected_alpn_protocol() != "h2":
        words = f"{server} speaks TLS but not HTTP/2 (is it a Veiltune server?)"
        return fault(ADMISSION, words, "correct server in site.toml")
    return ok(ADMISSION, f"{server} answers and takes our certificate, but the session ended")


def _turned_away(server: str) -> str:
    return (
        f"{server} turned our certificate away: it trusts another root, or holds it for expired "
        "or revoked (the server's log says which)"
    )
