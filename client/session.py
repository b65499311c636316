"""A site's end of the link: outbound connections only, for as long as the site runs.

The stream is served by the calling thread; messages are handled one at a time in a thread of their
own, so that keepalive and shutdown go on while a model trains. A reply that is ready while the link
is down is dropped: the server asks again, and the site's outbox has the bytes.

Not covered: what a message asks for (client/app.py), why TLS fails (client/probe.py).
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import structlog

from client.probe import diagnose
from client.worker import Handle, Worker
from common.cli import installed_version
from common.errors import InvalidInput, LinkDown, UpdateRejected
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import SERVICE, SESSION, Credentials, open_channel
from common.link.framing import Assembler, Received
from common.link.identity import node_id
from common.pki import days_left

FIRST_RETRY_S, LONGEST_RETRY_S, FINAL_RETRY_S = 0.2, 30.0, 60.0
_BUSY_RETRY_S = 5.0
_WELCOME_TIMEOUT_S = 15.0
_POLL_S = 0.1
_REMEDY = "ask the operator for a new enrolment"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """Where the server is, and who this site is to it. Certificates and key are PEM."""

    server: str
    root_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    site: str

    @property
    def credentials(self) -> Credentials:
        """As gRPC takes them."""
        return Credentials(self.root_pem, self.certificate_pem, self.key_pem)

    def why_not(self) -> str:
        """Why the server cannot be reached, in one sentence; takes seconds."""
        return diagnose(self.server, self.root_pem, self.certificate_pem, self.key_pem, self.site)


@dataclass(frozen=True, slots=True)
class State:
    """Whether the link is up and, when not, why in words."""

    connected: bool
    reason: str = ""


class Turned(LinkDown):
    """The server answered, and turned this site away."""

    def __init__(self, reason: wire.Refusal.Reason, words: str) -> None:
        super().__init__(f"server refused: {words}")
        self.reason = reason


def run(
    current: Callable[[], LinkConfig],
    handle: Handle,
    cap: Callable[[str], int],
    stop: threading.Event,
    observe: Callable[[State], None],
) -> None:
    """Keep a session with the server until ``stop`` is set; returns within two seconds of it.

    Args:
        current: the server and this site's certificate, asked before each session and often within
            one: when it gives another, the session ends between two messages and the next one uses
            that. A LinkDown that it raises ends the session and keeps the link down.
        handle: answers one message; called from one other thread. What it raises is logged, and
            the server is told no more than that this site does not take part.
        cap: the most bytes a message of a job (by sha256) may have; for a job it does not know,
            ``common.link.framing.UNKNOWN_JOB_CAP_BYTES``.
        stop: ends it. A message being handled then is abandoned.
        observe: told of every change of state.

    Raises:
        Exception: a reply that ``handle`` gave could not be written.
    """
    worker = Worker(handle)
    failures, told = 0, ""
    while not stop.is_set():
        end = _serve(current, cap, worker, stop, failures, observe)
        worker.raise_failure()
        if stop.is_set():
            break
        failures = 1 if end.was_welcome else failures + 1
        observe(State(connected=False, reason=end.words))
        if end.is_planned:
            log.info("link reopens", reason=end.words)
        elif end.was_welcome or end.words != told:  # said once, however often it is tried again
            log.warning("link down", reason=end.words, retry_s=round(end.delay_s, 1))
        told = end.words
        _pause(current, end, stop)
    observe(State(connected=False, reason="stopped"))


@dataclass(frozen=True, slots=True)
class _End:
    """How a session ended, and how long to wait before the next."""

    words: str
    delay_s: float
    was_welcome: bool = False
    config: LinkConfig | None = None
    is_planned: bool = False


def _serve(
    current: Callable[[], LinkConfig],
    cap: Callable[[str], int],
    worker: Worker,
    stop: threading.Event,
    failures: int,
    observe: Callable[[State], None],
) -> _End:
    """One session, from the certificate that it uses to its end."""
    try:
        config = current()
    except LinkDown as error:
        return _End(str(error), _delay(error, failures))
    session = _Session(config, current, cap, worker, stop)
    try:
        session.serve(lambda: observe(State(connected=True)))
    except LinkDown as error:
        if session.doubt:
            return _End(session.doubt, _delay(None, 0), session.is_welcome)
        if session.is_outdated:
            words = "this site has another certificate or root now"
            return _End(words, 0.0, session.is_welcome, is_planned=True)
        is_final = _is_final(config, error)
        words = _words(config, error, session, stop) + (f"; {_REMEDY}" if is_final else "")
        delay_s = _delay(error, failures, is_final=is_final)
        return _End(words, delay_s, session.is_welcome, config)
    return _End("the server closed the session", _delay(None, 0), session.is_welcome, config)


def _pause(current: Callable[[], LinkConfig], end: _End, stop: threading.Event) -> None:
    """Wait; another certificate than the one that failed is tried at once."""
    until = time.monotonic() + end.delay_s
    while (left_s := until - time.monotonic()) > 0 and not stop.wait(min(left_s, _POLL_S)):
        if end.config is not None and _differs(current, end.config):
            return


def _differs(current: Callable[[], LinkConfig], config: LinkConfig) -> bool:
    try:
        return current() is not config
    except LinkDown:
        return True


class _Session:
    """One connection, from hello to its end."""

    def __init__(
        self,
        config: LinkConfig,
        current: Callable[[], LinkConfig],
        cap: Callable[[str], int],
        worker: Worker,
        stop: threading.Event,
    ) -> None:
        self.is_welcome = False
        self.is_outdated = False
        self.doubt = ""
        self._config = config
        self._current = current
        self._cap = cap
        self._worker = worker
        self._stop = stop
        self._outgoing: queue.SimpleQueue[Iterator[bytes] | None] = queue.SimpleQueue()
        self._assembler = Assembler(self._admit)

    def serve(self, on_welcome: Callable[[], None]) -> None:
        """Connect and take frames until the server, the network or ``stop`` ends it.

        Raises:
            LinkDown: the connection failed or broke.
            Turned: the server refused this site.
        """
        with open_channel(self._config.server, self._config.credentials) as channel:
            call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(self._frames())
            watch = threading.Thread(target=self._watch, args=(call,), daemon=True)
            watch.start()
            try:
                for data in call:
                    self._take(framing.parse(data), on_welcome)
            except grpc.RpcError as error:
                raise LinkDown(_rpc_words(error)) from error
            except UpdateRejected as error:
                log.warning("server's frame refused", reason=str(error))
                raise LinkDown(f"server must keep to the protocol: {error}") from error
            finally:
                self._worker.detach(self._send)
                self._outgoing.put(None)
                call.cancel()

    def _frames(self) -> Iterator[bytes]:
        yield framing.hello(installed_version())
        while (frames := self._outgoing.get()) is not None:
            yield from frames

    def _watch(self, call: grpc.Call) -> None:
        """Cancel the call on ``stop``, when no welcome comes, or for another certificate."""
        waited_s = 0.0
        while call.is_active():
            if self._stop.wait(_POLL_S) or self._worker.has_failed:
                call.cancel()
            if self._must_end():
                self.is_outdated = True
                call.cancel()
            waited_s += _POLL_S
            if not self.is_welcome and waited_s > _WELCOME_TIMEOUT_S:
                call.cancel()

    def _must_end(self) -> bool:
        """At once where trust is in doubt; for another certificate, when nothing is under way."""
        try:
            return self._current() is not self._config and self._worker.is_idle
        except LinkDown as error:
            self.doubt = str(error)
            return True

    def _take(self, frame: wire.Frame, on_welcome: Callable[[], None]) -> None:
        kind = frame.WhichOneof("body")
        if kind == "refusal":
            raise Turned(frame.refusal.reason, frame.refusal.words[:500])
        if kind == "goodbye":
            raise LinkDown(f"server said goodbye: {frame.goodbye.words[:200]}")
        if kind == "welcome" and not self.is_welcome:
            self._welcome(frame.welcome)
            on_welcome()
        elif not self.is_welcome:
            raise UpdateRejected(f"first frame must be a welcome, got a {kind}")
        elif (received := self._assembler.take(frame)) is not None:
            self._receive(received)

    def _welcome(self, welcome: wire.Welcome) -> None:
        if welcome.protocol != framing.PROTOCOL:
            raise UpdateRejected(
                f"protocol version must be {framing.PROTOCOL}, got {welcome.protocol}"
            )
        self.is_welcome = True
        self._worker.attach(self._send)
        log.info("link up", server=self._config.server, software=welcome.software[:40])

    def _admit(self, header: wire.MessageHeader) -> bool:
        framing.require_size(header, self._cap(header.job_sha256))
        return True

    def _receive(self, received: Received) -> None:
        body = received.body
        if body is None:
            return
        message = framing.open_message(received.header, body)
        if message.metadata.dst_node_id != node_id(self._config.site):
            raise UpdateRejected("message must be for this site, got one for another")
        if not message.metadata.message_id:
            raise UpdateRejected("message must have an id, got none")
        self._worker.accept(message, received.header.job_sha256)

    def _send(self, frames: Iterator[bytes]) -> None:
        self._outgoing.put(frames)


def _is_final(config: LinkConfig, error: LinkDown) -> bool:
    """Whether nothing but another certificate can help."""
    if isinstance(error, Turned):
        return error.reason in (wire.Refusal.ROSTER, wire.Refusal.IDENTITY)
    try:
        return days_left(config.certificate_pem) < 0
    except InvalidInput:
        return False  # what is wrong with it is the probe's to say


def _delay(error: LinkDown | None, failures: int, *, is_final: bool = False) -> float:
    """Seconds until the next attempt: full jitter, so that sites do not return all at once."""
    if is_final:
        return random.uniform(FINAL_RETRY_S, 2 * FINAL_RETRY_S)
    if isinstance(error, Turned):
        # Asking again cannot help soon. A killed site's old session ends by itself, though.
        longest = _BUSY_RETRY_S if error.reason == wire.Refusal.BUSY else LONGEST_RETRY_S
        return random.uniform(longest / 2, longest)
    return random.uniform(0, min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** min(failures, 16)))


def _words(config: LinkConfig, error: LinkDown, session: _Session, stop: threading.Event) -> str:
    """Why the link is down; asks the probe when a connection never came to be."""
    if session.is_welcome or isinstance(error, Turned) or stop.is_set():
        return str(error)
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Beside this thread, as a probe may wait longer than a stop may take.
    threading.Thread(target=lambda: answer.put(config.why_not()), daemon=True).start()
    while not stop.is_set():
        try:
            return answer.get(timeout=_POLL_S)
        except queue.Empty:
            continue
    return str(error)


def _rpc_words(error: grpc.RpcError) -> str:
    details = error.details() if isinstance(error, grpc.Call) else None
    return f"connection broke: {details or 'no reason given'}"
