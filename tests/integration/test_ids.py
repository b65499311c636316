"""One id at both ends of the link: the oracle is the other end."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from flwr.app import Message, RecordDict

from client.worker import Worker
from common import log
from common.flower import become_server, set_message_id
from server.grid import LinkGrid
from server.link import LinkServer
from server.session import _id
from simulations.loopback import HOST, make_loopback

JOB = hashlib.sha256(b"a job").hexdigest()


@pytest.fixture
def events() -> Iterator[io.StringIO]:
    become_server()
    stream = io.StringIO()
    log.configure(level="debug", json_lines=True, stream=stream)
    yield stream
    structlog.reset_defaults()


def test_the_server_and_the_site_call_an_exchange_the_same(
    events: io.StringIO, tmp_path: Path
) -> None:
    # The server's id is made of the letter in its mailbox, the site's of what it received.
    loopback = make_loopback(tmp_path)
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    grid = LinkGrid(link, ["A"], 1000, JOB)
    (number,) = grid._site_of
    sent = Message(RecordDict(), number, "train", group_id="7")
    (message_id,) = grid.push_messages([sent])
    letter = link.mailbox.lookup("A", message_id).letter
    assert letter is not None

    received = Message(RecordDict(), number, "train", group_id="7")
    set_message_id(received, message_id)
    done = threading.Event()

    def handle(message: Message) -> Message:
        structlog.get_logger().info("round starts")
        return Message(RecordDict(), reply_to=message)

    worker = Worker(handle, "A")
    worker.attach(lambda _: done.set())
    worker.accept(received, JOB)
    assert done.wait(20)
    (at_the_site,) = [e["id"] for e in read(events) if e["event"] == "round starts"]
    assert at_the_site == _id(letter) == f"{JOB[:12]}/r7/{message_id[:8]}"


def read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_a_handler_logs_bears_its_message_and_nothing_else_does(events: io.StringIO) -> None:
    done = threading.Event()

    def handle(message: Message) -> Message:
        structlog.get_logger().info("handled")
        raise MemoryError

    worker = Worker(handle, "A")
    worker.attach(lambda _: done.set())
    for number in (1, 2):
        message = Message(RecordDict(), 5, "train", group_id=str(number))
        set_message_id(message, f"{number:064x}")
        worker.accept(message, JOB)
        assert done.wait(20)
        done.clear()
    structlog.get_logger().info("elsewhere")
    found = [(e["event"], e.get("id")) for e in read(events)]
    expected = [f"{JOB[:12]}/r{n}/00000000" for n in (1, 2)]
    assert found == [
        ("handled", expected[0]),
        ("message broke", expected[0]),
        ("handled", expected[1]),
        ("message broke", expected[1]),
        ("elsewhere", None),
    ]
