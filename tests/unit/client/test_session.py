import datetime as dt
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from structlog.testing import capture_logs

from client import session
from client.session import LinkConfig, State, run
from client.worker import Handle
from common import pki
from common.errors import JobRefused, LinkDown
from common.flower import become_server
from common.link import federation_pb2 as wire
from common.link.channel import SERVICE, SESSION, server_credentials
from common.link.identity import node_id
from server.grid import LinkGrid
from server.link import LinkServer
from server.mailbox import Letter
from simulations.loopback import HOST, Loopback, make_loopback

JOB = "ab" * 32
CAP = 5_000_000
PATIENCE_S = 20.0
REMEDY = "; ask the operator for a new enrolment"


@pytest.fixture
def loopback(tmp_path: Path) -> Loopback:
    become_server()
    return make_loopback(tmp_path)


def start(loopback: Loopback, port: int = 0) -> LinkServer:
    link = LinkServer(f"{HOST}:{port}", loopback.credentials, loopback.roster)
    link.start()
    return link


@pytest.fixture
def server(loopback: Loopback) -> Iterator[LinkServer]:
    link = start(loopback)
    yield link
    link.stop()


class Site:
    """The real session in a thread of the test."""

    def __init__(self, config: LinkConfig, handle: Handle, cap: int = CAP) -> None:
        self.stop = threading.Event()
        self.states: queue.SimpleQueue[State] = queue.SimpleQueue()
        self.raised: list[BaseException] = []
        self._arguments = (lambda: config, handle, lambda job: cap, self.stop, self.states.put)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            run(*self._arguments)
        except AttributeError as error:
            self.raised.append(error)

    def next_state(self) -> State:
        return self.states.get(timeout=PATIENCE_S)

    def end(self) -> float:
        """Stop; return how long that took."""
        begin = time.monotonic()
        self.stop.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return time.monotonic() - begin


def train(site: str, round_: int = 1, payload: bytes = b"") -> Message:
    content = RecordDict({"r": ConfigRecord({"round": round_, "payload": payload})})
    return Message(content, node_id(site), "train", group_id=str(round_))


def echo(message: Message) -> Message:
    return Message(RecordDict({"a": message.content.config_records["r"]}), reply_to=message)


def test_a_site_comes_back_after_the_server_restarts_on_the_same_port(loopback: Loopback) -> None:
    first = start(loopback)
    site = Site(loopback.enroll("A", first.port), echo)
    assert site.next_state() == State(connected=True)
    first.stop()
    down = site.next_state()
    assert not down.connected
    assert "server stops" in down.reason

    second = start(loopback, first.port)
    while not site.next_state().connected:
        pass
    grid = LinkGrid(second, ["A"], CAP, JOB)
    assert len(list(grid.send_and_receive([train("A")], timeout=PATIENCE_S))) == 1
    site.end()
    second.stop()


def test_a_server_that_is_not_there_is_named_and_waited_for(loopback: Loopback) -> None:
    link = start(loopback)
    link.stop()  # its port is free now
    site = Site(loopback.enroll("A", link.port), echo)
    state = site.next_state()
    assert not state.connected
    assert str(link.port) in state.reason
    again = start(loopback, link.port)
    while not site.next_state().connected:
        pass
    site.end()
    again.stop()


def test_stop_returns_within_two_seconds_while_a_message_is_handled(
    server: LinkServer, loopback: Loopback
) -> None:
    is_busy, never = threading.Event(), threading.Event()

    def hang(message: Message) -> Message:
        is_busy.set()
        never.wait(PATIENCE_S)
        return echo(message)

    site = Site(loopback.enroll("A", server.port), hang)
    LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    assert is_busy.wait(PATIENCE_S)
    assert site.end() < 2  # the promise itself, not a benchmark
    never.set()


def test_stop_returns_at_once_while_waiting_to_retry(loopback: Loopback) -> None:
    link = start(loopback)
    link.stop()
    site = Site(loopback.enroll("A", link.port), echo)
    site.next_state()
    assert site.end() < 2


