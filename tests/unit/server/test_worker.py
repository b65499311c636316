import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.serverapp import Grid

from common.errors import InvalidInput, JobRefused, StorageFailed
from common.job import Job, SignedJob
from common.link.channel import Credentials
from common.link.framing import UNKNOWN_JOB_CAP_BYTES
from server.checkpoint import Checkpoints, RoundRecord
from server.grid import LinkGrid
from server.link import LinkServer
from server.roster import Roster
from server.worker import Worker

Signed = Callable[..., SignedJob]

CAP = 4321
PATIENCE_S = 20.0


class Rounds:
    """A trainer that closes a job's rounds without training; ``at`` is called in each round."""

    def __init__(self, at: Callable[[int, Grid], None]) -> None:
        self.at = at
        self.log: list[str] = []
        self.told: list[tuple[str, str]] = []

    def announce_end(self, signed: SignedJob, grid: Grid, state: str) -> None:
        grid.get_node_ids()  # a grid that lives, unlike the stopped job's
        self.told.append((signed.job.job.name, state))

    def message_cap(self, job: Job) -> int:
        assert job.sites
        return CAP

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
        latest = checkpoints.latest(signed.job.sha256)
        for round_ in range(latest[0] + 1 if latest else 0, signed.job.training.rounds + 1):
            self.at(round_, grid)
            self.log.append(f"{signed.job.job.name} {round_}")
            record = RoundRecord(round_, 0.5, 0.4, 0, 0.1, "ab" * 32, "cd" * 32)
            checkpoints.save_round(signed.job.sha256, record, bytes([round_]) * 8, [])
            observe(record)
        return out


def nothing(_: int, __: Grid) -> None: ...


def wait_for_sites(round_: int, grid: Grid) -> None:
    """As a job does that waits for sites to connect; none ever will."""
    while round_ == 2 and not grid.get_node_ids():
        time.sleep(0.01)


@pytest.fixture
def store() -> Iterator[Checkpoints]:
    checkpoints = Checkpoints("sqlite://")
    yield checkpoints
    checkpoints.close()


def worker(store: Checkpoints, folder: Path, trainer: Rounds) -> Worker:
    link = LinkServer("127.0.0.1:0", Credentials(b"", b"", b""), Roster(folder / "roster.json"))

    def make_grid(job: Job, cap_bytes: int) -> LinkGrid:
        assert cap_bytes in (CAP, UNKNOWN_JOB_CAP_BYTES)
        return LinkGrid(link, job.sites, cap_bytes, job.sha256)

    return Worker(store, folder / "jobs", lambda: trainer, make_grid)


def until(store: Checkpoints, work: Worker, name: str, state: str) -> str:
    """Wait until a job has come to ``state``; return the reason."""
    version, end = -1, time.monotonic() + PATIENCE_S
    while (row := store.job(name)).state != state:
        assert time.monotonic() < end, f"{name} is {row.state}: {row.reason}"
        version = work.wait(version, 0.1)
    return row.reason


def test_jobs_run_one_at_a_time_in_order(
    store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    trainer = Rounds(nothing)
    work = worker(store, tmp_path, trainer)
    store.add_job(signed("first", rounds=1))
    work.start()
    store.add_job(signed("second", rounds=1))
    work.announce()
    until(store, work, "second", "finished")
    assert trainer.log == ["first 0", "first 1", "second 0", "second 1"]
    assert work.close(PATIENCE_S)


def test_a_job_left_running_is_resumed_from_its_last_closed_round(
    store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    store.add_job(signed(rounds=3))
    killed = Rounds(wait_for_sites)
    work = worker(store, tmp_path, killed)
    work.start()
    until(store, work, "wards", "running")
    while killed.log != ["wards 0", "wards 1"]:
        time.sleep(0.01)
    assert work.close(PATIENCE_S)
    assert store.job("wards").state == "running"
    again = Rounds(nothing)
    work = worker(store, tmp_path, again)
    work.start()
    until(store, work, "wards", "finished")
    assert again.log == ["wards 2", "wards 3"]
    assert work.close(PATIENCE_S)


def test_a_running_job_is_stopped_on_request_and_the_next_one_runs(
    store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    trainer = Rounds(wait_for_sites)
    work = worker(store, tmp_path, trainer)
    store.add_job(signed("first"))
    store.add_job(signed("second", rounds=1))
    work.start()
    until(store, work, "first", "running")
    while not trainer.log:
        time.sleep(0.01)
    assert work.stop(store.job("first")) == "running"
    assert until(store, work, "first", "stopped") == "by the operator"
    until(store, work, "second", "finished")
    assert trainer.told == [("first", "stopped")], "sites learn of an end, and once"
    assert work.close(PATIENCE_S)


def test_a_queued_job_is_stopped_before_it_runs(
    store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    trainer = Rounds(wait_for_sites)
    work = worker(store, tmp_path, trainer)
    store.add_job(signed("first"))
    store.add_job(signed("second"))
    work.start()
    until(store, work, "first", "running")
    assert work.stop(store.job("second")) == "queued"
    assert store.job("second").state == "stopped"
    assert work.close(PATIENCE_S)
    assert not any(line.startswith("second") for line in trainer.log)


def test_a_job_stopped_while_it_loads_never_starts(
    store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    loading, go = threading.Event(), threading.Event()

    class Slow(Rounds):
        def message_cap(self, job: Job) -> int:
            loading.set()
            assert go.wait(PATIENCE_S)
            return super().message_cap(job)

    trainer = Slow(nothing)
    work = worker(store, tmp_path, trainer)
    store.add_job(signed())
    work.start()
    assert loading.wait(PATIENCE_S)
    work.stop(store.job("wards"))
    go.set()
    until(store, work, "wards", "stopped")
    assert trainer.log == []
    assert work.close(PATIENCE_S)


def test_a_job_that_has_ended_cannot_be_stopped(
    store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    work = worker(store, tmp_path, Rounds(nothing))
    store.add_job(signed())
    store.set_state(signed().job.sha256, "finished")
    with pytest.raises(InvalidInput, match="queued or running to be stopped, got finished"):
        work.stop(store.job("wards"))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (JobRefused("base model must be the job's, got another"), "base model must be the job's"),
        (StorageFailed("checkpoint must be written, got: full"), "checkpoint must be written"),
        (ZeroDivisionError("4 / 0"), "a fault in the server (ZeroDivisionError, see its log)"),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_one_runs(
    fault: Exception, reason: str, store: Checkpoints, tmp_path: Path, signed: Signed
) -> None:
    def fail_once(_: int, __: Grid) -> None:
        if store.job("second").state == "queued":
            raise fault

    work = worker(store, tmp_path, Rounds(fail_once))
    store.add_job(signed("first"))
    store.add_job(signed("second"))
    work.start()
    until(store, work, "second", "finished")
    assert until(store, work, "first", "failed").startswith(reason)
    assert work.close(PATIENCE_S)


def test_a_worker_without_jobs_closes_at_once(store: Checkpoints, tmp_path: Path) -> None:
    work = worker(store, tmp_path, Rounds(nothing))
    work.start()
    begun = time.monotonic()
    assert work.close(PATIENCE_S)
    assert time.monotonic() - begun < 5
