"""Running queued jobs, one at a time, in order of submission.

What is to run is in the durable state alone: a job that was running when its server died is still
``running`` there, and is taken up again from its last closed round.

Not covered: the rounds themselves (server/app.py), how sites are reached.
"""

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from flwr.serverapp import Grid

from common.errors import InvalidInput, JobStopped, StorageFailed, VeiltuneError
from common.files import make_folder
from common.job import Job, SignedJob
from common.link.framing import UNKNOWN_JOB_CAP_BYTES
from common.log import describe, frames
from server.checkpoint import Checkpoints, JobRow, RoundRecord, State
from server.grid import LinkGrid

_RETRY_S = 5.0

log = structlog.get_logger(__name__)


class Trainer(Protocol):
    """What runs a job: the module server/app.py."""

    def run_job(
        self,
        signed: SignedJob,
        grid: Grid,
        checkpoints: Checkpoints,
        out: Path,
        *,
        grid_name: str,
        observe: Callable[[RoundRecord], None],
    ) -> object:
        """Run a job to its end."""

    def message_cap(self, job: Job) -> int:
        """The most bytes that one of the job's messages may have."""

    def announce_end(self, signed: SignedJob, grid: Grid, state: str) -> None:
        """Tell the sites that a job ended without an adapter."""


@dataclass
class _Current:
    """The job under way; its grid is None while the model is being loaded."""

    sha256: str
    grid: LinkGrid | None = None
    is_stopped: bool = False


class Worker:
    """One thread that runs jobs, and the news of how they stand.

    Args:
        checkpoints: the durable state.
        folder: where outcomes go, each in a folder named by the job's sha256.
        trainer: called for in the worker's thread, before its first job: it is slow to import.
        make_grid: from a job and the cap on its messages, the way to its sites.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        folder: Path,
        trainer: Callable[[], Trainer],
        make_grid: Callable[[Job, int], LinkGrid],
    ) -> None:
        self._checkpoints = checkpoints
        self._folder = folder
        self._trainer = trainer
        self._make_grid = make_grid
        self._news = threading.Condition()
        self._version = 0
        self._current: _Current | None = None
        self._unsaved: dict[str, tuple[State, str]] = {}  # ended, but the disk did not take it
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    @property
    def is_closing(self) -> bool:
        """Whether no further job will be run."""
        return self._is_closing

    def start(self) -> None:
        """Take up what was left, then what comes."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Leave the running job where it is, to be resumed; False if it did not let go in time."""
        with self._news:
            self._is_closing = True
            current = self._current
            if current is not None and current.grid is not None:
                current.grid.stop()
        self.announce()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def announce(self) -> None:
        """Wake whoever waits for news."""
        with self._news:
            self._version += 1
            self._news.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Wait until there is news since version ``seen``; return the version."""
        with self._news:
            self._news.wait_for(lambda: self._version != seen, timeout_s)
            return self._version

    def known(self, row: JobRow) -> JobRow:
        """The row, with the end that its job came to where the disk has not taken that yet."""
        state, reason = self._unsaved.get(row.sha256, (row.state, row.reason))
        return dataclasses.replace(row, state=state, reason=reason)

    def stop(self, row: JobRow) -> State:
        """End a job before its last round; return the state that it was in.

        Raises:
            InvalidInput: it has ended already.
        """
        with self._news:
            current = self._current
            if current is not None and current.sha256 == row.sha256:
                current.is_stopped = True
                if current.grid is not None:
                    current.grid.stop()
                return "running"
            state = self.known(self._checkpoints.job(row.sha256)).state
            if state not in ("queued", "running"):
                raise InvalidInput(f"job must be queued or running to be stopped, got {state}")
            self._checkpoints.set_state(row.sha256, "stopped", "by the operator, before it ran")
        self.announce()
        return state

    def _work(self) -> None:
        while (row := self._next()) is not None:
            self._run(row)
            with self._news:
                self._current = None
            self.announce()

    def _next(self) -> JobRow | None:
        with self._news:
            while not self._is_closing:
                self._save_ends()
                for row in self._waiting():
                    self._current = _Current(row.sha256)
                    return row
                self._news.wait(_RETRY_S if self._unsaved else None)
        return None

    def _waiting(self) -> list[JobRow]:
        try:
            rows = self._checkpoints.jobs()
        except StorageFailed as error:
            log.error("jobs unreadable", error=error)
            return []
        return [
            row
            for row in rows
            if row.state in ("queued", "running") and row.sha256 not in self._unsaved
        ]

    def _save_ends(self) -> None:
        """Write the ends that the disk did not take when they came."""
        for sha256, (state, reason) in list(self._unsaved.items()):
            try:
                self._checkpoints.set_state(sha256, state, reason)
            except StorageFailed:
                return
            del self._unsaved[sha256]
            log.info("job state kept after all", sha256=sha256[:12], state=state)

    def _run(self, row: JobRow) -> None:
        log.info("job started", job=row.name, sha256=row.sha256[:12], was=row.state)
        try:
            self._checkpoints.set_state(row.sha256, "running")
            self.announce()
            self._train(row)
            self._settle(row, "finished")
        except JobStopped:
            self._settle_stopped(row)
        except VeiltuneError as error:
            self._settle(row, "failed", str(error))
        except Exception as error:  # noqa: BLE001 -- one job's bug must not end all sites' sessions
            log.error("job broke", job=row.name, error=describe(error), where=frames(error))
            self._settle(
                row, "failed", f"a fault in the server ({type(error).__name__}, see its log)"
            )

    def _train(self, row: JobRow) -> None:
        trainer = self._trainer()
        signed = row.signed
        grid = self._make_grid(signed.job, trainer.message_cap(signed.job))
        self._hold(grid)
        make_folder(self._folder)
        trainer.run_job(
            signed,
            grid,
            self._checkpoints,
            self._folder / row.sha256,
            grid_name="link",
            observe=lambda _: self.announce(),
        )

    def _hold(self, grid: LinkGrid) -> None:
        """Keep the grid where ``stop`` and ``close`` find it.

        Raises:
            JobStopped: one of them came first.
        """
        with self._news:
            if self._current is None or self._current.is_stopped or self._is_closing:
                raise JobStopped("job must be wanted when its grid is there, got a stop before")
            self._current.grid = grid

    def _settle_stopped(self, row: JobRow) -> None:
        with self._news:
            is_stopped = self._current is not None and self._current.is_stopped
        if is_stopped:
            self._settle(row, "stopped", "by the operator")
        else:
            log.info("job left to resume", job=row.name, sha256=row.sha256[:12])

    def _settle(self, row: JobRow, state: State, reason: str = "") -> None:
        log.info("job ended", job=row.name, sha256=row.sha256[:12], state=state, reason=reason)
        try:
            self._checkpoints.set_state(row.sha256, state, reason)
        except StorageFailed as error:
            # Not run again in this process: the disk that refused this would refuse its rounds.
            self._unsaved[row.sha256] = (state, reason)
            log.error("job state not kept", job=row.name, state=state, error=error)
        if state != "finished":
            self._announce_end(row, state)

    def _announce_end(self, row: JobRow, state: State) -> None:
        """Let the sites that took part close the job too; those that are away keep it open."""
        with self._news:
            current = self._current
        if current is None or current.grid is None:
            return  # no site has heard of it
        try:
            grid = self._make_grid(row.signed.job, UNKNOWN_JOB_CAP_BYTES)
            self._trainer().announce_end(row.signed, grid, state)
        except VeiltuneError as error:
            log.warning("end untold", job=row.name, error=error)