def test_a_message_resent_while_it_is_handled_is_handled_once(
    server: LinkServer, loopback: Loopback
) -> None:
    calls: list[str] = []
    is_busy, may_answer = threading.Event(), threading.Event()

    def slow(message: Message) -> Message:
        calls.append(message.metadata.message_id)
        is_busy.set()
        may_answer.wait(PATIENCE_S)
        return echo(message)

    site = Site(loopback.enroll("A", server.port), slow)
    grid = LinkGrid(server, ["A"], CAP, JOB)
    replies = grid.send_and_receive([train("A")], timeout=PATIENCE_S)
    waiter = threading.Thread(target=lambda: got.extend(replies))
    got: list[Message] = []
    waiter.start()
    assert is_busy.wait(PATIENCE_S)
    for live in list(server._sessions.values()):
        live.close("a test breaks the connection")
    states = [site.next_state() for _ in range(3)]
    assert [state.connected for state in states] == [True, False, True]
    while server.mailbox.next_for("A", server._sessions["A"]._last_sent) is not None:
        time.sleep(0.01)  # until the message has left again
    time.sleep(0.2)
    may_answer.set()
    waiter.join(PATIENCE_S)
    site.end()
    assert len(calls) == 1
    assert len(got) == 1


def test_a_handler_s_refusal_reaches_the_server_without_its_reason(
    server: LinkServer, loopback: Loopback
) -> None:
    def refuse(message: Message) -> Message:
        raise JobRefused("records must be more than 3, got 2")

    site = Site(loopback.enroll("A", server.port), refuse)
    grid = LinkGrid(server, ["A"], CAP, JOB)
    (reply,) = grid.send_and_receive([train("A")], timeout=PATIENCE_S)
    site.end()
    assert reply.has_error()
    assert reply.error.reason == "not participating"


@pytest.mark.parametrize("bug", [ZeroDivisionError, MemoryError, RuntimeError])
def test_a_bug_in_the_handler_stays_here_and_the_site_goes_on(
    server: LinkServer, loopback: Loopback, bug: type[Exception]
) -> None:
    def break_once(message: Message) -> Message:
        if message.content.config_records["r"]["round"] == 1:
            raise bug("a patient's words")
        return echo(message)

    with capture_logs() as events:
        site = Site(loopback.enroll("A", server.port), break_once)
        grid = LinkGrid(server, ["A"], CAP, JOB)
        (broken,) = grid.send_and_receive([train("A", 1)], timeout=PATIENCE_S)
        (whole,) = grid.send_and_receive([train("A", 2)], timeout=PATIENCE_S)
        site.end()
    assert (broken.error.code, broken.error.reason) == (0, "not participating")
    assert whole.has_content()
    (event,) = [e for e in events if e["event"] == "message broke"]
    assert (event["log_level"], event["error"]) == ("error", bug.__name__)
    assert "break_once" in event["where"]
    assert "patient" not in str(events)


def give_nothing(message: Message) -> Message:
    return None  # type: ignore[return-value]


def test_a_reply_that_cannot_be_written_ends_the_run_and_is_raised(
    server: LinkServer, loopback: Loopback
) -> None:
    hook, threading.excepthook = threading.excepthook, lambda details: None
    try:
        site = Site(loopback.enroll("A", server.port), give_nothing)
        LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
        site.thread.join(PATIENCE_S)
    finally:
        threading.excepthook = hook
    assert [type(error) for error in site.raised] == [AttributeError]


def test_a_message_over_the_site_s_cap_is_not_taken(server: LinkServer, loopback: Loopback) -> None:
    handled: list[Message] = []

    def note(message: Message) -> Message:
        handled.append(message)
        return echo(message)

    site = Site(loopback.enroll("A", server.port), note, cap=1000)
    assert site.next_state().connected
    LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A", 1, b"x" * 2000)])
    state = site.next_state()
    site.end()
    assert "message must be at most 1000 bytes" in state.reason
    assert handled == []


def test_a_refused_site_hears_why_and_asks_again_slowly(
    server: LinkServer, loopback: Loopback
) -> None:
    config = loopback.enroll("A", server.port)
    loopback.roster.revoke("A")
    site = Site(config, echo)
    state = site.next_state()
    assert state.reason.startswith("server refused: ")
    assert "revoked" in state.reason
    assert state.reason.endswith("; ask the operator for a new enrolment")
    site.end()
    refusal = session.Turned(wire.Refusal.ROSTER, "x")
    assert session._is_final(config, refusal)
    delays = [session._delay(refusal, 0, is_final=True) for _ in range(50)]
    assert min(delays) >= 60


