"""``fl-server start``: the link to the sites, the operator's control socket, and the jobs between.

Not covered: what a site is admitted by (server/roster.py), how a job runs (server/app.py).
"""

import contextlib
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from common import notify
from common.address import split_address
from common.certificates import check_server_chain
from common.cli import installed_version
from common.errors import LinkDown
from common.files import read_file
from common.job import Job, parse_signed_job, verify_job
from common.metrics import serving
from common.process import leave, watch_threads
from common.receipt import ServerKey
from common.stopping import is_over
from server import control, rotation, views
from server.certificate import ServerCertificate
from server.checkpoint import Checkpoints, JobRow
from server.config import load_server_config
from server.control import ControlServer, Line, Request
from server.desk import Desk
from server.enrolment import ROSTER_FILE
from server.grid import LinkGrid
from server.home import alone
from server.kept import kept_adapter
from server.link import LinkServer
from server.metrics import ServerMetrics
from server.roster import Roster
from server.upkeep import Upkeep
from server.worker import Trainer, Worker

if TYPE_CHECKING:
    from types import FrameType

OUTCOMES, _RESULT = "jobs", "result.json"  # which is written last
_STOP_S = 10.0
_HEARTBEAT_S = 5.0
_MAX_PEM_BYTES = 64 * 1024
# Without one of these the server would seem to run: the process ends and is started again.
_VITAL = ("upkeep", "link-sweep", "join", "worker", "control", "metrics")
_FAILED = 1  # not 2, after which systemd leaves it alone

log = structlog.get_logger(__name__)


