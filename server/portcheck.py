"""``doctor``'s look at the server from outside: its port, its address, the certificate shown there.

Not covered: whether sites can come so far: a machine often cannot reach itself by the address that
it has for others, so that is a warning and no fault.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from common import pki, reach
from common.address import split_address
from common.certificates import read_certificate
from common.diagnosis import Finding, fault, ok, unchecked, warning
from common.errors import InvalidInput
from server.config import ServerConfig
from server.home import command_of
from server.listening import require_free

PORT, ADDRESS = "port", "address"
_LOCK = "daemon.lock"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def is_running(home: Path) -> bool:
    """Whether a server runs on this home; its lock says so, and is not made by asking."""
    try:
        lock = os.open(home / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def port(home: Path, config: ServerConfig, *, timeout_s: float = 5.0) -> Iterator[Finding]:
    """Whether the server listens with this home's certificate, or could.

    Raises:
        InvalidInput: its certificate cannot be read.
    """
    host, number = split_address(config.listen)
    if not is_running(home):
        try:
            require_free(config.listen)
            advice = f"{command_of(home)} start"
            yield ok(PORT, f"{config.listen} is free; the server does not run ({advice})")
        except InvalidInput as error:
            advice = "end what listens there, or change listen in server.toml"
            yield fault(PORT, str(error), advice)
        return
    near = _EVERYWHERE.get(host, host)
    yield _shown(home, PORT, near, number, timeout_s, is_near=True)


def address(home: Path, config: ServerConfig, *, timeout_s: float = 5.0) -> Iterator[Finding]:
    """Whether the address of the sites leads here, as far as that can be seen from here.

    Raises:
        InvalidInput: the server's certificate cannot be read.
    """
    host, number = split_address(config.address)
    try:
        found = reach.addresses(host, number)
    except OSError:
        if reach.is_offline():
            yield unchecked(ADDRESS, "this machine has no network", "connect it to the network")
            return
        advice = "have its name entered in the DNS, or correct address in server.toml"
        yield fault(ADDRESS, f"{host} does not resolve", advice)
        return
    only = {reach.FAMILIES.get(family, "?") for family in found.values()}
    listens, _ = split_address(config.listen)
    if only == {"IPv6"} and ":" not in listens:
        words = f"{host} has IPv6 addresses only, and the server listens on {config.listen}"
        yield fault(ADDRESS, words, f'set listen = "[::]:{number}" in server.toml')
    elif only == {"IPv4"} and ":" in listens and listens != "::":
        words = f"{host} has IPv4 addresses only, and the server listens on {config.listen}"
        yield fault(ADDRESS, words, f'set listen = "0.0.0.0:{number}" in server.toml')
    elif not is_running(home):
        yield ok(ADDRESS, f"{host} is {', '.join(list(found)[:4])}; nothing runs to be reached")
    else:
        yield _shown(home, ADDRESS, host, number, timeout_s, is_near=False)


def _shown(
    home: Path, check: str, host: str, number: int, timeout_s: float, *, is_near: bool
) -> Finding:
    """Compare the certificate that is shown there with this home's."""
    own = read_certificate(home / "pki" / "server.pem")
    where = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
    shown = reach.presented(host, number, timeout_s)
    if shown is None:
        return _silent(check, host, number, where, timeout_s, is_near=is_near)
    if pki.fingerprint(shown) == pki.fingerprint(own):
        return ok(check, f"{where} answers with this home's certificate")
    words = f"{where} shows another certificate than this home's, issued by {reach.issuer(shown)}"
    if is_near:
        return fault(check, words, f"start the server again: {command_of(home)} start")
    advice = f"have whatever reads TLS there pass connections to {where} on unread"
    return fault(check, words, advice)


def _silent(
    check: str, host: str, number: int, where: str, timeout_s: float, *, is_near: bool
) -> Finding:
    status = reach.http_status(host, number, timeout_s)
    if status:
        words = f"{where} answers in plain HTTP ({status}): a proxy or a web server"
        return fault(check, words, f"have it pass connections to {where} on as they are")
    if is_near:
        words = f"a server holds this home, and {where} does not answer in TLS"
        return fault(check, words, "see its log, and start it again")
    try:
        socket.create_connection((host, number), timeout_s).close()
    except OSError as error:
        words = f"{where} cannot be reached from here: {error.strerror or 'no answer'}"
        return warning(check, words, "try it from a site's network (fl-client doctor)")
    return fault(check, f"{where} takes connections and shows no certificate", "see what is there")
