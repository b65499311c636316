"""First contact by a token: check the server, send the secret, install what comes back.

Nothing of the token but its address is used before the server has proved, in the handshake, that it
holds the key of a certificate which leads to the root that the token names. Only then does the
secret leave, with a request for this site's own key. The way there is the link's own, through the
proxy that the environment names (common/reach.py).

Not covered: how the token came here; whoever read it on its way may have used it before.
"""

import datetime as dt
import os
import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from client.enrolment import InstalledSite, check_limits, init_site, install_bundle
from client.obstacles import Way, no_connection
from common import pki, reach
from common.address import split_address
from common.bundle import Bundle
from common.certificates import read_certificate
from common.errors import InvalidInput, LinkDown, Refusal, UpdateRejected
from common.files import exists, read_file
from common.invitation import Token
from common.keys import MAX_PEM_BYTES
from common.link import first_contact as wire

_PATIENCE_S = 15.0


def join(
    home: Path,
    site: str,
    token: Token,
    *,
    max_epsilon: float = 8.0,
    max_delta: float = 1e-5,
    now: dt.datetime | None = None,
) -> InstalledSite:
    """Make the site's key if it has none, and put in place what the server answers.

    Raises:
        InvalidInput: ``site`` is no name, its home holds another site or root, a limit is out of
            its range, or the environment names a proxy that is none.
        LinkDown: the server cannot be reached.
        Refusal: it is not the server of the token, or its words why not.
        StorageFailed: the disk is full, or the like.
    """
    check_limits(max_epsilon, max_delta)
    _require_root(home, token)
    request = init_site(home, site)
    csr = read_file(request.csr, max_bytes=MAX_PEM_BYTES)
    bundle = _ask(token, csr, now)
    return install_bundle(
        home,
        site,
        bundle,
        max_epsilon=max_epsilon,
        max_delta=max_delta,
        pinned=token.root_sha256,
        now=now,
    )


def _require_root(home: Path, token: Token) -> None:
    """Where a root is installed, a token of another one is not followed."""
    path = home / "pki" / "root.pem"
    if not exists(path):
        return
    known = map(pki.fingerprint, pki.load_certificates(read_certificate(path)))
    if token.root_sha256 not in known:
        raise InvalidInput(
            f"token must be of the root installed in {path}, "
            f"got one of another (sha256 {token.root_sha256[:16]}...)"
        )


def _ask(token: Token, csr: bytes, now: dt.datetime | None) -> Bundle:
    host, _ = split_address(token.address)
    try:
        with (
            _connected(token.address) as connection,
            _context().wrap_socket(connection, server_hostname=host) as secure,
        ):
            _check_server(secure, token, host, now)
            wire.send(secure, wire.Request(secret=token.secret.hex(), csr=csr.decode("ascii")))
            answer = wire.receive(secure, wire.Answer)
    except OSError as error:  # ssl.SSLError is one
        raise LinkDown(_words(token.address, error)) from error
    except UpdateRejected as error:
        raise Refusal(f"server at {token.address} must keep to the protocol: {error}") from error
    if answer.bundle is None:
        raise Refusal(f"server refused: {answer.refusal or 'no reason given'}")
    return answer.bundle


def _connected(address: str) -> socket.socket:
    host, port = split_address(address)
    proxy = reach.proxy_for(host, os.environ)
    try:
        return reach.connect(host, port, _PATIENCE_S, proxy)
    except OSError as error:
        if proxy is None:
            raise
        told = no_connection(Way(address, host, port, proxy, _PATIENCE_S), error)
        open_while = "the port beyond is open while the server runs and an invitation stands"
        raise LinkDown(f"{told.found} ({told.advice}; {open_while})") from error


def _context() -> ssl.SSLContext:
    """TLS 1.3 that believes no certificate: ``_check_server`` does that, by the token's root."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _check_server(secure: ssl.SSLSocket, token: Token, host: str, now: dt.datetime | None) -> None:
    """The certificate of this connection must lead to the token's root."""
    greeting = wire.receive(secure, wire.Greeting)
    chain, root = greeting.chain.encode(), greeting.root.encode()
    try:
        shown = [pki.fingerprint(found) for found in pki.load_certificates(root)]
        leaf = pki.load_certificates(chain)[0].public_bytes(Encoding.DER)
        if shown != [token.root_sha256]:
            raise Refusal(
                f"server at {token.address} must be of the token's root, got one of another "
                "(the secret was not sent)"
            )
        if leaf != secure.getpeercert(binary_form=True):
            raise Refusal(
                f"server at {token.address} must show the certificate of its handshake, "
                "got another (the secret was not sent)"
            )
        pki.check_server_chain(chain, root, host, now=now)
    except InvalidInput as error:
        raise Refusal(f"{error} (the secret was not sent)") from error


def _words(address: str, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"server name in {address} does not resolve"
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{address} refused the connection: the port is open while the server runs and an "
            "invitation stands (it may have been used, or be over)"
        )
    if isinstance(error, TimeoutError):
        return f"{address} did not answer within {_PATIENCE_S:g} s (is a firewall between?)"
    if isinstance(error, (ssl.SSLError, ConnectionError)):
        return f"{address} broke off before it answered (is it a Veiltune server?)"
    return f"{address} cannot be reached: {error.strerror or 'no connection'}"
