import datetime as dt
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.errors import InvalidInput, LinkDown, VeiltuneError
from common.job import SignedJob
from common.process import watch_threads
from server import control
from server.checkpoint import RoundRecord
from server.control import Line, Request
from server.daemon import Daemon
from server.enrolment import init_server
from server.worker import Trainer

Signed = Callable[..., SignedJob]

PATIENCE_S = 20.0


def submit(home: Path, job: SignedJob) -> Line:
    return control.ask(home, Request(command="submit", signed=job.to_bytes().decode()))


def ask(home: Path, command: str, job: str = "") -> Line:
    return control.ask(home, Request.model_validate({"command": command, "job": job}))


@pytest.mark.usefixtures("daemon")
def test_a_submitted_job_runs_and_is_watched_to_its_end(
    home: Path, job: SignedJob, go: threading.Event
) -> None:
    answer = submit(home, job)
    assert (answer["is_new"], answer["name"], answer["sha256"]) == (True, "wards", job.job.sha256)
    go.set()
    *events, end = control.follow(home, Request(command="watch", job="wards"))
    assert [event["round"]["round"] for event in events if "round" in event] == [0, 1, 2]
    assert (end["state"], end["round"], end["accuracy"]) == ("finished", 2, 0.5)
    assert end["outcome"] == str(home / "jobs" / job.job.sha256)


@pytest.mark.usefixtures("daemon")
def test_the_same_job_again_is_not_run_again(
    home: Path, job: SignedJob, go: threading.Event
) -> None:
    go.set()
    assert submit(home, job)["is_new"]
    list(control.follow(home, Request(command="watch", job="wards")))
    again = submit(home, job)
    assert (again["is_new"], again["state"]) == (False, "finished")
    assert len(ask(home, "jobs")["jobs"]) == 1


@pytest.mark.usefixtures("daemon")
def test_a_job_of_another_signer_or_edited_after_signing_is_refused(
    home: Path, job: SignedJob, signed: Signed
) -> None:
    with pytest.raises(VeiltuneError, match="job signer must be one of the 1 allowed"):
        submit(home, signed())
    edited = job.model_copy(update={"job": signed(rounds=9).job})
    with pytest.raises(VeiltuneError, match="job signature must be over this manifest"):
        submit(home, edited)
    with pytest.raises(VeiltuneError, match="job must be a signed manifest"):
        control.ask(home, Request(command="submit", signed="[]"))
    assert ask(home, "jobs") == {"jobs": []}


@pytest.mark.usefixtures("daemon")
def test_a_shown_job_states_what_each_site_spent_from_records(
    home: Path, job: SignedJob, go: threading.Event
) -> None:
    go.set()
    submit(home, job)
    list(control.follow(home, Request(command="watch", job="wards")))
    shown = ask(home, "show", job.job.sha256[:8])
    assert shown["constants"]["noise_multiplier"] == pytest.approx(job.job.noise_multiplier)
    assert [record["round"] for record in shown["closed"]] == [0, 1, 2]
    # Two rounds of four steps went out and nothing came back: that may all have been spent,
    # which is all that the job was calibrated for.
    assert [site["name"] for site in shown["spent"]] == ["A", "B"]
    for site in shown["spent"]:
        assert site["steps"] == 8
        assert site["epsilon"] == pytest.approx(6.0, rel=0.01)
        assert site["epsilon"] <= 6.0


@pytest.mark.usefixtures("daemon")
def test_a_running_job_is_stopped_and_the_watcher_told(home: Path, job: SignedJob) -> None:
    submit(home, job)
    events = control.follow(home, Request(command="watch", job="wards"))
    while next(events) != {"state": "running"}:
        pass
    assert ask(home, "stop", "wards")["was"] == "running"
    *_, end = events
    assert (end["state"], end["reason"]) == ("stopped", "by the operator")
    with pytest.raises(VeiltuneError, match="queued or running to be stopped, got stopped"):
        ask(home, "stop", "wards")


