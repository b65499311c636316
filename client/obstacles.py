"""What stopped the probe on its way to the server, in words, and what to do about it.

The steps of that way are named here, as a doctor's lines are. Not covered: the way itself
(client/probe.py).
"""

import socket
import ssl
from dataclasses import dataclass

from cryptography import x509

from common import pki, reach
from common.diagnosis import Finding, fault
from common.reach import Proxy, ProxyRefused

NAME, PROXY, PORT, CERTIFICATE, ADMISSION = STEPS = (
    "server name", "proxy", "server port", "server certificate", "admission",
)  # fmt: skip
_ANOTHER_ROOT = "was issued under another root than ours"
_EXPIRED, _EARLY, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64
# OpenSSL's verification codes, https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_SERVER_CERTIFICATE = {
    2: _ANOTHER_ROOT,
    7: _ANOTHER_ROOT,
    _EARLY: "is not valid yet (do the two clocks agree?)",
    _EXPIRED: "has expired (its operator must renew it)",
    18: _ANOTHER_ROOT,
    19: _ANOTHER_ROOT,
    20: _ANOTHER_ROOT,
    21: _ANOTHER_ROOT,
    26: "is not for use as a server",
    30: _ANOTHER_ROOT,
    _OTHER_HOST: "is for another host name",
    _OTHER_ADDRESS: "is for another address",
}
_NO_TLS13 = {
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
}


@dataclass(frozen=True, slots=True)
class Way:
    """The server's address, the proxy to it, and the patience for each step."""

    server: str
    host: str
    port: int
    proxy: Proxy | None
    timeout_s: float

    def connect(self) -> socket.socket:
        """A connection, through the proxy if there is one."""
        return reach.connect(self.host, self.port, self.timeout_s, self.proxy)

    def presented(self) -> x509.Certificate | None:
        """The certificate that is shown there, whoever vouches for it."""
        return reach.presented(self.host, self.port, self.timeout_s, self.proxy)

    def http_status(self) -> str:
        """What plain HTTP is answered; empty for no HTTP."""
        return reach.http_status(self.host, self.port, self.timeout_s, self.proxy)


def no_connection(way: Way, error: OSError) -> Finding:
    """No connection came to be, to the server or to the proxy."""
    server, proxy = way.server, way.proxy
    if isinstance(error, ProxyRefused) and proxy:
        words = f"proxy {proxy.place} ({proxy.variable}) does not let us through to {server}"
        advice = f"have it pass CONNECT to {server}, or name {way.host} in no_proxy"
        return fault(PROXY, f"{words}: {error.status}", advice)
    place = f"proxy {proxy.place} ({proxy.variable})" if proxy else server
    check = PROXY if proxy else PORT
    if isinstance(error, socket.gaierror):
        words = f"server name {way.host!r} does not resolve"
        words = f"the name of {place} does not resolve" if proxy else words
        return fault(check, words, "correct the name")
    advice = f"let {place} be reached from here: open the firewall, or start what serves it"
    if isinstance(error, ConnectionRefusedError):
        return fault(
            check, f"{place} refused the connection (is the server running there?)", advice
        )
    if isinstance(error, TimeoutError):
        words = f"did not answer within {way.timeout_s:g} s (is a firewall between?)"
        return fault(check, f"{place} {words}", advice)
    reason = error.strerror or "no connection"
    return fault(check, f"{place} cannot be reached: {reason}", advice)


def no_handshake(way: Way, error: Exception) -> Finding:
    """There was a connection and no TLS on it, or none with a certificate to trust."""
    server = way.server
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_trusted(way, error)
    upgrade = f"ask the operator whether {server} is their server and runs"
    if isinstance(error, TimeoutError):
        words = f"{server} took the connection but no TLS handshake within {way.timeout_s:g} s"
        return fault(CERTIFICATE, words, upgrade)
    status = way.http_status()
    if status:
        words = f"{server} answers without TLS, in plain HTTP ({status}): a proxy or a web server"
        advice = f"have whatever answers there pass connections to {server} on as they are"
        return fault(CERTIFICATE, words, advice)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)):
        words = f"{server} closed the connection in the TLS handshake (is it a Veiltune server?)"
    elif isinstance(error, ssl.SSLError) and error.reason in _NO_TLS13:
        words = f"{server} does not speak TLS 1.3, and nothing older is accepted"
    elif isinstance(error, ssl.SSLError):
        words = f"{server} answers without TLS (plaintext, or another protocol)"
    else:
        words = f"{server} broke off the TLS handshake"
    return fault(CERTIFICATE, words, upgrade)


def _not_trusted(way: Way, error: ssl.SSLCertVerificationError) -> Finding:
    """A certificate that OpenSSL refused, looked at once more for what it says of itself."""
    code = error.verify_code
    why = _SERVER_CERTIFICATE.get(code, f"failed: {error.verify_message}")
    advice = "ask the operator to look at the server's certificate (fl-server doctor)"
    shown = way.presented()
    if why == _ANOTHER_ROOT:
        why += f": its issuer is {reach.issuer(shown)}" if shown else ""
        advice = (
            f"if that is a firewall which reads TLS, have it leave {way.server} alone; "
            "else compare the root's sha256 with the operator, and install their bundle"
        )
    elif code in (_OTHER_HOST, _OTHER_ADDRESS):
        why += f": for {', '.join(pki.hosts_of(shown))}" if shown else ""
        advice = "name the server in site.toml as its certificate does, or have it issued anew"
    elif code == _EARLY:
        why += f": not before {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC" if shown else ""
        advice = "set this machine's clock (timedatectl status)"
    elif code == _EXPIRED:
        why += f" on {shown.not_valid_after_utc:%Y-%m-%d}" if shown else ""
        advice = "ask the operator for it, if this machine's clock is right"
    return fault(CERTIFICATE, f"the server's certificate at {way.server} {why}", advice)
