"""A federation of real processes to be killed, cut off and lied to; one for all tests in here.

Jobs follow each other on the same homes, as in a deployment: each test has jobs of its own name.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import tomli_w
from safetensors.numpy import load_file

from client.enrolment import init_site, install
from common.data.records import Record
from common.errors import LinkDown, VeiltuneError
from common.files import write_file
from common.job import Job, sign_job
from common.keys import load_operator_key
from server.control import Line, Request, ask
from server.enrolment import enroll, init_server
from simulations.federation import Federation, _free_port
from simulations.homes import write_home

if TYPE_CHECKING:
    from tests.conftest import MakeJob, TinyBase

PATIENCE_S = 240.0
LABELS = ("cardiology", "surgery", "urology")
POPULATIONS = {"A": 36, "B": 52, "C": 44, "P": 40}
PLANTED = Path(__file__).with_name("planted.py")
SERVER_DISK, SITE_DISK = "24m", "16m"


class Release(NamedTuple):
    """A row of a site's account."""

    round: int
    steps: int
    payload_sha256: str
    is_acknowledged: bool


@dataclass
class Hospitals(Federation):
    """Server and sites A, B, C, and P, whose owner is strict and whose program may be planted."""

    base: Path = Path()
    other_base: Path = Path()
    has_small_disks: bool = False

    def _set_up_server(self) -> None:
        self.port = _free_port()
        if os.geteuid() == 0:
            self.has_small_disks = all(
                [_mount(self.server_home, SERVER_DISK), _mount(self.site_home("C"), SITE_DISK)]
            )
        init_server(
            self.server_home,
            hosts=["127.0.0.1"],
            address=f"127.0.0.1:{self.port}",
            listen=f"127.0.0.1:{self.port}",
        )

    def _enrol(self, site: str) -> None:
        self.enrol(site)
        home = self.site_home(site)
        signer = (self.server_home / "pki/operator.pub").read_text().strip()
        write_home(home, site, self.records[site], self.job, signer=signer)
        files = {
            "notes": "records.jsonl",
            "no-label": "no-label.csv",
            "empty": "empty.csv",
            "foreign": "foreign.csv",
        }
        (home / "no-label.csv").write_text("text,department\nsecretive cough,cardiology\n")
        (home / "empty.csv").write_text("text,label\n")
        (home / "foreign.csv").write_text("text,label\nsecretive cough,astrology\n")
        is_strict = site == "P"
        config = {
            "site": site,
            "server": f"127.0.0.1:{self.port}",
            "policy": {
                "allowed_signers": [signer],
                "max_epsilon": 8.0 if is_strict else 1000.0,
                "max_delta": 1e-4,
                "allow_no_privacy": not is_strict,
            },
            "data": {name: {"path": path} for name, path in files.items()},
            "models": {str(self.base): str(self.other_base)} if is_strict else {},
            "runtime": {"device": "cpu", "threads": 1},
        }
        write_file(home / "site.toml", tomli_w.dumps(config).encode())

    def enrol(self, site: str) -> None:
        """Certificates alone; again after a revocation."""
        home, bundle = self.site_home(site), self.work / f"{site}.bundle"
        init_site(home, site)
        enroll(self.server_home, home / f"{site}.csr", bundle)
        install(home, site, bundle)

    def _prefix(self, script: str, site: str = "") -> list[str]:
        prefix = super()._prefix(script, site)
        return [sys.executable, str(PLANTED), *prefix[1:]] if site == "P" else prefix

    def _spawn(self, name: str, arguments: Sequence[str]) -> None:
        level = ["--level", "debug"] if name == "server" else []
        super()._spawn(name, [*arguments, *level])

    def close(self) -> None:
        """Stop all processes and give the small disks back."""
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
        super().close()
        for folder in (self.server_home, self.site_home("C")):
            if folder.is_mount():
                subprocess.run(["umount", "--lazy", str(folder)], check=False, timeout=30)

    def mend(self) -> None:
        """Everybody runs, as a test expects to find them; nobody works on an earlier test's job."""
        for name in ("server", *self.job.sites):
            process = self.processes.get(name)
            if process is not None:
                process.send_signal(signal.SIGCONT)
            if process is None or process.poll() is not None:
                self.start_server() if name == "server" else self.start_site(name)
        for row in ask(self.server_home, Request(command="jobs"))["jobs"]:
            if row["state"] in ("queued", "running"):
                self._end(row["sha256"])

    def _end(self, sha256: str) -> None:
        with suppress(VeiltuneError):
            ask(self.server_home, Request(command="stop", job=sha256))
        self.wait_for("the last test's job to end", lambda: self.is_over(sha256))

    def wait_for(self, what: str, done: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > end:
                logs = "\n".join(f"{n}: {self.log(n)[-1500:]}" for n in ("server", *self.job.sites))
                raise LinkDown(f"{what} must come, got nothing in {PATIENCE_S:g} s\n{logs}")
            time.sleep(0.02)

    # What an operator does.

    def queue(self, job: Job) -> str:
        signed = sign_job(job, load_operator_key(self.server_home / "pki/operator.key"))
        ask(self.server_home, Request(command="submit", signed=signed.to_bytes().decode()))
        return job.sha256

    def show(self, sha256: str) -> Line:
        return ask(self.server_home, Request(command="show", job=sha256))

    def finish(self, sha256: str) -> Path:
        """Wait for the end; the outcome folder."""
        self.wait_for("the job's end", lambda: self.is_over(sha256))
        assert self.state(sha256) == ("finished", ""), self.state(sha256)
        return self.server_home / "jobs" / sha256

    def fails(self, job: Job) -> str:
        """Run a job that must fail; the reason that its operator reads."""
        sha256 = self.queue(job)
        self.wait_for("the job's end", lambda: self.is_over(sha256))
        shown = self.show(sha256)
        assert shown["state"] == "failed", shown
        return str(shown["reason"])

    # What the disks say, read without the code under test.

    def _server_rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return _rows(self.server_home / "state.db", query, *values)

    def state(self, sha256: str) -> tuple[str, str]:
        ((state, reason),) = self._server_rows(
            "SELECT state, reason FROM jobs WHERE sha256 = ?", sha256
        )
        return state, reason

    def is_over(self, sha256: str) -> bool:
        return self.state(sha256)[0] not in ("queued", "running")

    def closed(self, sha256: str) -> int:
        """The last closed round; -1 before the start was evaluated."""
        query = "SELECT COALESCE(MAX(round), -1) FROM rounds WHERE job_sha256 = ?"
        return int(self._server_rows(query, sha256)[0][0])

    def receipts(self, sha256: str) -> dict[tuple[int, str], str]:
        """(round, site) -> sha256 of the bytes that the server used."""
        query = "SELECT round, site, payload_sha256 FROM receipts WHERE job_sha256 = ? AND accepted"
        return {(r, site): digest for r, site, digest in self._server_rows(query, sha256)}

    def account(self, site: str, sha256: str) -> list[Release]:
        """The site's releases of a job, read from its ledger's own words."""
        found: dict[int, Release] = {}
        rows = _rows(self.site_home(site) / "account.db", "SELECT body FROM entry ORDER BY seq")
        entries = [json.loads(body) for (body,) in rows]
        for entry in (entry for entry in entries if entry.get("job_sha256") == sha256):
            round_ = entry.get("round")
            if entry["kind"] == "reserved":
                found[round_] = Release(round_, entry["charge"]["steps"], "", False)
            elif entry["kind"] == "released":
                found[round_] = found[round_]._replace(payload_sha256=entry["payload_sha256"])
            elif entry["kind"] == "committed":
                found[round_] = found[round_]._replace(is_acknowledged=True)
        return list(found.values())

    def log(self, name: str, since: int = 0) -> str:
        path = self.work / f"{name}.log"
        return path.read_bytes()[since:].decode(errors="replace") if path.exists() else ""

    def log_size(self, name: str) -> int:
        return (self.work / f"{name}.log").stat().st_size

    # What goes wrong.

    def freeze(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGCONT)

    def catch(self, site: str, sha256: str, is_it: Callable[[Release], bool]) -> Release:
        """Freeze ``site`` in the moment when its latest release is the one wanted."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.freeze(site)
            with suppress(sqlite3.Error):  # frozen within a transaction, or no account yet
                rows = self.account(site, sha256)
                if rows and is_it(rows[-1]):
                    return rows[-1]
            self.thaw(site)
            time.sleep(0.015)
        raise LinkDown(f"site {site} must come to the moment, got {self.account(site, sha256)}")

    def terminate(self, name: str) -> int:
        """SIGTERM; the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(60)


def _mount(folder: Path, size: str) -> bool:
    folder.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


def _rows(path: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)) as db:
        for attempt in range(50):
            try:
                return db.execute(query, values).fetchall()
            except sqlite3.OperationalError:  # locked
                if attempt == 49 or "account" in path.name:
                    raise
    return []


