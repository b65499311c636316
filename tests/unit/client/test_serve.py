import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from structlog.testing import capture_logs

from client import presence, serve, status
from client.config import SiteHome
from client.outbox import Outbox
from client.session import State
from common import messages, volume
from common.errors import InvalidInput
from common.flower import become_server
from common.job import Job, SignedJob, sign_job
from common.link.framing import UNKNOWN_JOB_CAP_BYTES
from common.link.identity import node_id
from common.phases import read_charged
from server.grid import LinkGrid
from server.link import LinkServer

Serving = Callable[[Callable[[str, str], bytes | None]], LinkServer]
Running = Callable[[SiteHome], Callable[[], None]]
Manifest = Callable[..., SignedJob]
MakeJob = Callable[..., Job]

PATIENCE_S = 90.0
OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x0b" * 32)


class Homes(Protocol):
    """The fixture of that name."""

    def make(self, site: str = "A", **options: object) -> Path: ...
    def load(self, site: str = "A", **options: object) -> SiteHome: ...


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def run(home: SiteHome) -> None:
    """For runs that are refused."""
    stop = threading.Event()
    stop.set()
    serve.run(home, stop)


def test_a_site_connects_and_says_so_while_it_runs(
    homes: Homes, serving: Serving, running: Running
) -> None:
    link = serving(lambda site, job: None)
    home = homes.load(port=link.port)
    stop = running(home)
    wait_until(lambda: status.status(home).link.connected)
    found = status.status(home).link
    assert found.running
    assert link.connected() == {"A"}
    stop()
    assert not status.status(home).link.running
    assert json.loads((home.folder / "state.json").read_text())["connected"] is False


def test_a_running_site_says_why_it_is_not_connected(homes: Homes, running: Running) -> None:
    home = homes.load(port=1)
    running(home)

    def says_why() -> bool:
        link = status.status(home).link  # before the site runs it probes by itself
        return link.running and "refused the connection" in link.reason

    wait_until(says_why)
    assert not status.status(home).link.connected


def test_an_expired_certificate_is_refused_before_the_link(homes: Homes) -> None:
    with pytest.raises(InvalidInput, match="must be valid today, got one that expired on 20"):
        run(homes.load(days=3, age_days=4))


def test_a_key_that_others_can_read_is_refused(homes: Homes) -> None:
    home = homes.load()
    (home.folder / "pki" / "site.key").chmod(0o644)
    with pytest.raises(InvalidInput, match=r"mode 0600\), got 0644"):
        run(home)


def test_another_site_s_certificate_and_another_key_are_refused(homes: Homes) -> None:
    home, other = homes.load("A"), homes.load("B")
    own = home.folder / "pki" / "site.pem"
    own.write_bytes((other.folder / "pki" / "site.pem").read_bytes())
    with pytest.raises(InvalidInput, match="must be for site A, got one for B"):
        run(home)
    again = homes.load("A")
    key = again.folder / "pki" / "site.key"
    key.write_bytes((other.folder / "pki" / "site.key").read_bytes())
    with pytest.raises(InvalidInput, match="site key must be the one of the site's certificate"):
        run(again)


def test_what_will_be_trouble_is_said_at_the_start(homes: Homes) -> None:
    home = homes.load(days=6, data={"notes": {"path": "gone.csv"}})
    with capture_logs() as events:
        run(home)
    warned = {event["event"]: event for event in events if event["log_level"] == "warning"}
    assert warned["certificate expires soon"]["days_left"] == 5
    assert warned["data file missing"]["data"] == "notes"
    with capture_logs() as events:
        run(homes.load(days=40))
    warned = {event["event"]: event for event in events if event["log_level"] == "warning"}
    assert list(warned) == ["no data set mapped"]


