"""A site's home as its commands find it: certificates, ``site.toml``, data."""

import datetime as dt
import io
import logging
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
from client.session import LinkConfig
from common import log, pki
from common.job import Job, SignedJob, sign_job
from server.link import LinkServer
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