def test_a_job_left_running_is_resumed_by_the_next_server(
    home: Path, job: SignedJob, trainer: Trainer, go: threading.Event
) -> None:
    first = Daemon(home, trainer=trainer)
    first.start()
    submit(home, job)
    begun = time.monotonic()
    events = control.follow(home, Request(command="watch", job="wards"))
    while "round" not in next(events):
        pass
    first.stop()
    assert time.monotonic() - begun < PATIENCE_S
    with pytest.raises(VeiltuneError, match=r"must (run until|finish)"):
        list(events)
    go.set()
    second = Daemon(home, trainer=trainer)
    assert second.checkpoints.job("wards").state == "running"
    second.start()
    *_, end = control.follow(home, Request(command="watch", job="wards"))
    assert end["state"] == "finished"
    second.stop()


def test_only_a_site_of_a_finished_job_gets_its_adapter(
    home: Path, job: SignedJob, daemon: Daemon, go: threading.Event
) -> None:
    submit(home, job)
    events = control.follow(home, Request(command="watch", job="wards"))
    while "round" not in next(events):
        pass
    assert daemon._final_adapter("A", job.job.sha256) is None
    go.set()
    list(control.follow(home, Request(command="watch", job="wards")))
    assert daemon._final_adapter("A", job.job.sha256) == bytes([2]) * 8
    assert daemon._final_adapter("C", job.job.sha256) is None
    assert daemon._final_adapter("A", "00" * 32) is None


def resumed(home: Path, job: SignedJob, scores: list[float]) -> Daemon:
    """A server with a job under way, whose round n ended with n n n n n n n n."""
    shutil.rmtree(home / "jobs", ignore_errors=True)
    idle, sha256 = Daemon(home), job.job.sha256
    idle.checkpoints.add_job(job)
    idle.checkpoints.set_state(sha256, "running")
    for round_, score in enumerate(scores):
        record = RoundRecord(round_, score, 0.4, 0, 0.1, "ab" * 32, "cd" * 32)
        is_best = round_ > 0 and score > max(scores[1:round_], default=0.0)
        idle.checkpoints.save_round(sha256, record, bytes([round_]) * 8, [], is_best=is_best)
    return idle


def write_outcome(home: Path, job: SignedJob) -> None:
    out = home / "jobs" / job.job.sha256
    out.mkdir(parents=True)
    (out / "result.json").write_text("{}")


def test_the_adapter_is_there_for_sites_that_are_told_before_the_job_is_finished(
    home: Path, job: SignedJob
) -> None:
    idle, sha256 = resumed(home, job, [0.5, 0.5, 0.5]), job.job.sha256
    # A site that had it before it is told would never learn the hash that the job closed with.
    assert idle._final_adapter("A", sha256) is None
    write_outcome(home, job)
    assert idle._final_adapter("A", sha256) == bytes([2]) * 8
    idle.checkpoints.set_state(sha256, "failed", "outcome must be written, got no room")
    assert idle._final_adapter("A", sha256) is None
    idle.stop()


def test_there_is_no_adapter_before_the_last_round_whatever_lies_in_the_folder(
    home: Path, job: SignedJob
) -> None:
    idle = resumed(home, job, [0.5, 0.5])
    write_outcome(home, job)
    assert idle._final_adapter("A", job.job.sha256) is None
    idle.stop()


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([0.1, 0.3, 0.6, 0.5, 0.4], 2), ([0.1, 0.3, 0.6, 0.5], None), ([0.1, 0.2, 0.1, 0.3, 0.4], 4)],
)
def test_a_site_of_a_job_with_patience_gets_the_best_rounds_adapter_after_an_early_end(
    home: Path, signed: Signed, scores: list[float], kept: int | None
) -> None:
    job = signed(rounds=4 if kept == 4 else 9, patience=2)
    idle = resumed(home, job, scores)
    write_outcome(home, job)
    expected = None if kept is None else bytes([kept]) * 8
    assert idle._final_adapter("A", job.job.sha256) == expected
    idle.stop()


@pytest.mark.usefixtures("daemon")
def test_a_second_server_on_one_home_is_refused(home: Path) -> None:
    with pytest.raises(InvalidInput, match="home must have one running server, got a second"):
        Daemon(home)


