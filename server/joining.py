"""The port for first contact: open while invitations stand, and for nothing but a token.

Whoever reaches it has shown no certificate, so it gives little to hold on to: few connections at a
time (server/throttle.py), seconds for each, few wrong secrets a minute. What strangers spend of
that is theirs: a secret that stands is looked up before what all have sent together is counted.
Of what they can have logged, a minute has some lines and a count (server/repeats.py).

Not covered: a flood that fills the machine's own queue of connections (a firewall's task).
"""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from common import pki
from common.address import split_address
from common.bundle import Bundle, parse_bundle
from common.errors import InvalidInput, Refusal, StorageFailed, UpdateRejected
from common.files import as_path
from common.keys import public_key_sha256
from common.link import first_contact as wire
from common.link.channel import Credentials
from server.authority import read_authorities
from server.enrolment import admit
from server.invitations import Invitations, UnknownSecret
from server.repeats import Repeats
from server.throttle import Limit, Places

_PATIENCE_S, _POLL_S = 10.0, 0.2
_TOO_MANY = "too many wrong tokens came: try again in some minutes"

log = structlog.get_logger(__name__)


class JoinServer:
    """Answers invited sites on ``address``, from ``start`` to ``stop``.

    Args:
        address: host:port to listen on.
        home: the server's.
        credentials: gives the server's chain and key, and the roots.
        limit: shared by all that are opened one after another.

    Raises:
        InvalidInput: the address is in use, or not one of this machine.
    """

    def __init__(
        self, address: str, home: Path, credentials: Callable[[], Credentials], limit: Limit
    ) -> None:
        try:
            self._socket = _listen(address)
        except OSError as error:
            words = f"{address}: {error.strerror}"
            raise InvalidInput(f"join address must be free, got {words}") from error
        self._socket.settimeout(_POLL_S)
        self._home, self._credentials, self._limit = home, credentials, limit
        self._places = Places()
        self._repeats = Repeats()
        self._ends: dict[socket.socket, float] = {}  # when each that is served is cut
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="join", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections and release the port."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()
        self._repeats.tell_rest(at_once=True)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            self._cut_late()
            self._repeats.tell_rest()
            try:
                connection, (host, *_) = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:  # out of descriptors, or the like: others may come later
                self._repeats.warning("join not accepted", "", reason=str(error))
                self._stopped.wait(_POLL_S)
                continue
            if not self._places.take(host):
                connection.close()
                continue
            try:
                self._begin(connection, host)
            except (OSError, RuntimeError) as error:  # no descriptor or thread left: as above
                self._repeats.warning("join not served", "", peer=host, reason=str(error))

    def _begin(self, connection: socket.socket, host: str) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self._places.give_back, host)
            undo.callback(connection.close)
            handle = connection.dup()  # TLS takes the other one over; this one still cuts it
            undo.callback(self._let_go, handle)
            with self._lock:
                self._ends[handle] = time.monotonic() + _PATIENCE_S
            serve = threading.Thread(
                target=self._serve, args=(connection, handle, host), daemon=True
            )
            serve.start()
            undo.pop_all()

    def _serve(self, connection: socket.socket, handle: socket.socket, host: str) -> None:
        try:
            with connection:
                connection.settimeout(_PATIENCE_S)
                self._talk(connection, host)
        except OSError:  # TLS that fails is one too
            log.debug("join broke off", peer=host)
        except UpdateRejected as error:
            self._repeats.warning("join refused", "no request", peer=host, reason=str(error))
        finally:
            self._let_go(handle)
            self._places.give_back(host)

    def _let_go(self, handle: socket.socket) -> None:
        with self._lock:
            self._ends.pop(handle, None)
            handle.close()

    def _cut_late(self) -> None:
        """However slowly bytes drip in, end those who have held a place for too long."""
        now = time.monotonic()
        with self._lock, contextlib.suppress(OSError):
            for handle in [one for one, end in self._ends.items() if end <= now]:
                del self._ends[handle]
                handle.shutdown(socket.SHUT_RDWR)

    def _talk(self, connection: socket.socket, host: str) -> None:
        credentials = self._credentials()
        with _context(credentials).wrap_socket(connection, server_side=True) as secure:
            root = read_authorities(self._home).current.root
            wire.send(
                secure,
                wire.Greeting(chain=credentials.chain_pem.decode(), root=root.decode()),
            )
            request = wire.receive(secure, wire.Request)
            wire.send(secure, self._answer(request, host))

    def _answer(self, request: wire.Request, host: str) -> wire.Answer:
        if not self._limit.allows(host):
            return wire.Answer(refusal=_TOO_MANY)
        try:
            bundle = join(self._home, bytes.fromhex(request.secret), request.csr.encode())
        except (Refusal, InvalidInput) as error:
            if isinstance(error, UnknownSecret) and not self._limit.note(host):
                return wire.Answer(refusal=_TOO_MANY)  # not logged one by one either
            kind = type(error).__name__
            self._repeats.warning("join refused", kind, peer=host, reason=str(error))
            return wire.Answer(refusal=str(error)[:500])
        except StorageFailed as error:
            log.error("join failed", peer=host, reason=str(error))
            return wire.Answer(refusal="the server cannot do this now: try again")
        log.info("site joined", peer=host, site=bundle.site)
        return wire.Answer(bundle=bundle)


def join(home: Path, secret: bytes, csr: bytes, *, now: dt.datetime | None = None) -> Bundle:
    """Enrol the site that was invited by ``secret``; the same key gets the same bundle again.

    Raises:
        Refusal: no such invitation stands, or it is for another site or another key.
        InvalidInput: no request, or the roster refuses it.
        StorageFailed: a write is in doubt; the same key may ask again.
    """
    site, key = pki.read_csr(csr)

    def issue(replace: bool) -> bytes:
        return admit(home, csr, replace=replace, now=now)[0].to_bytes()

    invitations = Invitations(home)
    data = invitations.redeem(secret, site, public_key_sha256(key), issue, now=now)
    return parse_bundle(data, "invitation")


def _listen(address: str) -> socket.socket:
    """What listens on [::] takes IPv4 too, as the link's port beside it does."""
    host, port = split_address(address)
    if ":" not in host:
        return socket.create_server((host, port), backlog=16)
    is_both = ipaddress.ip_address(host).is_unspecified and socket.has_dualstack_ipv6()
    return socket.create_server(
        (host, port), family=socket.AF_INET6, backlog=16, dualstack_ipv6=is_both
    )


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with as_path(credentials.chain_pem + b"\n" + credentials.key_pem) as path:
        context.load_cert_chain(path)
    return context
