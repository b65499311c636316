"""A site's home as its commands find it: certificates, ``site.toml``, data."""

import contextlib
import dataclasses
import datetime as dt
import io
import json
import logging
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import structlog
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.config import SiteHome, load_home
from client.doctor import Patient, checks
from client.session import LinkConfig
from common import log, pki, reach
from common.diagnosis import Finding, examine
from common.job import Job, SignedJob, sign_job
from server.link import LinkServer
from server.roster import Roster
from simulations.loopback import HOST, Loopback, make_loopback

OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x0b" * 32)


@dataclass(frozen=True)
class Homes:
    """A federation on this machine, and homes in it."""

    folder: Path
    loopback: Loopback

    def make(
        self,
        site: str = "A",
        *,
        port: int = 1,
        days: int = 90,
        age_days: int = 0,
        **sections: object,
    ) -> Path:
        kept = self.folder / site / "pki" / "site.key"
        key = kept.read_bytes() if kept.exists() else pki.new_site_key_and_csr(site)[0]
        csr = pki.create_csr(site, key)
        issued = dt.datetime.now(dt.UTC) - dt.timedelta(days=age_days)
        chain = pki.issue_site(csr, self.loopback.intermediate, days=days, now=issued)
        self.loopback.roster.enroll(chain, replace=True)
        config = LinkConfig(f"{HOST}:{port}", self.loopback.root.certificate, chain, key, site)
        return write_home(self.folder / site, config, **sections)

    def load(self, site: str = "A", **options: object) -> SiteHome:
        return load_home(self.make(site, **options), site)  # type: ignore[arg-type]


def write_home(home: Path, config: LinkConfig, **sections: object) -> Path:
    (home / "pki").mkdir(parents=True, exist_ok=True)
    (home / "pki" / "root.pem").write_bytes(config.root_pem)
    (home / "pki" / "site.pem").write_bytes(config.certificate_pem)
    key = home / "pki" / "site.key"
    key.write_bytes(config.key_pem)
    key.chmod(stat.S_IRUSR | stat.S_IWUSR)
    signer = OPERATOR.public_key().public_bytes_raw().hex()
    toml = {
        "site": config.site,
        "server": config.server,
        "policy": {"allowed_signers": [signer], "max_epsilon": 7.0, "max_delta": 1e-4},
        "runtime": {"device": "cpu"},
        **sections,
    }
    (home / "site.toml").write_text(tomli_w.dumps(toml))
    return home


@pytest.fixture
def homes(tmp_path: Path) -> Homes:
    return Homes(tmp_path, make_loopback(tmp_path))


def plain_manifest(name: str = "wards", **privacy: object) -> SignedJob:
    """A signed job that nobody can run: its base is nowhere."""
    promise = {"mode": "site", "epsilon": 6.0, "delta": 1e-5, "clip_norm": 0.7}
    job = Job.model_validate(
        {
            "job": {"name": name},
            "model": {"base": "builtin:minilm", "sha256": "ab" * 32},
            "adapter": {"targets": ["query"]},
            "training": {"rounds": 12, "local_steps": 4, "learning_rate": 0.5},
            "privacy": {"sampling_rate": 0.05, **(privacy or promise)},
            "data": {
                "name": "notes",
                "labels": ["cardiology", "surgery"],
                "population": {"A": 400, "B": 600},
            },
            "evaluation": {"data": "builtin:wards"},
        }
    )
    return sign_job(job, OPERATOR)


@pytest.fixture
def manifest() -> Callable[..., SignedJob]:
    return plain_manifest


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def running() -> Iterator[Callable[[SiteHome], Callable[[], None]]]:
    """Runs homes in threads of the test; what is returned stops one."""
    from client import serve

    stops: list[Callable[[], None]] = []

    def start(home: SiteHome) -> Callable[[], None]:
        stop = threading.Event()
        thread = threading.Thread(target=serve.run, args=(home, stop), daemon=True)
        thread.start()
        stops.append(partial(_end, stop, thread))
        return stops[-1]

    yield start
    for end in stops:
        end()


