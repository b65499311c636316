"""Every fault of a network on the real link: a reply comes once, whole, and is made once.

A ``LinkServer`` and a site's ``session.run``, TLS and all, with a proxy between that breaks what
passes. The site keeps its replies by message, as its outbox does.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from client.session import State, run
from common.flower import become_server
from common.link.codecs import CODECS, Vector
from common.link.identity import node_id
from common.link.payload import message_cap, pack, unpack
from server.grid import LinkGrid
from server.link import LinkServer
from simulations.benchmarks.link import OneTensor
from simulations.loopback import HOST, make_loopback
from tests.faults.proxy import Fault, FaultProxy

JOB = "ab" * 32
TABLE, CODEC = OneTensor(300_000), CODECS["fp32"]  # 1.2 MB: two chunks
CAP = message_cap(TABLE, CODEC)
PATIENCE_S = 60.0


def vector_of(round_: int) -> Vector:
    return np.full(TABLE.size, round_, np.float32)


@dataclass
class Bench:
    """A server, a site behind a proxy, and what the site did."""

    grid: LinkGrid
    proxy: FaultProxy
    states: list[State] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Message] = field(default_factory=dict)
    round: int = 0

    def handle(self, message: Message) -> Message:
        """The same answer to the same message, made once; another id would be made anew."""
        asked = message.metadata.message_id
        if asked not in self.kept:
            self.made[asked] += 1
            doubled = 2 * unpack(message.content, TABLE, CODEC)
            self.kept[asked] = Message(
                RecordDict({**pack(doubled, TABLE, CODEC)}), reply_to=message
            )
        return self.kept[asked]

    def play(self) -> None:
        """One round; its one reply is the right one."""
        self.round += 1
        content = RecordDict({**pack(vector_of(self.round), TABLE, CODEC)})
        asked = Message(content, node_id("A"), "train", group_id=str(self.round))
        replies = list(self.grid.send_and_receive([asked], timeout=PATIENCE_S))
        assert len(replies) == 1
        got = unpack(replies[0].content, TABLE, CODEC)
        assert np.array_equal(got, 2 * vector_of(self.round))
        assert set(self.made.values()) == {1}
        assert len(self.made) == self.round


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    become_server()
    folder: Path = tmp_path_factory.mktemp("link")
    loopback, stop = make_loopback(folder), threading.Event()
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    link.start()
    with FaultProxy(link.port) as proxy:
        config = loopback.enroll("A", proxy.port)
        made = Bench(LinkGrid(link, ["A"], CAP, JOB), proxy)
        site = threading.Thread(
            target=run,
            args=(
                lambda: config,
                made.handle,
                lambda job: CAP,
                stop,
                made.states.append,
            ),
        )
        site.start()
        made.play()
        yield made
        stop.set()
        site.join(10)
    link.stop()


BODY = 1_200_000
BREAKS = {
    "cut before a reply": Fault("cut", "up", 0),
    "cut in a reply's header": Fault("cut", "up", 100),
    "cut in a reply's first chunk": Fault("cut", "up", 500_000),
    "cut in a reply's last chunk": Fault("cut", "up", BODY - 100),
    "cut before an order": Fault("cut", "down", 0),
    "cut in the middle of an order": Fault("cut", "down", 600_000),
    "cut at an order's end": Fault("cut", "down", BODY - 100),
    "half-closed by the site in a reply": Fault("half-close", "up", 400_000),
    "half-closed by the server in an order": Fault("half-close", "down", 400_000),
    "bytes twice, up": Fault("duplicate", "up", 300_000),
    "bytes twice, down": Fault("duplicate", "down", 300_000),
    "garbage up": Fault("garbage", "up", 200_000),
    "garbage down": Fault("garbage", "down", 200_000),
}
SLOWS = {
    "a tenth of a second later": Fault("delay", delay_s=0.02),
    "three megabytes a second": Fault("bandwidth", bytes_per_s=3_000_000),
}


# One of each kind, and each way.
QUICK = {
    "cut in a reply's first chunk",
    "cut before an order",
    "half-closed by the server in an order",
    "bytes twice, up",
    "garbage down",
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BREAKS],
)
def test_a_link_that_breaks_in_a_round_brings_one_reply_that_was_made_once(
    bench: Bench, fault: str
) -> None:
    begun = len(bench.states)
    bench.proxy.set(BREAKS[fault])
    bench.play()
    assert bench.proxy.has_struck.is_set()
    bench.play()
    down, up = bench.states[begun:][-2:]
    assert not down.connected
    assert up.connected
    assert down.reason.startswith(("connection broke: ", "the server closed the session"))


@pytest.mark.parametrize(
    "fault",
    [
        "a tenth of a second later",
        pytest.param("three megabytes a second", marks=pytest.mark.slow),
    ],
)
def test_a_slow_link_is_waited_for_and_not_left(bench: Bench, fault: str) -> None:
    begun = len(bench.states)
    bench.proxy.set(SLOWS[fault])
    bench.play()
    bench.proxy.lift()
    assert bench.states[begun:] == []


@pytest.mark.parametrize(
    "way",
    ["both", *(pytest.param(way, marks=pytest.mark.slow) for way in ("up", "down"))],
)
def test_a_short_partition_in_a_round_loses_nothing(bench: Bench, way: str) -> None:
    begun, done = len(bench.states), threading.Event()

    def heal() -> None:
        done.wait(1.0)
        bench.proxy.lift()

    bench.proxy.set(Fault("stall", way))  # type: ignore[arg-type]
    healer = threading.Thread(target=heal)
    healer.start()
    bench.play()
    healer.join()
    assert bench.states[begun:] == []


def test_a_server_out_of_reach_is_named_and_found_again(bench: Bench) -> None:
    begun = len(bench.states)
    bench.proxy.set(Fault("refuse"))
    ready = threading.Event()
    while len(bench.states) < begun + 2:  # the break, and why no new link comes up
        ready.wait(0.02)
    bench.proxy.lift()
    bench.play()
    broke, refused = bench.states[begun : begun + 2]
    assert broke.reason.startswith("connection broke")
    # As early as the connection, or in the handshake.
    assert re.search("cannot be reached: Conn|closed the conn.* in the TLS handsh", refused.reason)
    assert bench.states[-1].connected
