import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from structlog.testing import capture_logs

from client.session import LinkConfig, run
from common.errors import InvalidInput, JobStopped
from common.flower import become_server
from common.link.identity import node_id
from server.grid import LinkGrid, _message_id
from server.link import LinkServer
from simulations.loopback import HOST, Loopback, make_loopback

JOB = "ab" * 32
CAP = 5_000_000
PATIENCE_S = 20.0

Handle = Callable[[Message], Message]


@pytest.fixture
def loopback(tmp_path: Path) -> Loopback:
    become_server()
    return make_loopback(tmp_path)


@pytest.fixture
def server(loopback: Loopback) -> Iterator[LinkServer]:
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    link.start()
    yield link
    link.stop()


def train(site: str, round_: int = 1, payload: bytes = b"") -> Message:
    content = RecordDict({"r": ConfigRecord({"round": round_, "payload": payload})})
    return Message(content, node_id(site), "train", group_id=str(round_))


def echo(message: Message) -> Message:
    return Message(RecordDict({"a": message.content.config_records["r"]}), reply_to=message)


@contextmanager
def live(config: LinkConfig, handle: Handle = echo) -> Iterator[threading.Event]:
    """A site that runs until the block ends; the event is set while it is connected."""
    stop, up = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=run,
        args=(
            lambda: config,
            handle,
            lambda job: CAP,
            stop,
            lambda s: up.set() if s.connected else None,
        ),
    )
    thread.start()
    try:
        yield up
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def values(replies: list[Message]) -> list[str]:
    return sorted(str(reply.content.config_records["a"]["round"]) for reply in replies)


def test_a_round_brings_every_site_s_reply(server: LinkServer, loopback: Loopback) -> None:
    grid = LinkGrid(server, ["A", "B"], CAP, JOB)
    payload = bytes(range(256)) * 9000  # several chunks each way
    with live(loopback.enroll("A", server.port)), live(loopback.enroll("B", server.port)):
        messages = [train("A", 1, payload), train("B", 2, payload)]
        replies = list(grid.send_and_receive(messages, timeout=PATIENCE_S))
    assert {reply.metadata.src_node_id for reply in replies} == {node_id("A"), node_id("B")}
    assert values(replies) == ["1", "2"]
    assert all(r.content.config_records["a"]["payload"] == payload for r in replies)


def test_a_message_keeps_its_id_when_the_witnessed_head_has_grown(loopback: Loopback) -> None:
    ids = []
    for size in (0, 3, 4):
        message = train("A", 1)
        if size:
            message.content["witnessed"] = ConfigRecord({"size": size})
        ids.append(_message_id(message, {}))
    assert ids == ids[:1] * 3
    assert _message_id(train("A", 2), {}) != ids[0]


def test_replies_are_yielded_as_they_arrive(server: LinkServer, loopback: Loopback) -> None:
    may_answer = threading.Event()

    def slow(message: Message) -> Message:
        may_answer.wait(PATIENCE_S)
        return echo(message)

    grid = LinkGrid(server, ["A", "B"], CAP, JOB)
    with live(loopback.enroll("A", server.port), slow), live(loopback.enroll("B", server.port)):
        replies = grid.send_and_receive([train("A"), train("B")], timeout=PATIENCE_S)
        assert next(replies).metadata.src_node_id == node_id("B")
        may_answer.set()
        assert next(replies).metadata.src_node_id == node_id("A")
        assert list(replies) == []


def test_replies_that_wait_are_handed_over_one_at_a_time(
    server: LinkServer, loopback: Loopback
) -> None:
    """Whoever reads them lets go of one before the next: a list would hold all of a round."""
    names = ["A", "B", "C"]
    grid = LinkGrid(server, names, CAP, JOB)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(live(loopback.enroll(name, server.port)))
        replies = grid.send_and_receive([train(name) for name in names], timeout=PATIENCE_S)
        next(replies)
        until = time.monotonic() + PATIENCE_S
        while len(grid._arrived) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        waiting = []
        for _ in range(2):
            next(replies)
            waiting.append(len(grid._arrived))
        assert next(replies, None) is None
    assert waiting == [1, 0]


def test_the_deadline_closes_with_who_replied_and_a_late_reply_is_dropped(
    server: LinkServer, loopback: Loopback
) -> None:
    may_answer = threading.Event()

    def late(message: Message) -> Message:
        may_answer.wait(PATIENCE_S)
        return echo(message)

    grid = LinkGrid(server, ["A", "B"], CAP, JOB)
    with (
        capture_logs() as events,
        live(loopback.enroll("A", server.port), late),
        live(loopback.enroll("B", server.port)) as up,
    ):
        assert up.wait(PATIENCE_S)
        replies = list(grid.send_and_receive([train("A"), train("B")], timeout=2.0))
        assert [reply.metadata.src_node_id for reply in replies] == [node_id("B")]
        may_answer.set()
        again = list(grid.send_and_receive([train("A", 2)], timeout=PATIENCE_S))
    assert values(again) == ["2"]  # and not round 1's, which came first
    assert [event["missing"] for event in events if event["event"] == "deadline passed"] == ["A"]
    assert [event["site"] for event in events if event["event"] == "reply dropped"] == ["A"]


