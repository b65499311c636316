import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from common.job import Job, SignedJob
from server import cli
from server.control import Request, follow
from server.daemon import Daemon

Signed = Callable[..., SignedJob]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def job_file(tmp_path: Path, signed: Signed) -> Path:
    return write(signed(rounds=2).job, tmp_path / "wards.toml")


def write(job: Job, path: Path) -> Path:
    path.write_text(tomli_w.dumps(job.model_dump(mode="json", exclude_none=True)))
    return path


def run(home: Path, *argv: str) -> int:
    return cli.main(["--home", str(home), *argv])


def finish(home: Path) -> None:
    list(follow(home, Request(command="watch", job="wards")))


def test_init_makes_a_server_and_names_the_next_steps(tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "server"
    assert run(home, "init", "--host", "127.0.0.1", "--host", "fl.example.org") == 0
    out = capsys.readouterr().out
    assert "address      127.0.0.1:8443" in out
    assert "names        127.0.0.1, fl.example.org" in out
    assert f"move {home}/pki/root.key" in out
    assert f"fl-server --home {home} start" in out
    assert f"fl-server --home {home} enroll SITE.csr" in out
    assert (home / "pki" / "root.key").exists()
    assert run(home, "init", "--host", "127.0.0.1") == 2
    assert capsys.readouterr().err.startswith("error: home must not hold a server yet")


def test_the_default_home_is_not_spelt_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["init", "--host", "127.0.0.1"]) == 0
    assert (tmp_path / ".veiltune" / "server" / "pki" / "root.pem").exists()
    assert "start the server:  fl-server start\n" in capsys.readouterr().out
    assert cli.main(["jobs"]) == 2
    assert capsys.readouterr().err.endswith("(start it with: fl-server start)\n")


def test_starting_without_a_server_names_the_command_that_makes_one(
    tmp_path: Path, capsys: Capture
) -> None:
    home = tmp_path / "my server"
    assert run(home, "start") == 2
    assert f"(make it with: fl-server --home '{home}' init)" in capsys.readouterr().err


def fingerprint(chain: str) -> str:
    """The sha256 of a chain's first certificate, as OpenSSL prints it."""
    words = ["openssl", "x509", "-noout", "-fingerprint", "-sha256"]
    done = subprocess.run(words, input=chain, capture_output=True, text=True, check=True)
    return done.stdout.strip().rpartition("=")[2].replace(":", "").lower()


def test_a_site_is_enrolled_and_revoked(tmp_path: Path, home: Path, capsys: Capture) -> None:
    from common import pki

    csr = tmp_path / "A.csr"
    csr.write_bytes(pki.new_site_key_and_csr("A")[1])
    assert run(home, "enroll", str(csr), "--out", str(tmp_path / "sent.bundle")) == 0
    out = capsys.readouterr().out
    assert "site A enrolled until" in out
    sent = json.loads((tmp_path / "sent.bundle").read_bytes())
    assert sent["site"] == "A"
    assert f"  operator key {sent['operator']}\n" in out
    assert f"  root         sha256 {fingerprint(sent['root'])}\n" in out
    assert f"  certificate  sha256 {fingerprint(sent['certificate'])}\n" in out
    assert run(home, "revoke", "A") == 0
    assert run(home, "revoke", "A") == 0
    assert capsys.readouterr().out == (
        "site A revoked: 1 certificate revoked\nsite A revoked: was before\n"
    )
    assert run(home, "revoke", "B") == 2
    assert capsys.readouterr().err == "error: site must be enrolled, got 'B'\n"


@pytest.mark.usefixtures("daemon")
def test_a_job_is_submitted_and_waited_for(
    home: Path, job_file: Path, go: threading.Event, capsys: Capture
) -> None:
    go.set()
    assert run(home, "submit", str(job_file), "--wait") == 0
    out, err = capsys.readouterr()
    assert out.startswith("job wards queued as ")
    assert "noise multiplier " in out
    assert [line.split("  ")[0] for line in err.splitlines()] == [
        "round 0/2",
        "round 1/2",
        "round 2/2",
    ]
    assert "accuracy 0.500" in err
    assert f"outcome: {home}/jobs/" in out


