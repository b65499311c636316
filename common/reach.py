"""The way to a server, walked by hand: its name, a proxy, the port, the certificate it shows.

gRPC goes through an HTTP proxy if the environment names one; which variables it reads, and which
hosts it leaves out, is repeated here (gRPC 1.81: ``http_proxy_mapper.cc``), so that who asks walks
the same way.

Not covered: what is said inside TLS; automatic proxy configuration, which gRPC does not read.
"""

import base64
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from cryptography import x509

from common.errors import InvalidInput

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")
_MOST_HEAD_BYTES = 16 * 1024
_SHOWN_STATUS = 60
FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
# Addresses of documentation (RFC 5737, RFC 3849): nothing is ever sent to them.
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_DISCARD = 9


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where an environment variable sends connections; ``login`` is for the proxy alone."""

    variable: str
    host: str
    port: int
    login: str = field(default="", repr=False)

    @property
    def place(self) -> str:
        """As a person reads it."""
        return f"{self.host}:{self.port}"


class ProxyRefused(ConnectionError):
    """A proxy that does not let a connection through; ``status`` is its answer's first line."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy through which gRPC reaches ``host``; ``None`` where it goes there directly.

    Raises:
        InvalidInput: the variable's value is one that gRPC does not take.
    """
    variable = next((name for name in PROXY_VARIABLES if name in environment), "")
    if not environment.get(variable) or _is_exempt(host, environment):
        return None
    try:
        url = urlsplit(environment[variable])
        found = Proxy(
            variable, url.hostname or "", url.port or 80, _login(url.username, url.password)
        )
    except ValueError:
        url, found = urlsplit(""), Proxy(variable, "", 0)
    if url.scheme != "http" or not found.host:
        # gRPC then goes directly, which is not what was meant. The value may hold a password.
        raise InvalidInput(f"{variable} must be http://HOST:PORT, got something else")
    return found


def addresses(host: str, port: int) -> dict[str, socket.AddressFamily]:
    """The IP addresses of ``host``, each with its family.

    Raises:
        socket.gaierror: it does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {str(where[0]): family for family, _, _, _, where in found}


def has_route(family: socket.AddressFamily, address: str) -> bool:
    """Whether this machine knows a way to ``address``; nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((address, _DISCARD))
    except OSError:
        return False
    return True


def is_offline() -> bool:
    """Whether this machine knows no way out at all."""
    return not any(has_route(family, address) for family, address in _SOMEWHERE.items())


def connect(host: str, port: int, timeout_s: float, proxy: Proxy | None = None) -> socket.socket:
    """A connection to ``host``, through ``proxy`` if there is one.

    Raises:
        OSError: there is no connection.
        ProxyRefused: the proxy gives none.
    """
    if proxy is None:
        return socket.create_connection((host, port), timeout_s)
    connection = socket.create_connection((proxy.host, proxy.port), timeout_s)
    try:
        status = _tunnel(connection, host, port, proxy.login)
        if status.split(" ")[1:2] != ["200"]:
            raise ProxyRefused(status or "no answer in HTTP")
    except BaseException:
        connection.close()
        raise
    return connection


def http_status(host: str, port: int, timeout_s: float, proxy: Proxy | None = None) -> str:
    """What ``host`` answers to a proxy's request in plain HTTP; empty where it speaks no HTTP."""
    try:
        with connect(host, port, timeout_s, proxy) as connection:
            return _tunnel(connection, host, port, "")
    except OSError:
        return ""


def presented(
    host: str, port: int, timeout_s: float, proxy: Proxy | None = None
) -> x509.Certificate | None:
    """The certificate that a server shows, whoever vouches for it; ``None`` where it shows none.

    It is looked at and never believed: no secret and no certificate of ours is sent.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            connect(host, port, timeout_s, proxy) as connection,
            context.wrap_socket(connection, server_hostname=host) as wrapped,
        ):
            data = wrapped.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(data) if data else None
    except (OSError, ValueError):
        return None


def issuer(certificate: x509.Certificate) -> str:
    """Who issued a certificate, by the name it gives."""
    return certificate.issuer.rfc4514_string()[:200] or "an issuer without a name"


def _tunnel(connection: socket.socket, host: str, port: int, login: str) -> str:
    """Ask for a tunnel (RFC 9110, section 9.3.6); the answer's first line, empty if no HTTP."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if login:
        lines.append(f"Proxy-Authorization: Basic {login}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    # A byte at a time: what follows the head is the server's, and TLS must find it.
    while not head.endswith(b"\r\n\r\n") and len(head) < _MOST_HEAD_BYTES:
        if not (byte := connection.recv(1)):
            break
        head += byte
        if len(head) == 5 and head != b"HTTP/":
            return ""
    first = head.split(b"\r\n")[0].decode("ascii", "replace")
    return first[:_SHOWN_STATUS] if first.startswith("HTTP/") else ""


def _login(user: str | None, password: str | None) -> str:
    if user is None:
        return ""
    return base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()


def _is_exempt(host: str, environment: Mapping[str, str]) -> bool:
    variable = next((name for name in EXCEPTION_VARIABLES if environment.get(name)), "")
    entries = [entry.strip() for entry in environment.get(variable, "").split(",")]
    return any(_matches(host, entry) for entry in entries if entry)


def _matches(host: str, entry: str) -> bool:
    """An entry is the end of a name, or a network of addresses; gRPC knows no ``*``."""
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