def rows_of(site: str) -> list[Record]:
    """Each label has words of its own, and lengths differ."""
    records = []
    for i in range(POPULATIONS[site]):
        label = i % len(LABELS)
        start = 100 * label + 7 * ord(site)
        words = [f"w{(start + 37 * i + 11 * j) % 100 + 100 * label}" for j in range(3 + 5 * i % 23)]
        records.append(Record(" ".join(words), LABELS[label]))
    return records


@pytest.fixture(scope="session")
def _hospitals(
    tmp_path_factory: pytest.TempPathFactory, job: "MakeJob", tiny_base: "TinyBase"
) -> Iterator[Hospitals]:
    work = tmp_path_factory.mktemp("f")  # short: it holds a Unix socket
    base, other = work / "base", work / "other"
    shutil.copytree(tiny_base.folder, base)
    shutil.copytree(tiny_base.folder, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    everybody = job(data={"population": POPULATIONS})
    records = {site: rows_of(site) for site in POPULATIONS}
    with Hospitals(work, everybody, records, base=base, other_base=other) as running:
        yield running


@pytest.fixture
def hospitals(_hospitals: Hospitals) -> Hospitals:
    """The federation, all there and idle."""
    _hospitals.mend()
    return _hospitals


@pytest.fixture
def ward_job(job: "MakeJob") -> Callable[..., Job]:
    """A job on sites' notes; without privacy when so asked."""

    def make(
        name: str,
        sites: str,
        *,
        private: bool = True,
        data: str = "notes",
        **sections: Mapping[str, Any],
    ) -> Job:
        none = {"mode": "none", "epsilon": None, "delta": None, "clip_norm": None}
        table = {"name": data, "population": {site: POPULATIONS[site] for site in sites}}
        training = {"quorum": len(sites), "deadline_s": 300.0, **sections.pop("training", {})}
        privacy = {**({} if private else none), **sections.pop("privacy", {})}
        return job(job={"name": name}, data=table, training=training, privacy=privacy, **sections)

    return make


Unkilled = Callable[[Job], Mapping[str, Any]]


@pytest.fixture
def unkilled(tmp_path: Path) -> Unkilled:
    """The adapter of the same job where nothing went wrong: sites as functions, no link."""

    def run(job: Job) -> Mapping[str, Any]:
        from simulations.runs import in_process
        from simulations.scenario import Scenario

        records = {site: rows_of(site) for site in job.sites}
        folder = in_process(Scenario(job, records, 0), tmp_path, lambda *_: None, seeded=False)
        return tensors(folder)

    return run


def tensors(outcome: Path) -> Mapping[str, Any]:
    return load_file(outcome / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def distance() -> Callable[[Path, Mapping[str, Any]], float]:
    """The largest difference of two adapters' weights."""

    def measure(outcome: Path, expected: Mapping[str, Any]) -> float:
        found = tensors(outcome)
        assert found.keys() == expected.keys()
        return max(float(abs(found[name] - expected[name]).max()) for name in found)

    return measure


@pytest.fixture
def forked() -> Callable[[int, Callable[[int], None]], list[int]]:
    """``forked(count, work)``: each number's ``work`` in a process of its own; how they ended."""

    def run(count: int, work: Callable[[int], None]) -> list[int]:
        children = []
        for number in range(count):
            child = os.fork()
            if not child:
                try:
                    work(number)
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        return [os.waitpid(child, 0)[1] for child in children]

    return run