def test_a_port_in_use_is_refused_and_everything_let_go(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = home / "server.toml"
        text = config.read_text()
        config.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with pytest.raises(InvalidInput, match="listen address must be free"):
            Daemon(home).start()
        config.write_text(text)
    Daemon(home).stop()
    assert not (home / control.SOCKET_NAME).exists()


def test_a_home_that_others_can_enter_is_refused(home: Path) -> None:
    home.chmod(0o755)
    with pytest.raises(InvalidInput, match=r"home must be for its owner alone .*, got 0755"):
        Daemon(home)


@pytest.mark.parametrize(
    ("years", "words"), [(-3, "one that expired on"), (1, "one that is not valid before")]
)
def test_a_server_whose_certificate_no_site_would_take_does_not_start(
    tmp_path: Path, years: int, words: str
) -> None:
    then = dt.datetime.now(dt.UTC) + dt.timedelta(days=366 * years)
    init_server(tmp_path / "s", hosts=[], address="127.0.0.1:1", listen="127.0.0.1:0", now=then)
    with pytest.raises(InvalidInput, match=f"certificate must be valid today, got {words}"):
        Daemon(tmp_path / "s")


def test_a_home_without_a_server_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"make it with: fl-server --home \S+ init"):
        Daemon(tmp_path / "none")


def test_a_start_says_where_it_listens_and_for_which_home(home: Path, trainer: Trainer) -> None:
    daemon = Daemon(home, trainer=trainer)
    with capture_logs() as events:
        daemon.start()
    daemon.stop()
    (said,) = [event for event in events if event["log_level"] == "info"]
    assert said["event"] == "server ready"
    assert said["listens"] == f"127.0.0.1:{daemon.link.port}"
    assert said["home"] == str(home)


FAILS = """
import sys
from pathlib import Path
from common import log
from server import upkeep
from server.daemon import Daemon

def fail(self):
    raise ZeroDivisionError("nobody foresaw this")

log.configure(level="info", json_lines=True)
upkeep.Upkeep._mind_joins = fail
Daemon(Path(sys.argv[1])).serve()
"""


@pytest.mark.slow
def test_a_fault_that_ends_the_upkeep_ends_the_server_for_systemd_to_start_again(
    home: Path,
) -> None:
    words = [sys.executable, "-c", FAILS, str(home)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    events = [json.loads(line) for line in (done.stdout + done.stderr).splitlines()]
    (failed,) = [event for event in events if event["event"] == "thread failed"]
    assert (failed["thread"], failed["level"]) == ("upkeep", "error")
    assert failed["error"] == "ZeroDivisionError: nobody foresaw this"
    assert events[-1]["event"] == "server stopped"
    assert not (home / control.SOCKET_NAME).exists()


def test_a_fault_in_a_session_s_thread_is_logged_and_ends_no_server() -> None:
    hook, failed = threading.excepthook, list[str]()
    try:
        watch_threads(["upkeep"], failed.append)
        with capture_logs() as events:
            for name in ("link-A", "upkeep"):
                thread = threading.Thread(target=lambda: 1 / 0, name=name)
                thread.start()
                thread.join()
    finally:
        threading.excepthook = hook
    assert [event["thread"] for event in events] == ["link-A", "upkeep"]
    assert failed == ["upkeep"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_process_cleanly_within_seconds(
    home: Path, number: signal.Signals
) -> None:
    script = (
        "import sys; from pathlib import Path; from server.daemon import Daemon; "
        "Daemon(Path(sys.argv[1])).serve()"
    )
    process = subprocess.Popen([sys.executable, "-c", script, home], stdout=subprocess.PIPE)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            assert ask(home, "jobs") == {"jobs": []}
            break
        except LinkDown:
            time.sleep(0.05)
    begun = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(PATIENCE_S) == 0
    assert time.monotonic() - begun < 10
    assert process.stdout is not None
    process.stdout.close()
    assert not (home / control.SOCKET_NAME).exists()
