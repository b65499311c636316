"""A whole federation of real processes on one machine: certificates, server, sites, a job.

Every step is a console script as an operator or an institution types it; only the ports and folders
are ours.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from common.data.records import Record
from common.errors import JobStopped, LinkDown, Refusal
from common.files import make_folder, write_file
from common.job import Job
from server.control import Request, ask, follow
from simulations.homes import write_home

_START_S = 60.0
_STOP_S = 15.0


@dataclass
class Federation:
    """Processes below ``work``, from ``with`` to its end.

    Args:
        work: a short path: it holds a Unix socket.
        job: what will be submitted; its sites are started.
        records: each site's own.
    """

    work: Path
    job: Job
    records: Mapping[str, Sequence[Record]]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = 0

    @property
    def server_home(self) -> Path:
        """The operator's home."""
        return self.work / "server"

    def site_home(self, site: str) -> Path:
        """An institution's home."""
        return self.work / "sites" / site

    @property
    def root_key(self) -> Path:
        """The root's key, which an operator would keep elsewhere."""
        return self.server_home / "pki" / "root.key"

    @property
    def outcome(self) -> Path:
        """Where the server leaves what the job made."""
        return self.server_home / "jobs" / self.job.sha256

    def __enter__(self) -> Self:
        """Enrol everybody and start all processes."""
        try:
            self._set_up_server()
            self.start_server()
            for site in self.job.sites:
                self._enrol(site)
            self.command("fl-server", "roster", "--sign-with", str(self.root_key))
            for site in self.job.sites:
                self.start_site(site)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop all processes."""
        self.close()

    def _set_up_server(self) -> None:
        make_folder(self.work)
        self.port = _free_port()
        address = f"127.0.0.1:{self.port}"
        called = ("--host", "127.0.0.1", "--address", address, "--name", "simulation")
        self.command("fl-server", "init", *called)

    def _enrol(self, site: str) -> None:
        home, bundle = self.site_home(site), self.work / f"{site}.bundle"
        self.command("fl-client", "init", site=site)
        self.command("fl-server", "enroll", str(home / f"{site}.csr"), "--out", str(bundle))
        self.command("fl-client", "install", str(bundle), site=site)
        write_home(
            home,
            site,
            self.records[site],
            self.job,
            signer=(self.server_home / "pki/operator.pub").read_text().strip(),
            server=f"127.0.0.1:{self.port}",
            threads=max(1, (os.cpu_count() or 1) // len(self.job.sites)),
        )

    def command(self, script: str, *arguments: str, site: str = "") -> str:
        """Run one console script to its end; its output.

        Raises:
            LinkDown: it failed; with its own words.
        """
        done = subprocess.run(
            [*self._prefix(script, site), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            words = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise LinkDown(f"{script} {arguments[0]} must succeed, got: {words}")
        return done.stdout

    def _prefix(self, script: str, site: str = "") -> list[str]:
        path = console_script(script)
        if site:
            return [path, "--site", site, "--home", str(self.site_home(site))]
        return [path, "--home", str(self.server_home)]

    def _spawn(self, name: str, arguments: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with (self.work / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                list(arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def start_server(self) -> None:
        """Start ``fl-server`` and wait until it answers.

        Raises:
            LinkDown: it did not come up; with the end of its log.
        """
        self._spawn("server", [*self._prefix("fl-server"), "start"])
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            with contextlib.suppress(LinkDown):
                ask(self.server_home, Request(command="jobs"))
                return
            if self.processes["server"].poll() is not None:
                break
            time.sleep(0.1)
        raise LinkDown(f"fl-server must come up, got: {self._log_end('server')}")

    def start_site(self, site: str) -> None:
        """Start ``fl-client --site``."""
        self._spawn(site, self._prefix("fl-client", site))

    def kill(self, name: str) -> None:
        """SIGKILL a process: ``server``, or a site's name."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def submit(self) -> None:
        """Sign and queue the job."""
        path = self.work / "job.toml"
        manifest = self.job.model_dump(mode="json", exclude_none=True)
        write_file(path, tomli_w.dumps(manifest).encode())
        self.command("fl-server", "submit", str(path))

    def watch(self, observe: Callable[[dict[str, Any]], None]) -> None:
        """Follow the job to its end; ``observe`` is told of each closed round.

        Raises:
            Refusal: it failed.
            JobStopped: it was stopped.
        """
        answer: dict[str, Any] = {}
        for line in follow(self.server_home, Request(command="watch", job=self.job.sha256)):
            if isinstance(line.get("round"), dict):  # the answer has a round too, a number
                observe(line["round"])
            answer = line
        if answer.get("state") == "failed":
            raise Refusal(str(answer.get("reason")))
        if answer.get("state") != "finished":
            raise JobStopped(f"job {answer.get('state')}: {answer.get('reason')}")

    def export(self, folder: Path) -> None:
        """Write the job's evidence, and the root that it is checked by, into ``folder``.

        Raises:
            LinkDown: a claim fails.
        """
        bundle = str(folder / "evidence.zip")
        self.command("fl-server", "export", self.job.sha256, "--bundle", bundle)
        shutil.copyfile(self.server_home / "pki" / "root.pem", folder / "root.pem")

    def close(self) -> None:
        """SIGTERM every process, sites first, then SIGKILL what stays."""
        order = sorted(self.processes, key=lambda name: name == "server")
        for name in order:
            self.processes[name].terminate()
        for name in order:
            process = self.processes.pop(name)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log_end(self, name: str) -> str:
        lines = (self.work / f"{name}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no word"


def console_script(name: str) -> str:
    """The installed script that belongs to this Python.

    Raises:
        LinkDown: the project is not installed here.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise LinkDown(
            f"{name} must be installed beside {sys.executable} (pip install -e .), got none"
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