class Daemon:
    """A server's home, brought to life from ``start`` to ``stop``; the only one on that home.

    One whose own certificate no site would take today is not brought to life.

    Args:
        home: as ``fl-server init`` made it.
        trainer: runs jobs; None for server/app.py, imported when the first job needs it.
        names_handshakes: log why TLS handshakes fail, which takes over this process's stderr.
        metrics: host:port on loopback to serve figures at; none for an empty one.
    """

    def __init__(
        self,
        home: Path,
        *,
        trainer: Trainer | None = None,
        names_handshakes: bool = False,
        metrics: str = "",
    ) -> None:
        self._home = home.resolve()
        self._outcomes = self._home / OUTCOMES
        self._metrics = metrics
        self._open = contextlib.ExitStack()
        try:
            self._open.enter_context(alone(self._home))
            config = load_server_config(self._home)
            pki = self._home / "pki"
            self._signer = _read(pki / "operator.pub").decode("ascii", "replace").strip()
            self._roster = roster = Roster(self._home / ROSTER_FILE)
            rotation.tidy(self._home)
            certificate = ServerCertificate(self._home)

            def server_key() -> ServerKey:
                now = certificate.credentials
                return ServerKey(now.chain_pem, now.key_pem)

            self.checkpoints = Checkpoints(config.database, roster.holds_key, server_key)
            self._open.callback(self.checkpoints.close)
            held = certificate.credentials
            check_server_chain(held.chain_pem, held.root_pem, split_address(config.address)[0])
            self._upkeep = Upkeep(self._home, config, certificate)
            self.link = LinkServer(
                config.listen,
                lambda: certificate.credentials,
                roster,
                fetch=self._final_adapter,
                answers=Desk(self._home, roster).answers,
                software=f"veiltune {installed_version()}",
                names_handshakes=names_handshakes,
            )
        except BaseException:
            self._open.close()
            raise
        self._worker = Worker(
            self.checkpoints, self._outcomes, lambda: trainer or _trainer(), self._grid
        )

    def start(self) -> None:
        """Listen to sites and to the operator, and take up every job that has not ended.

        Raises:
            InvalidInput: a port or the socket cannot be had.
        """
        try:
            self.link.start()
            self._open.callback(self.link.stop)
            self._upkeep.start()
            self._open.callback(self._upkeep.stop)
            server = ControlServer(self._home, self._answer)
            self._open.callback(server.stop)
            server.start()
            figures = ServerMetrics(self._home, self.link, self._roster, self.checkpoints)
            self.metrics_port = self._open.enter_context(serving(self._metrics, figures))
        except BaseException:
            self._open.close()
            raise
        self._worker.start()
        log.info("server ready", listens=self.link.address, home=str(self._home))
        notify.ready(f"listens on {self.link.address}")

    def stop(self) -> bool:
        """Let go of everything within seconds; a running job is resumed by the next start.

        Returns:
            Whether the job's thread has let go too.
        """
        notify.stopping()
        is_idle = self._worker.close(_STOP_S)
        if not is_idle:
            log.warning("job left in the middle of a step", seconds=_STOP_S)
        self._open.close()
        log.info("server stopped")
        return is_idle

    def serve(self) -> None:
        """``start``, run until SIGTERM or SIGINT, ``stop``. In the main thread only.

        A fault nobody foresaw that ends one of the server's threads ends the process too.
        """
        # Not an event: its lock would be taken twice by two signals on each other's heels.
        asked: queue.SimpleQueue[int | str] = queue.SimpleQueue()

        def ask(number: int, _: "FrameType | None") -> None:
            asked.put(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        watch_threads(_VITAL, asked.put)
        self.start()
        reason = asked.get()
        is_idle = self.stop()
        if isinstance(reason, str):
            leave(_FAILED)
        if not is_idle:
            leave()

    def _grid(self, job: Job, cap_bytes: int) -> LinkGrid:
        return LinkGrid(self.link, job.sites, cap_bytes, job.sha256)

    def _final_adapter(self, site: str, job_sha256: str) -> bytes | None:
        """The (P,) float32 buffer that a job ended with, for a site that it names.

        It is final before the job is ``finished``: sites are told of it in between, and may fetch
        it at once. Before its outcome is written they are not: a site that fetched it then would
        note the job's end without the hash that the closing message brings.
        """
        row = next((row for row in self.checkpoints.jobs() if row.sha256 == job_sha256), None)
        if row is None or site not in row.signed.job.sites:
            return None
        state = self._worker.known(row).state
        is_written = (self._outcomes / job_sha256 / _RESULT).is_file()
        if state != "finished" and not (state == "running" and is_written):
            return None
        job, closed = row.signed.job, self.checkpoints.rounds(job_sha256)
        return kept_adapter(job, self.checkpoints, closed) if is_over(job, closed) else None

    def _answer(self, request: Request) -> Iterator[Line]:
        if request.command == "submit":
            yield control.answer(self._submit(request.signed))
        elif request.command == "jobs":
            yield control.answer({"jobs": [self._summary(row) for row in self.checkpoints.jobs()]})
        elif request.command == "sites":
            yield control.answer({"connected": sorted(self.link.connected())})
        elif request.command == "show":
            row = self._worker.known(self.checkpoints.job(request.job))
            yield control.answer(views.detail(row, self.checkpoints, self._outcomes))
        elif request.command == "stop":
            row = self.checkpoints.job(request.job)
            yield control.answer({**self._summary(row), "was": self._worker.stop(row)})
        else:
            yield from self._watch(self.checkpoints.job(request.job).sha256)

    def _submit(self, text: str) -> Line:
        signed = parse_signed_job(text.encode())
        verify_job(signed, (self._signer,))
        is_new = self.checkpoints.add_job(signed)
        row = self.checkpoints.job(signed.job.sha256)
        if is_new:
            log.info("job queued", job=row.name, sha256=row.sha256[:12])
            self._worker.announce()
        return {**self._summary(row), "is_new": is_new}

    def _watch(self, job_sha256: str) -> Iterator[Line]:
        """Each closed round as an event, then how the job ended."""
        told, version = 0, self._worker.wait(-1, 0)
        while True:
            # The state first: what is read after it holds every round of a job that has ended.
            row = self._worker.known(self.checkpoints.job(job_sha256))
            closed = views.closed_rounds(row, self.checkpoints)
            for record in closed[told:]:
                yield control.event({"round": record})
            told = len(closed)
            if row.state not in ("queued", "running"):
                yield control.answer(self._summary(row))
                return
            yield control.event({"state": row.state})  # also finds out whether anyone listens
            if self._worker.is_closing:
                raise LinkDown(
                    "fl-server must run until the job ends, got a stop (the next start resumes it)"
                )
            version = self._worker.wait(version, _HEARTBEAT_S)

    def _summary(self, row: JobRow) -> Line:
        return views.summary(self._worker.known(row), self.checkpoints, self._outcomes)


def _trainer() -> Trainer:
    from server import (
        app,
    )  # torch and the model libraries take seconds: not before a job needs them

    return app


def _read(path: Path) -> bytes:
    return read_file(path, max_bytes=_MAX_PEM_BYTES)