def test_a_message_whose_reply_was_dropped_is_answered_when_it_is_sent_again(
    server: LinkServer, loopback: Loopback
) -> None:
    may_answer = threading.Event()

    def late(message: Message) -> Message:
        may_answer.wait(PATIENCE_S)
        return echo(message)

    grid = LinkGrid(server, ["A"], CAP, JOB)
    with capture_logs() as events, live(loopback.enroll("A", server.port), late) as up:
        assert up.wait(PATIENCE_S)
        assert list(grid.send_and_receive([train("A", 4)], timeout=0.5)) == []
        may_answer.set()
        end = time.monotonic() + PATIENCE_S
        while not any(event["event"] == "reply dropped" for event in events):
            assert time.monotonic() < end
            time.sleep(0.01)
        again = list(grid.send_and_receive([train("A", 4)], timeout=PATIENCE_S))
    assert values(again) == ["4"]


def test_a_message_to_a_site_that_is_away_waits_for_it(
    server: LinkServer, loopback: Loopback
) -> None:
    grid = LinkGrid(server, ["A"], CAP, JOB)
    (message_id,) = grid.push_messages([train("A", 5)])
    assert grid.pull_messages([message_id]) == []
    with live(loopback.enroll("A", server.port)):
        assert wait_for(grid, message_id).content.config_records["a"]["round"] == 5
    assert grid.pull_messages([message_id]) == []  # each reply once


def wait_for(grid: LinkGrid, message_id: str) -> Message:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := grid.pull_messages([message_id])):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


def test_an_unanswered_message_is_sent_again_to_a_site_that_comes_back(
    server: LinkServer, loopback: Loopback
) -> None:
    config = loopback.enroll("A", server.port)
    is_busy, never = threading.Event(), threading.Event()

    def dies(message: Message) -> Message:
        is_busy.set()
        never.wait(PATIENCE_S)
        return echo(message)

    grid = LinkGrid(server, ["A"], CAP, JOB)
    (message_id,) = grid.push_messages([train("A", 9)])
    with live(config, dies):
        assert is_busy.wait(PATIENCE_S)
    with live(config):
        reply = wait_for(grid, message_id)
    never.set()
    assert reply.metadata.reply_to_message_id == message_id
    assert values([reply]) == ["9"]


def test_stop_ends_whoever_waits(server: LinkServer) -> None:
    grid = LinkGrid(server, ["A"], CAP, JOB)
    threading.Timer(0.2, grid.stop).start()
    with pytest.raises(JobStopped):
        list(grid.send_and_receive([train("A")]))
    with pytest.raises(JobStopped):
        list(grid.send_and_receive([train("A", 2)]))


def test_a_stopped_grid_leaves_no_message_behind(server: LinkServer, loopback: Loopback) -> None:
    grid = LinkGrid(server, ["A"], CAP, JOB)
    threading.Timer(0.1, grid.stop).start()
    with pytest.raises(JobStopped):
        list(grid.send_and_receive([train("A")]))
    seen: list[Message] = []

    def note(message: Message) -> Message:
        seen.append(message)
        return echo(message)

    other = LinkGrid(server, ["A"], CAP, "cd" * 32)
    with live(loopback.enroll("A", server.port), note):
        assert len(list(other.send_and_receive([train("A", 8)], timeout=PATIENCE_S))) == 1
    assert [message.content.config_records["r"]["round"] for message in seen] == [8]


def test_node_ids_are_the_job_s_sites_that_are_connected(
    server: LinkServer, loopback: Loopback
) -> None:
    grid = LinkGrid(server, ["A", "B"], CAP, JOB)
    assert grid.get_node_ids() == []
    with (
        live(loopback.enroll("A", server.port)) as a,
        live(loopback.enroll("C", server.port)) as c,
    ):
        assert a.wait(PATIENCE_S)
        assert c.wait(PATIENCE_S)
        assert grid.get_node_ids() == [node_id("A")]
        assert [node.node_id for node in grid.get_nodes()] == [node_id("A")]
    deadline = time.monotonic() + PATIENCE_S
    while grid.get_node_ids():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_site_that_is_not_the_job_s_is_refused(server: LinkServer) -> None:
    with pytest.raises(InvalidInput, match="must be one of the job's sites"):
        LinkGrid(server, ["A"], CAP, JOB).push_messages([train("B")])


def test_the_same_message_twice_is_refused_and_nothing_of_it_is_sent(server: LinkServer) -> None:
    grid = LinkGrid(server, ["A"], CAP, JOB)
    with pytest.raises(InvalidInput, match="must be sent once"):
        grid.push_messages([train("A"), train("A")])
    assert server.mailbox.next_for("A", 0) is None


def test_an_id_follows_from_the_content_alone(server: LinkServer) -> None:
    def id_of(message: Message) -> str:
        grid = LinkGrid(server, ["A", "B"], CAP, JOB)
        (message_id,) = grid.push_messages([message])
        server.mailbox.withdraw("A", message_id)
        server.mailbox.withdraw("B", message_id)
        return message_id

    same = id_of(train("A"))
    time.sleep(0.01)  # another creation time
    assert id_of(train("A")) == same
    others = [train("B"), train("A", 2), train("A", 1, b"x")]
    retyped = Message(train("A").content, node_id("A"), "evaluate", group_id="1")
    assert len({same, id_of(retyped), *map(id_of, others)}) == 5


def test_a_message_that_has_an_id_keeps_it(server: LinkServer) -> None:
    message = train("A")
    message.metadata.__dict__["_message_id"] = "77" * 32
    assert LinkGrid(server, ["A"], CAP, JOB).push_messages([message]) == ["77" * 32]


def test_flower_s_own_constructor_of_messages_works(server: LinkServer) -> None:
    grid = LinkGrid(server, ["A"], CAP, JOB)
    message = grid.create_message(RecordDict(), "train", node_id("A"), "3", ttl=60)
    assert (message.metadata.group_id, message.metadata.dst_node_id) == ("3", node_id("A"))
    grid.set_run(grid.run)