@pytest.mark.parametrize("revoked", [True, False])
def test_what_keeps_the_link_down_is_logged_once(
    server: LinkServer, loopback: Loopback, monkeypatch: pytest.MonkeyPatch, revoked: bool
) -> None:
    monkeypatch.setattr(session, "FINAL_RETRY_S", 0.01)
    monkeypatch.setattr(session, "LONGEST_RETRY_S", 0.01)
    config = loopback.enroll("A", server.port)
    loopback.roster.revoke("A")
    if not revoked:
        server.stop()
    with capture_logs() as events:
        site = Site(config, echo)
        reasons = {site.next_state().reason for _ in range(3)}
        site.end()
    assert len(reasons) == 1
    assert [e["reason"] for e in events if e["event"] == "link down"] == list(reasons)


def test_a_busy_server_or_a_broken_line_is_not_final(loopback: Loopback) -> None:
    config = loopback.enroll("A", 1)
    assert not session._is_final(config, session.Turned(wire.Refusal.BUSY, "x"))
    assert not session._is_final(config, LinkDown("x"))


def test_an_expired_certificate_is_final(loopback: Loopback) -> None:
    key, csr = pki.new_site_key_and_csr("A")
    issued = dt.datetime.now(dt.UTC) - dt.timedelta(days=9)
    chain = pki.issue_site(csr, loopback.intermediate, days=3, now=issued)
    config = LinkConfig(f"{HOST}:1", loopback.root.certificate, chain, key, "A")
    site = Site(config, echo)
    reason = site.next_state().reason
    site.end()
    assert "expired" in reason
    assert reason.endswith(REMEDY)


def test_a_site_revoked_while_it_idles_is_cut_off_at_once(
    server: LinkServer, loopback: Loopback
) -> None:
    with capture_logs() as events:
        site = Site(loopback.enroll("A", server.port), echo)
        assert site.next_state().connected
        begin = time.monotonic()
        loopback.roster.revoke("A")
        state = site.next_state()
        seconds = time.monotonic() - begin
        site.end()
    assert not state.connected
    assert "revoked" in state.reason
    assert seconds < 4  # the promise is two; the machine may be busy
    refused = [e for e in events if e["event"] == "session refused"]
    assert [(e["site"], e["log_level"]) for e in refused] == [("A", "warning")]
    assert "revoked" in refused[0]["reason"]


@pytest.mark.parametrize(("failures", "longest"), [(0, 0.2), (1, 0.4), (5, 6.4), (8, 30), (99, 30)])
def test_the_backoff_doubles_with_full_jitter_up_to_half_a_minute(
    failures: int, longest: float
) -> None:
    delays = [session._delay(LinkDown("x"), failures) for _ in range(400)]
    assert 0.9 * longest < max(delays) <= longest
    assert min(delays) < 0.1 * longest


def test_a_message_for_another_site_is_not_handled(server: LinkServer, loopback: Loopback) -> None:
    handled: list[Message] = []

    def note(message: Message) -> Message:
        handled.append(message)
        return echo(message)

    message = train("B")
    message.metadata.__dict__["_message_id"] = "77" * 32
    server.mailbox.post(Letter("A", "77" * 32, JOB, message, CAP, handled.append))
    site = Site(loopback.enroll("A", server.port), note)
    assert site.next_state().connected
    assert "must be for this site" in site.next_state().reason
    site.end()
    assert handled == []


def test_a_server_that_never_welcomes_is_left(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_WELCOME_TIMEOUT_S", 0.3)
    is_over = threading.Event()

    def say_nothing(incoming: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        is_over.wait(PATIENCE_S)
        yield from ()

    mute = grpc.server(ThreadPoolExecutor(2))
    handler = {SESSION: grpc.stream_stream_rpc_method_handler(say_nothing)}
    mute.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handler),))
    port = mute.add_secure_port(f"{HOST}:0", server_credentials(lambda: loopback.credentials))
    mute.start()
    site = Site(loopback.enroll("A", port), echo)
    assert not site.next_state().connected
    site.end()
    is_over.set()
    mute.stop(0).wait()
