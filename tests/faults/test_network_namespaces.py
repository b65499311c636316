"""A cable that is pulled: a site in a network of its own, whose packets are lost for a while."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from structlog.testing import capture_logs

from common import pki
from common.flower import become_server
from common.link.channel import Credentials
from common.link.identity import node_id
from server.grid import LinkGrid
from server.link import LinkServer
from simulations.loopback import make_loopback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root, and ip of iproute2"
    ),
]
PATIENCE_S = 120.0
HERE, THERE = "10.213.77.1", "10.213.77.2"

SITE = """
import sys, threading
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from client.session import LinkConfig, run
folder, server = Path(sys.argv[1]), sys.argv[2]
pem = {name: (folder / name).read_bytes() for name in ("root", "chain", "key")}
config = LinkConfig(server, pem["root"], pem["chain"], pem["key"], "A")
made = {}
def handle(message):
    asked = message.metadata.message_id
    made.setdefault(asked, len(made) + 1)
    with (folder / "handled").open("a") as file:
        print(asked, file=file, flush=True)
    content = RecordDict({"a": ConfigRecord({"made": made[asked]})})
    return Message(content, reply_to=message)
def observe(state):
    with (folder / "states").open("a") as file:
        print(state.connected, state.reason, file=file, flush=True)
run(lambda: config, handle, lambda job: 1 << 20, threading.Event(), observe)
"""


@dataclass
class Cable:
    """The two ends of a virtual cable, one of them in a network namespace of its own."""

    namespace: str
    near: str

    def set(self, state: str) -> None:
        ip("link", "set", self.near, state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable(f"vt-{os.getpid()}", f"vt{os.getpid()}a")
    far = f"vt{os.getpid()}b"
    try:
        ip("netns", "add", made.namespace)
        ip("link", "add", made.near, "type", "veth", "peer", "name", far)
    except (subprocess.CalledProcessError, OSError):
        subprocess.run(["ip", "netns", "del", made.namespace], check=False, capture_output=True)
        pytest.skip("needs the right to make a network namespace")
    try:
        ip("link", "set", far, "netns", made.namespace)
        ip("addr", "add", f"{HERE}/30", "dev", made.near)
        ip("-n", made.namespace, "addr", "add", f"{THERE}/30", "dev", far)
        made.set("up")
        ip("-n", made.namespace, "link", "set", far, "up")
        yield made
    finally:
        subprocess.run(["ip", "link", "del", made.near], check=False, capture_output=True)
        ip("netns", "del", made.namespace)


@pytest.fixture
def grid(cable: Cable, tmp_path: Path) -> Iterator[LinkGrid]:
    """A server at this end, and site A at the other."""
    become_server()
    loopback = make_loopback(tmp_path)
    own = pki.issue_server(loopback.intermediate, [HERE])
    credentials = Credentials(loopback.root.certificate, own.certificate, own.key)
    link = LinkServer(f"{HERE}:0", credentials, loopback.roster)
    link.start()
    config = loopback.enroll("A", link.port)
    for name, pem in (
        ("root", config.root_pem),
        ("chain", config.certificate_pem),
        ("key", config.key_pem),
    ):
        (tmp_path / name).write_bytes(pem)
    command = [sys.executable, "-c", SITE, str(tmp_path), f"{HERE}:{link.port}"]
    with subprocess.Popen(
        ["ip", "netns", "exec", cable.namespace, *command], cwd=Path(__file__).parents[2]
    ) as site:
        try:
            yield LinkGrid(link, ["A"], 1 << 20, "ab" * 32)
        finally:
            site.kill()
    link.stop()


def ask(grid: LinkGrid, round_: int) -> Message:
    content = RecordDict({"r": ConfigRecord({"round": round_})})
    (reply,) = grid.send_and_receive(
        [Message(content, node_id("A"), "train", group_id=str(round_))], timeout=PATIENCE_S
    )
    return reply


def made(reply: Message) -> object:
    return reply.content.config_records["a"]["made"]


@pytest.mark.parametrize("seconds", [3.0, 25.0], ids=["a moment", "past keepalive"])
def test_a_cable_that_was_pulled_costs_a_while_and_no_round(
    cable: Cable, grid: LinkGrid, tmp_path: Path, seconds: float
) -> None:
    assert made(ask(grid, 1)) == 1
    with capture_logs() as events:
        cable.set("down")
        asked = grid.push_messages(
            [Message(RecordDict({"r": ConfigRecord({"round": 2})}), node_id("A"), "train")]
        )
        time.sleep(seconds)
        cable.set("up")
        end = time.monotonic() + PATIENCE_S
        while not (replies := grid.pull_messages(asked)):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert [made(reply) for reply in replies] == [2]
    assert made(ask(grid, 3)) == 3
    is_noticed = any(event["event"] == "site disconnected" for event in events)
    assert is_noticed == (seconds > 15)
    states = (tmp_path / "states").read_text().splitlines()
    assert states[-1].startswith("True")
    assert any(line.startswith("False connection broke") for line in states) == is_noticed
