"""Room for replies: who waits, for whom, and how long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.session import LinkConfig, run
from common.flower import become_server
from common.link.identity import node_id
from server.grid import LinkGrid
from server.link import LinkServer
from server.room import SMALL_BYTES, Room
from simulations.loopback import HOST, make_loopback

PATIENCE_S = 60.0
LARGE = 10 * SMALL_BYTES


def soon(claim: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not claim() and time.monotonic() < until:
        time.sleep(0.01)
    return claim()


def test_who_has_no_room_waits_until_there_is_some() -> None:
    room, taken = Room(3 * LARGE, PATIENCE_S), list[int]()
    for _ in range(3):
        assert room.take(LARGE) == LARGE
    thread = threading.Thread(target=lambda: taken.append(room.take(LARGE)))
    thread.start()
    time.sleep(0.1)
    assert taken == []
    room.give_back(LARGE)
    thread.join(PATIENCE_S)
    assert taken == [LARGE]


def test_a_small_reply_needs_no_room_and_one_larger_than_all_of_it_has_some() -> None:
    room = Room(LARGE, PATIENCE_S)
    assert room.take(5 * LARGE) == 5 * LARGE
    assert room.take(SMALL_BYTES) == 0
    room.give_back(0)


def test_nobody_waits_for_ever_for_one_that_stops_within_its_reply() -> None:
    room = Room(LARGE, 0.05)
    room.take(LARGE)
    assert room.take(LARGE) == LARGE


@contextmanager
def live(config: LinkConfig) -> Iterator[None]:
    """A site that answers every order with the bytes that it was asked for."""
    stop = threading.Event()

    def echo(message: Message) -> Message:
        return Message(RecordDict({"a": message.content["r"]}), reply_to=message)

    def cap(_: str) -> int:
        return 2 * LARGE

    thread = threading.Thread(target=run, args=(lambda: config, echo, cap, stop, lambda _: None))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)


@pytest.mark.parametrize("is_withdrawn", [False, True])
def test_replies_come_in_as_the_one_who_reads_them_lets_go(
    tmp_path: Path, is_withdrawn: bool
) -> None:
    """Of five, room for two: two wait to be read, and no third while both are held."""
    become_server()
    loopback, names = make_loopback(tmp_path), ["A", "B", "C", "D", "E"]
    server = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    server.room = Room(2 * LARGE + LARGE // 2, PATIENCE_S)
    server.start()
    grid = LinkGrid(server, names, 2 * LARGE, "ab" * 32)

    def order(name: str) -> Message:
        content = RecordDict({"r": ConfigRecord({"payload": bytes(LARGE)})})
        return Message(content, node_id(name), "train", group_id="1")

    try:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(live(loopback.enroll(name, server.port)))
            replies = grid.send_and_receive([order(name) for name in names], timeout=PATIENCE_S)
            held = [next(replies)]
            assert soon(lambda: len(grid._arrived) == 1)
            time.sleep(0.3)
            assert len(grid._arrived) == 1
            if is_withdrawn:
                replies.close()  # type: ignore[attr-defined]
            else:
                nodes = {held[0].metadata.src_node_id}
                for _ in names[1:]:
                    held = [next(replies)]  # lets go of the one before
                    nodes.add(held[0].metadata.src_node_id)
                assert nodes == {node_id(name) for name in names}
            held.clear()
            del replies
            assert soon(lambda: server.room._taken_bytes == 0)
    finally:
        server.stop()
