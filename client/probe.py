"""Why the link is down, in one sentence.

gRPC reports a refused certificate, an expired one and a plaintext port alike as "Socket closed".
This goes the same way by hand: name, connection, TLS 1.3 handshake, first byte. In TLS 1.3 a client
has finished its handshake before the server has looked at its certificate, so a refusal shows only
at the first read; a server that accepts us begins to talk HTTP/2 at once.

Not covered: what the server says inside a session (a revoked site, a second session): gRPC carries
those words itself. Proxies between the two are seen as the server.
"""

import socket
import ssl

from cryptography.hazmat.primitives.serialization import Encoding

from common import pki
from common.address import split_address
from common.errors import InvalidInput
from common.files import as_path

_ANOTHER_ROOT = "was issued under another root than ours"
# OpenSSL's verification codes, https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_SERVER_CERTIFICATE = {
    2: _ANOTHER_ROOT,
    7: _ANOTHER_ROOT,
    9: "is not valid yet (do the two clocks agree?)",
    10: "has expired (its operator must renew it)",
    18: _ANOTHER_ROOT,
    19: _ANOTHER_ROOT,
    20: _ANOTHER_ROOT,
    21: _ANOTHER_ROOT,
    26: "is not for use as a server",
    30: _ANOTHER_ROOT,
    62: "is for another host name",
    64: "is for another address",
}
_NO_TLS13 = {
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
}
_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it trusts another root than ours",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "by its clock it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is of a kind that the server does not take",
}


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
    shaking hands and the first byte, and what the system's resolver takes.

    Args:
        server: ``host:port``.
        root_pem: the one root that is trusted.
        certificate_pem: the site's chain, leaf first.
        key_pem: its private key.
        site: whose certificate it should be.
        timeout_s: patience, in seconds.
    """
    try:
        host, port = split_address(server)
        _check_own(root_pem, certificate_pem, key_pem, site)
        context = _context(root_pem, certificate_pem, key_pem)
    except InvalidInput as error:
        return f"no connection was tried: {error}"
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        return _no_connection(server, host, error, timeout_s)
    with connection:
        try:
            wrapped = context.wrap_socket(connection, server_hostname=host)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            return _no_handshake(server, error, timeout_s)
        with wrapped:
            return _first_byte(server, wrapped, timeout_s)


def _check_own(root_pem: bytes, certificate_pem: bytes, key_pem: bytes, site: str) -> None:
    owner = pki.check_site_chain(certificate_pem, root_pem)
    if owner != site:
        raise InvalidInput(f"site certificate must be for site {site}, got one for {owner}")
    if pki.leaf_key(certificate_pem) != pki.load_key(key_pem).public_key():
        raise InvalidInput("site key must be the one of the site's certificate, got another")


def _context(root_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    roots = pki.load_certificates(root_pem)
    context.load_verify_locations(cadata=b"".join(c.public_bytes(Encoding.DER) for c in roots))
    with as_path(certificate_pem + b"\n" + key_pem) as path:
        context.load_cert_chain(path)
    return context


def _no_connection(server: str, host: str, error: OSError, timeout_s: float) -> str:
    if isinstance(error, socket.gaierror):
        return f"server name {host!r} does not resolve"
    if isinstance(error, ConnectionRefusedError):
        return f"{server} refused the connection (is the server running there?)"
    if isinstance(error, TimeoutError):
        return f"{server} did not answer within {timeout_s:g} s (is a firewall between?)"
    return f"{server} cannot be reached: {error.strerror or 'no connection'}"


def _no_handshake(server: str, error: Exception, timeout_s: float) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = _SERVER_CERTIFICATE.get(error.verify_code, f"failed: {error.verify_message}")
        return f"the server's certificate at {server} {why}"
    if isinstance(error, TimeoutError):
        return f"{server} took the connection but no TLS handshake within {timeout_s:g} s"
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)):
        return f"{server} closed the connection in the TLS handshake (is it a Veiltune server?)"
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS13:
        return f"{server} does not speak TLS 1.3, and nothing older is accepted"
    if isinstance(error, ssl.SSLError):
        return f"{server} answers without TLS (plaintext, or another protocol)"
    return f"{server} broke off the TLS handshake"


def _first_byte(server: str, wrapped: ssl.SSLSocket, timeout_s: float) -> str:
    try:
        data = wrapped.recv(1)
    except TimeoutError:
        return f"{server} speaks TLS but sent nothing within {timeout_s:g} s (is it overloaded?)"
    except OSError as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else ""
        why = _ALERTS.get(reason or "")
        return f"{server} turned our certificate away: {why}" if why else _turned_away(server)
    if not data:
        return _turned_away(server)
    if wrapped.selected_alpn_protocol() != "h2":
        return f"{server} speaks TLS but not HTTP/2 (is it a Veiltune server?)"
    return f"{server} answers and takes our certificate, but the session ended"


def _turned_away(server: str) -> str:
    return (
        f"{server} turned our certificate away: it trusts another root, or holds it for expired "
        "or revoked (the server's log says which)"
    )
