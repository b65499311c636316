"""The server's end of the link: a gRPC port that only enrolled sites get past.

TLS 1.3 with client certificates required; a session's identity is the one URI in its certificate
and nothing it says. One live session a site: a second one is refused, the first lives on. The
roster is asked again every second, so that a revoked site loses its session where no job runs too.

A revoked certificate passes TLS until it expires. So every call asks the roster before it waits for
anything, each kind is had once by a site, and server/calls.py bounds what is left to hold.

Not covered: messages (server/mailbox.py, server/grid.py), the words for handshakes that fail below
gRPC (server/handshakes.py).
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from functools import partial

import grpc
import structlog
from google.protobuf.message import DecodeError

from common.errors import InvalidInput, Refusal, StorageFailed, UpdateRejected
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import (
    FETCH,
    SERVER_OPTIONS,
    SERVICE,
    SESSION,
    TIME_KEY,
    Credentials,
)
from common.link.channel import server_credentials as _server_credentials
from common.link.identity import read_certificate
from server.calls import Calls
from server.handshakes import HandshakeLog
from server.listening import require_free
from server.mailbox import Mailbox
from server.repeats import Repeats
from server.room import Room
from server.session import Session, SiteRoster

__all__ = ["LinkServer", "SiteRoster"]

Fetch = Callable[[str, str], bytes | None]
Answer = Callable[[str, int, bytes], bytes]

_CALLS = 512  # more than that are refused by gRPC
_STOP_GRACE_S = 1.0
_SWEEP_S = 1.0

log = structlog.get_logger(__name__)


class LinkServer:
    """Sessions of sites on one address, from ``start`` to ``stop``.

    Args:
        address: host:port to listen on; port 0 picks a free one.
        credentials: the server's certificate and key, and the roots that sites descend from; or
            what gives them, asked at every handshake.
        roster: asked at each session's start, before each message out, at each reply in, and for
            every session once a second.
        fetch: the final adapter of a job for a site, or None if it may not or cannot have it.
        answers: further calls by their method's name: a frame for (site, serial, request).
        software: this server's version, told to sites.
        names_handshakes: take over file descriptor 2 to log why TLS handshakes fail (in the server
            process only: it is the process's own stderr).
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials | Callable[[], Credentials],
        roster: SiteRoster,
        *,
        fetch: Fetch | None = None,
        answers: Mapping[str, Answer] | None = None,
        software: str = "",
        names_handshakes: bool = False,
    ) -> None:
        self.mailbox = Mailbox()
        self.room = Room()
        self._address = address
        self._credentials = credentials if callable(credentials) else lambda: credentials
        self._roster = roster
        self._fetch = fetch
        self._answers = answers or {}
        self._software = software
        self._handshakes = HandshakeLog() if names_handshakes else None
        self._sessions: dict[str, Session] = {}
        self._fetching: dict[str, grpc.ServicerContext] = {}
        self._answering: set[tuple[str, str]] = set()
        self._calls = Calls()
        self._repeats = Repeats()
        self._lock = threading.Lock()
        self._is_stopping = False
        self._stopped = threading.Event()
        self._port = 0
        self._server: grpc.Server | None = None

    @property
    def port(self) -> int:
        """The port that ``start`` bound."""
        return self._port

    @property
    def address(self) -> str:
        """What it listens on, with the port that ``start`` bound."""
        return f"{self._address.rpartition(':')[0]}:{self._port}"

    def start(self) -> None:
        """Bind and serve, in threads of its own.

        Raises:
            InvalidInput: the address is in use, or not one of this machine.
        """
        require_free(self._address)
        if self._handshakes is not None:
            self._handshakes.start()
        workers = futures.ThreadPoolExecutor(_CALLS, thread_name_prefix="link")
        server = grpc.server(workers, options=SERVER_OPTIONS, maximum_concurrent_rpcs=_CALLS)
        server.add_generic_rpc_handlers((self._handlers(),))
        try:
            self._port = server.add_secure_port(
                self._address, _server_credentials(self._credentials)
            )
        except RuntimeError as error:  # somebody was faster
            raise InvalidInput(f"listen address must be free, got {self._address}") from error
        server.start()
        self._server = server
        threading.Thread(target=self._sweep, name="link-sweep", daemon=True).start()
        log.debug("link open", address=self.address)

    def stop(self) -> None:
        """Say goodbye to every site and release the port."""
        with self._lock:
            self._is_stopping = True
            sessions = list(self._sessions.values())
        self._stopped.set()
        for session in sessions:
            session.close("the server stops", framing.goodbye("the server stops"))
        if self._server is not None:
            self._server.stop(_STOP_GRACE_S).wait()
            self._server = None
            log.info("link closed", port=self._port)
        self._repeats.tell_rest(at_once=True)
        if self._handshakes is not None:
            self._handshakes.stop()

    def connected(self) -> set[str]:
        """The sites with a live session that the roster still admits; others lose theirs."""
        with self._lock:
            live = [session for session in self._sessions.values() if session.is_live]
        return {session.site for session in live if session.is_welcome()}

    def _sweep(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self.connected()
            self._calls.end_late()
            self._repeats.tell_rest()

    def _handlers(self) -> grpc.GenericRpcHandler:
        # No (de)serialisers: frames that do not parse are for us to refuse, in our words. Every
        # request is a stream, mostly of one: for a single one gRPC would hold a thread until it
        # came, before we are asked who calls.
        handlers = {
            SESSION: grpc.stream_stream_rpc_method_handler(self._serve_session),
            FETCH: grpc.stream_stream_rpc_method_handler(self._serve_fetch),
        }
        for name in self._answers:
            handlers[name] = grpc.stream_unary_rpc_method_handler(partial(self._serve_call, name))
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _serve_session(
        self, incoming: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        with self._place(context):
            yield from self._session(incoming, context)

    def _session(self, incoming: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            site, serial = self._identify(context)
        except _Refused as error:
            self._warn("session refused", context, error.site, str(error))
            yield framing.refusal(error.reason, str(error))
            return
        session = Session(site, serial, self.mailbox, self._roster, self._software, self.room)
        if (words := self._enter(session)) is not None:
            self._warn("session refused", context, site, words)
            yield framing.refusal(wire.Refusal.BUSY, words)
            return
        if not context.add_callback(lambda: self._leave(session)):
            self._leave(session)  # gone already
        try:
            yield from session.frames(incoming)
        finally:
            self._leave(session)

    def _serve_fetch(
        self, incoming: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        context.set_trailing_metadata(((TIME_KEY, f"{time.time():.3f}"),))
        with self._place(context):
            site = ""
            try:
                site, serial = self._identify(context)
                self._begin_fetch(site, context)
                data = self._request(site, serial, incoming, context)
                job_sha256 = _requested_job(data, site)
                blob = self._look_up(site, job_sha256)
                log.info("fetch", site=site, job=job_sha256[:12], bytes=len(blob))
                yield from framing.split(blob, message_type=FETCH, job_sha256=job_sha256)
            except _Refused as error:
                self._warn("fetch refused", context, error.site, str(error))
                yield framing.refusal(error.reason, str(error))
            finally:
                self._end_fetch(site, context)

    def _serve_call(
        self, name: str, incoming: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        site = ""
        with self._place(context):
            try:
                site, serial = self._identify(context)
                with self._one_call(name, site):
                    data = self._request(site, serial, incoming, context)
                    return self._answers[name](site, serial, data)
            except Refusal as error:
                if not isinstance(error, _Refused):
                    error = _Refused(_reason_of(error), str(error), site)
                self._warn("call refused", context, error.site, str(error), call=name)
                return framing.refusal(error.reason, str(error))
            except (InvalidInput, StorageFailed) as error:
                # A fault of the server's own files: the operator's to read, and not the site's.
                log.error("call failed", call=name, site=site, reason=str(error))
                return framing.refusal(wire.Refusal.UNSPECIFIED, "the server cannot do this now")

    @contextmanager
    def _place(self, context: grpc.ServicerContext) -> Iterator[None]:
        """One of the caller's places, for as long as its call holds a thread."""
        try:
            site, _ = _caller(context)
        except InvalidInput:
            site = ""  # those who have no name share theirs
        if not self._calls.take(site):
            words = "site must have few calls open at a time, got one more"
            self._warn("call refused", context, site, words)
            # Without a frame, which the caller might not read.
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, words)
        try:
            yield
        finally:
            self._calls.give_back(site)

    @contextmanager
    def _one_call(self, name: str, site: str) -> Iterator[None]:
        with self._lock:
            if (name, site) in self._answering:
                words = f"site {site} must make one such call at a time, got a second"
                raise _Refused(wire.Refusal.BUSY, words, site)
            self._answering.add((name, site))
        try:
            yield
        finally:
            with self._lock:
                self._answering.discard((name, site))

    def _request(
        self, site: str, serial: int, incoming: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        data = self._calls.request(site, incoming, context)
        if data is None:
            raise _Refused(wire.Refusal.PROTOCOL, "call must bring a request, got none", site)
        self._require_admitted(site, serial, context)  # seconds may have passed
        return data

    def _warn(
        self, event: str, context: grpc.ServicerContext, site: str, reason: str, **values: str
    ) -> None:
        """Some a minute of one site: a revoked one may come as often as it likes."""
        self._repeats.warning(event, site, **values, peer=context.peer(), site=site, reason=reason)

    def _identify(self, context: grpc.ServicerContext) -> tuple[str, int]:
        """The site and serial number of the caller's certificate, if the roster holds it."""
        try:
            site, serial = _caller(context)
        except InvalidInput as error:
            raise _Refused(wire.Refusal.IDENTITY, str(error)) from error
        self._require_admitted(site, serial, context)
        return site, serial

    def _require_admitted(self, site: str, serial: int, context: grpc.ServicerContext) -> None:
        try:
            self._roster.check(site, serial, _chain(context))
        except Refusal as error:
            raise _Refused(wire.Refusal.ROSTER, str(error), site) from error

    def _enter(self, session: Session) -> str | None:
        """Make ``session`` its site's own; else say why not."""
        with self._lock:
            if self._is_stopping:
                return "the server stops"
            if session.site in self._sessions:
                return f"site {session.site} must have one session, got a second"
            self._sessions[session.site] = session
            return None

    def _leave(self, session: Session) -> None:
        session.close("the connection ended")
        with self._lock:
            if self._sessions.get(session.site) is session:
                del self._sessions[session.site]

    def _begin_fetch(self, site: str, context: grpc.ServicerContext) -> None:
        """Count the fetch until its stream has ended, or its connection."""
        with self._lock:
            if site in self._fetching:
                words = f"site {site} must fetch one job at a time, got a second"
                raise _Refused(wire.Refusal.BUSY, words, site)
            self._fetching[site] = context
        if not context.add_callback(lambda: self._end_fetch(site, context)):
            self._end_fetch(site, context)  # gone already

    def _end_fetch(self, site: str, context: grpc.ServicerContext) -> None:
        with self._lock:
            if self._fetching.get(site) is context:
                del self._fetching[site]

    def _look_up(self, site: str, job_sha256: str) -> bytes:
        blob = self._fetch(site, job_sha256) if self._fetch is not None else None
        if not blob:
            words = f"job must be one of {site}'s with an adapter, got {job_sha256[:12]}"
            raise _Refused(wire.Refusal.UNKNOWN_JOB, words, site)
        return blob


class _Refused(Refusal):
    def __init__(self, reason: wire.Refusal.Reason, words: str, site: str = "") -> None:
        super().__init__(words)
        self.reason = reason
        self.site = site


def _caller(context: grpc.ServicerContext) -> tuple[str, int]:
    """The site and serial number of a certificate that is ours, whatever the roster says."""
    (pem,) = context.auth_context().get("x509_pem_cert", [b""])
    return read_certificate(pem)


def _chain(context: grpc.ServicerContext) -> bytes:
    """The caller's certificates (PEM), its own first, as TLS checked them."""
    known = context.auth_context()
    return b"".join([*known.get("x509_pem_cert", []), *known.get("x509_pem_cert_chain", [])])


def _reason_of(error: Refusal) -> wire.Refusal.Reason:
    return wire.Refusal.PROTOCOL if isinstance(error, UpdateRejected) else wire.Refusal.ROSTER


def _requested_job(data: bytes, site: str) -> str:
    try:
        job_sha256 = wire.FetchRequest.FromString(data).job_sha256
    except DecodeError as error:
        words = f"fetch request must parse, got {len(data)} bytes that do not"
        raise _Refused(wire.Refusal.PROTOCOL, words, site) from error
    if not re.fullmatch("[0-9a-f]{64}", job_sha256):
        words = f"job_sha256 must be 64 hex digits, got {len(job_sha256)} characters"
        raise _Refused(wire.Refusal.PROTOCOL, words, site)
    return job_sha256