@pytest.mark.usefixtures("daemon")
def test_the_same_job_twice_is_answered_with_its_state(
    home: Path, job_file: Path, go: threading.Event, capsys: Capture
) -> None:
    go.set()
    run(home, "submit", str(job_file), "--wait")
    capsys.readouterr()
    assert run(home, "submit", str(job_file)) == 0
    out = capsys.readouterr().out
    assert out.startswith("job wards is here already, and is not run twice: ")
    assert out.endswith("is finished\n")


@pytest.mark.usefixtures("daemon")
def test_waiting_for_a_job_that_fails_is_status_1_and_one_line(
    home: Path, job_file: Path, capsys: Capture
) -> None:
    stopper = threading.Timer(0.5, run, (home, "stop", "wards"))
    stopper.start()
    assert run(home, "submit", str(job_file), "--wait") == 1
    stopper.join()
    assert capsys.readouterr().err.splitlines()[-1] == "error: job wards stopped: by the operator"


@pytest.mark.usefixtures("daemon")
def test_jobs_and_show_print_json_on_request(
    home: Path, job_file: Path, go: threading.Event, capsys: Capture
) -> None:
    assert run(home, "jobs") == 0
    assert capsys.readouterr().out.startswith("no jobs yet")
    go.set()
    run(home, "submit", str(job_file), "--wait")
    capsys.readouterr()
    assert run(home, "jobs", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert run(home, "show", listed["sha256"][:6], "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {key: shown[key] for key in listed} == listed
    assert [site["steps"] for site in shown["spent"]] == [8, 8]


@pytest.mark.usefixtures("daemon")
def test_jobs_and_show_print_tables_without_cutting_a_value(
    home: Path, job_file: Path, go: threading.Event, capsys: Capture
) -> None:
    go.set()
    run(home, "submit", str(job_file), "--wait")
    capsys.readouterr()
    assert run(home, "jobs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["job", "id", "state", "round", "score", "submitted", "reason"]
    assert lines[1].split()[2:6] == ["finished", "2/2", "accuracy", "0.500"]
    assert run(home, "show", "wards") == 0
    out = capsys.readouterr().out
    assert "sampling_rate     0.05" in out
    assert "declared records  A 400, B 600" in out
    lines = [line.rstrip() for line in out.splitlines()]
    assert "agreed epsilon    6" in lines
    assert "epsilon spent" in out
    headings = ["agreed in the job", "rounds", "sites, by what was recorded"]
    assert [line for line in lines if line in headings] == headings


def test_a_reason_is_printed_as_text_and_never_as_markup(
    home: Path, daemon: Daemon, job: SignedJob, capsys: Capture
) -> None:
    daemon.checkpoints.add_job(job)
    daemon.checkpoints.set_state(job.job.sha256, "failed", "[red]got [/nothing]")
    assert run(home, "jobs") == 0
    assert "[red]got [/nothing]" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["jobs"], ["show", "x"], ["stop", "x"]])
def test_without_a_server_the_error_is_one_line(
    argv: list[str], home: Path, capsys: Capture
) -> None:
    assert run(home, *argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: fl-server must be running for this home, got no answer at "
        f"{home}/control.sock (start it with: fl-server --home {home} start)\n"
    )


def test_a_job_file_with_faults_is_refused_before_it_is_sent(
    home: Path, tmp_path: Path, capsys: Capture
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[job]\nname = "../x"\n')
    assert run(home, "submit", str(bad)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: bad.toml: job.name must be a match of")
    assert err.count("\n") == 1


def test_a_job_is_not_submitted_without_the_operators_key(
    tmp_path: Path, job_file: Path, capsys: Capture
) -> None:
    assert run(tmp_path, "submit", str(job_file)) == 2
    assert "operator.key' must be a readable file" in capsys.readouterr().err


def test_quick_commands_do_not_import_the_model_libraries(home: Path) -> None:
    script = (
        "import sys\n"
        "from server.cli import main\n"
        "for argv in (['--help'], ['jobs'], ['show', 'x'], ['stop', 'x']):\n"
        "    main(['--home', sys.argv[1], *argv])\n"
        "slow = ('torch', 'transformers', 'opacus', 'flwr', 'dp_accounting', 'scipy')\n"
        "print('imported:', *[name for name in slow if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.slow
def test_the_daemon_does_not_import_the_model_libraries_before_a_job_does(home: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from server.daemon import Daemon\n"
        "daemon = Daemon(Path(sys.argv[1])); daemon.start(); daemon.stop()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