Fetch = Callable[[str, str], bytes | None]


@pytest.fixture
def serving(homes: Homes) -> Iterator[Callable[[Fetch], LinkServer]]:
    """Starts link servers with a ``fetch`` of the test's."""
    started: list[LinkServer] = []

    def start(fetch: Fetch) -> LinkServer:
        loopback = homes.loopback
        link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, fetch=fetch)
        link.start()
        started.append(link)
        return link

    yield start
    for link in started:
        link.stop()


@pytest.fixture
def logs_aside() -> Iterator[io.StringIO]:
    """Commands configure logging; nothing of that outlives a test."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    log.configure(stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


RECORD = "Frau Muster hat Fieber"
# Lines that take long: the model libraries, hashes of weights, every installed package.
SLOW = {"base model", "device", "memory", "program files", "package names", "libraries"}
Snapshot = dict[str, tuple[int, int, bytes]]


@pytest.fixture
def aged(homes: Homes) -> Homes:
    """Homes of a federation that was founded long ago, as most are."""
    then = dt.datetime.now(dt.UTC) - dt.timedelta(days=400)
    root = pki.create_root("loopback", now=then)
    intermediate = pki.create_intermediate(root, now=then)
    server = pki.issue_server(intermediate, [HOST, "localhost"])
    roster = Roster(homes.folder / "roster.json")
    return dataclasses.replace(homes, loopback=Loopback(root, intermediate, server, roster))


@pytest.fixture
def whole(aged: Homes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Makes homes that lack nothing, of a server that runs where no port is given."""
    for name in (*reach.PROXY_VARIABLES, *reach.EXCEPTION_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    server = LinkServer(f"{HOST}:0", aged.loopback.credentials, aged.loopback.roster)
    server.start()

    def make(**options: object) -> Path:
        given = {"port": server.port, "data": {"notes": {"path": "notes.csv"}}} | options
        home = aged.make("A", **given)  # type: ignore[arg-type]
        (home / "notes.csv").write_text(f"text,label\n{RECORD},ward\n")
        for folder in (home, home / "pki"):
            folder.chmod(0o700)
        return home

    yield make
    server.stop()


def snapshot(folder: Path) -> Snapshot:
    return {str(path): _seen(path) for path in sorted(folder.rglob("*"))}


def _seen(path: Path) -> tuple[int, int, bytes]:
    status, content = path.stat(), path.read_bytes() if path.is_file() else b""
    return status.st_mtime_ns, status.st_mode, content


@pytest.fixture
def look() -> Callable[..., dict[str, Finding]]:
    """The doctor's lines about a home, by check: the quick ones, or those that are named.

    Whatever is looked at: nothing is written, no record and no key is shown, and whatever is not
    well comes with advice.
    """

    def lines(home: Path, *names: str, is_offline: bool = False) -> dict[str, Finding]:
        patient, before = Patient(home, "A", "fl-client --site A", is_offline), snapshot(home)
        found = examine(
            one for one in checks(patient) if (one.name in names if names else one.name not in SLOW)
        )
        assert snapshot(home) == before
        told = json.dumps([(f.found, f.advice) for f in found])
        assert RECORD not in told
        assert "PRIVATE" not in told
        assert all(bool(f.advice) == (f.mark != "ok") for f in found)
        assert len({f.check for f in found}) == len(found)
        return {f.check: f for f in found}

    return lines


Talking = Callable[[Callable[[socket.socket], None]], int]


@pytest.fixture
def talking() -> Iterator[Talking]:
    """Starts servers that treat each connection with a function of the test's; their port."""
    with contextlib.ExitStack() as held:

        def start(answer: Callable[[socket.socket], None]) -> int:
            listener = held.enter_context(socket.create_server((HOST, 0)))
            held.callback(listener.shutdown, socket.SHUT_RDWR)
            thread = threading.Thread(target=_serve, args=(listener, answer), daemon=True)
            thread.start()
            return int(listener.getsockname()[1])

        yield start


def _serve(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_treat, args=(connection, answer), daemon=True).start()


def _treat(connection: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(5)
        answer(connection)