def test_a_home_on_a_network_s_disk_is_said_at_the_start(
    homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes.load()
    asked: list[Path] = []

    def nfs(path: Path) -> int:  # as the kernel would say; include/uapi/linux/magic.h
        asked.append(path)
        return 0x6969

    monkeypatch.setattr(volume, "magic", nfs)
    with capture_logs() as events:
        run(home)
    (said,) = [event for event in events if event["event"] == "home on an unsafe disk"]
    assert said["log_level"] == "warning"
    assert "NFS, a network file system" in said["found"]
    assert said["remedy"].startswith("move the home to a local disk")
    assert asked == [home.folder]


def test_since_is_the_time_of_the_change_and_not_of_the_last_word(homes: Homes) -> None:
    home = homes.load()
    observer = serve.Observer(home.folder)
    observer._last = presence.Presence(7, False, "2020-01-01T00:00:00Z", "starts")
    observer(State(connected=False, reason="nobody there"))
    said = json.loads((home.folder / "state.json").read_text())
    assert (said["since"], said["reason"]) == ("2020-01-01T00:00:00Z", "nobody there")
    observer(State(connected=True))
    assert json.loads((home.folder / "state.json").read_text())["since"] > "2026"


def test_a_state_file_that_cannot_be_written_ends_nothing(homes: Homes) -> None:
    home = homes.load()
    observer = serve.Observer(home.folder)
    (home.folder / "state.json").unlink()
    (home.folder / "state.json").mkdir()
    with capture_logs() as events:
        observer(State(connected=True))
    assert [event["event"] for event in events] == ["state file not written"]


FAILS = """
import sys
from pathlib import Path
from client import serve, upkeep
from client.config import load_home
from common import log

def fail(self):
    raise ZeroDivisionError("nobody foresaw this")

log.configure(level="info", json_lines=True)
upkeep.Upkeep.tick = fail
serve.serve(load_home(Path(sys.argv[1]), "A"))
"""


def test_a_fault_that_ends_the_upkeep_ends_the_site_for_systemd_to_start_again(
    homes: Homes,
) -> None:
    home = homes.make()
    words = [sys.executable, "-c", FAILS, str(home)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    events = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    (failed,) = [event for event in events if event["event"] == "thread failed"]
    assert (failed["thread"], failed["vital"]) == ("upkeep", True)
    assert failed["error"] == "ZeroDivisionError: nobody foresaw this"
    assert events[-1]["event"] == "site stopped"
    assert json.loads((home / "state.json").read_text())["connected"] is False


def test_a_job_s_cap_outlives_the_process(homes: Homes, manifest: Manifest) -> None:
    home, signed = homes.load(), manifest()
    outbox = Outbox.of(home)
    assert outbox.cap(signed.job.sha256) is None
    outbox.open_job(signed.job.sha256, "wards", signed.to_bytes(), 123_457)
    outbox.open_job(signed.job.sha256, "wards", signed.to_bytes(), 999)
    assert Outbox.of(home).cap(signed.job.sha256) == 123_457


@pytest.mark.slow
def test_an_order_of_an_accepted_job_is_taken_after_a_restart(
    homes: Homes, serving: Serving, running: Running, job: MakeJob
) -> None:
    from client.app import open_site
    from common.adapter import load_adapter

    become_server()
    link = serving(lambda site, job: None)
    # Wide enough that its order is over what a message of an unknown job may have.
    signed = sign_job(job(adapter={"rank": 512}), OPERATOR)
    adapter = load_adapter(signed.job, Path(signed.job.model.base), "cpu")
    assert 4 * adapter.table.size > UNKNOWN_JOB_CAP_BYTES
    home = homes.load(port=link.port, data={"notes": {"path": "notes.csv"}})
    rows = (f"w{i} w{2 * i},{('cardiology', 'surgery')[i % 2]}\n" for i in range(30))
    (home.folder / "notes.csv").write_text("text,label\n" + "".join(rows))

    stop = running(home)
    offered = ask(link, signed, messages.OFFER, messages.offer(signed))
    assert messages.read_verdict(offered) == messages.Verdict(is_accepted=True)
    stop()
    open_site.cache_clear()  # what a process forgets

    running(home)
    order = messages.order(signed, adapter.table, adapter.initial, 1, None)
    reply = ask(link, signed, messages.TRAIN, order)
    assert read_charged(reply).reserved.round == 1
    (charge,) = Outbox.of(home).charges()
    assert charge.is_released


def ask(link: LinkServer, signed: SignedJob, kind: str, content: RecordDict) -> RecordDict:
    grid = LinkGrid(link, ["A"], 4_000_000, signed.job.sha256)
    message = Message(content, node_id("A"), kind, group_id=kind)
    (reply,) = grid.send_and_receive([message], timeout=PATIENCE_S)
    return reply.content
