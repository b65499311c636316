import getpass
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import tomli_w

from client import cli
from client.account import open_account
from client.approval import require_approval
from client.config import SiteHome, load_home
from client.outbox import Outbox
from common import systemd
from common.errors import JobWaits
from common.job import SignedJob
from server.enrolment import enroll, init_server
from server.link import LinkServer

Capture = pytest.CaptureFixture[str]
Manifest = Callable[..., SignedJob]
Serving = Callable[[Callable[[str, str], bytes | None]], LinkServer]
Spawn = Callable[[Path], "subprocess.Popen[str]"]

PATIENCE_S = 60.0
MAIN = "import sys; from client.cli import main; raise SystemExit(main())"


class Homes(Protocol):
    """The fixture of that name."""

    def make(self, site: str = "A", **options: object) -> Path: ...
    def load(self, site: str = "A", **options: object) -> SiteHome: ...


@pytest.fixture(autouse=True)
def _aside(logs_aside: object) -> None:
    """Every command configures logging."""


def run(home: Path, *argv: str, site: str = "A") -> int:
    return cli.main(["--site", site, "--home", str(home), *argv])


def write_data(home: Path, text: str, name: str = "notes.csv", **columns: str) -> None:
    (home / name).write_text(text)
    toml = (home / "site.toml").read_text()
    section = {"data": {"notes": {"path": name, **columns}}}
    (home / "site.toml").write_text(toml + "\n" + tomli_w.dumps(section))


def write_job(path: Path, signed: SignedJob) -> Path:
    path.write_text(tomli_w.dumps(signed.job.model_dump(mode="json", exclude_none=True)))
    return path


def test_a_sites_unit_starts_that_site_and_sees_its_data(
    homes: Homes, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes.make(data={"notes": {"path": "/srv/notes.csv"}, "own": {"path": "own.csv"}})
    assert run(home, "systemd") == 2
    assert "error: home must not lie below /tmp" in capsys.readouterr().err
    monkeypatch.setattr(systemd, "_OWN", ())
    monkeypatch.setattr(systemd, "_HIDDEN", (Path("/srv"),))
    assert run(home, "systemd", "--metrics", "[::1]:9465") == 0
    out = capsys.readouterr().out
    program = Path(sys.executable).parent / "fl-client"
    words = f"--site A --home {home} --metrics [::1]:9465"
    assert f"ExecStart={program} {words}\n" in out
    assert "BindReadOnlyPaths=/srv/notes.csv\n" in out
    assert "PrivateDevices=yes\n" in out
    assert "veiltune-site-A.service" in out.splitlines()[1]
    assert run(home, "systemd", "--metrics", "0.0.0.0:1") == 2


def test_a_site_is_set_up_by_init_and_install(tmp_path: Path, capsys: Capture) -> None:
    home, server = tmp_path / "A", tmp_path / "server"
    init_server(server, hosts=["127.0.0.1"], address="127.0.0.1:8443")
    assert run(home, "status") == 2
    assert capsys.readouterr().err.startswith("error: site A must be set up, got no ")

    assert run(home, "init") == 0
    out = capsys.readouterr().out
    assert f"request      {home}/A.csr\n" in out
    assert "fl-server enroll A.csr" in out
    assert f"fl-client --site A --home {home} install A.bundle" in out

    made = enroll(server, home / "A.csr", tmp_path / "A.bundle")
    assert run(home, "install", str(made.bundle), "--max-epsilon", "3.5") == 0
    out = capsys.readouterr().out
    assert f"root         sha256 {made.root_sha256}" in out
    operator = (server / "pki" / "operator.pub").read_text().strip()
    assert f"operator key {operator}" in out
    assert "max_epsilon = 3.5" in (home / "site.toml").read_text()

    assert "map your data in site.toml, then:" in out

    assert run(home, "install", str(made.bundle), "--max-epsilon", "9") == 0
    assert "kept as it was, with its limits" in capsys.readouterr().out
    assert run(home, "status") == 0
    assert "left of 3.5" in capsys.readouterr().out
    open_account(load_home(home, "A"))
    assert run(home, "install", str(made.bundle)) == 0
    out = capsys.readouterr().out
    assert f"let it sign the ledger:  fl-client --site A --home {home} ledger rekey\n" in out
    assert "map your data" not in out
    assert run(home, "init") == 0
    assert "was made before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["status"], "--site must be given before the command"),
        ([], "--site must be given before the command"),
        (["--site", "../x", "status"], "site must be 1 to 63 letters"),
        (["--site", "A", "run"], "'run' (known: init, install, status, doctor, jobs, approve"),
        (["data", "check", "--site", "A"], "as in: fl-client --site SITE data check"),
        (["--site", "A", "--home", "/nowhere", "status"], "site A must be set up"),
        (["--site", "A", "--home", "/nowhere"], "site A must be set up"),
        (["--site", "A", "--home", "/nowhere", "install", "x"], "must be a readable file"),
    ],
)
def test_misuse_is_one_line_and_status_2(argv: list[str], said: str, capsys: Capture) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_home_of_another_site_is_refused(homes: Homes, capsys: Capture) -> None:
    assert run(homes.make("A"), "status", site="B") == 2
    assert "must be that of site B, got site A" in capsys.readouterr().err


def test_jobs_lists_what_the_account_holds(
    homes: Homes, manifest: Manifest, capsys: Capture
) -> None:
    home = homes.load()
    assert run(home.folder, "jobs") == 0
    assert capsys.readouterr().out.startswith("no jobs yet")
    signed = manifest("icu")
    Outbox.of(home).open_job(signed.job.sha256, "icu", signed.to_bytes())
    assert run(home.folder, "jobs", "--json") == 0
    (job,) = json.loads(capsys.readouterr().out)
    assert (job["name"], job["sha256"], job["state"]) == ("icu", signed.job.sha256, "running")
    assert run(home.folder, "jobs") == 0
    assert signed.job.sha256[:12] in capsys.readouterr().out


def test_a_job_is_approved_and_refused_by_name(
    homes: Homes, manifest: Manifest, capsys: Capture
) -> None:
    home, signed = homes.load(policy={"approval": "person"}), manifest("icu")
    with pytest.raises(JobWaits):
        require_approval(signed, home, Outbox.of(home).decisions())
    assert run(home.folder, "jobs") == 0
    assert "waiting for approval" in capsys.readouterr().out
    assert run(home.folder, "approve", "icu", "--by", "Dr Ada") == 0
    assert capsys.readouterr().out == f"job icu ({signed.job.sha256[:12]}) approved by Dr Ada\n"
    assert run(home.folder, "refuse", signed.job.sha256[:6]) == 0
    login = getpass.getuser()
    assert capsys.readouterr().out.endswith(f"refused by {login}\n")
    said = [(one.decision, one.who) for one in Outbox.of(home).decisions()]
    assert said == [("approve", "Dr Ada"), ("refuse", login)]
    assert run(home.folder, "approve", "letters") == 2
    assert "job must be one of those here (icu)" in capsys.readouterr().err


def test_a_preflight_without_the_base_still_judges(
    homes: Homes, manifest: Manifest, tmp_path: Path, capsys: Capture
) -> None:
    home = homes.load(data={"notes": {"path": "nowhere.csv"}})
    raw = manifest("icu").job.model_dump(mode="json", exclude_none=True)
    raw["model"]["base"] = "./nowhere"
    (tmp_path / "job.toml").write_text(tomli_w.dumps(raw))
    assert run(home.folder, "preflight", str(tmp_path / "job.toml"), "--json") == 2
    out, err = capsys.readouterr()
    assert "error: model.base must be the job's on this machine, got" in err
    found = json.loads(out)
    assert found["bytes"] is found["load"] is None
    assert [r["rule"] for r in found["rules"] if not r["is_met"]] == ["models"]
    assert not home.account_path.exists()


def test_a_data_check_without_a_job_counts_words(homes: Homes, capsys: Capture) -> None:
    home = homes.make()
    write_data(home, "text,label\none two three,x\none two three four five,[y]\n,x\n")
    assert run(home, "data", "check") == 0
    out = capsys.readouterr().out
    assert "no job, no limit; in words: median 3, longest 5" in out
    assert "label [y]" in out
    assert "lengths are counted in words" in out
    assert "one two" not in out


def test_a_data_check_says_what_is_in_a_public_set_too_on_this_screen_alone(
    homes: Homes, tmp_path: Path, capsys: Capture
) -> None:
    home, public = homes.make(), tmp_path / "public.csv"
    write_data(home, "text,label\none two three,x\none two three four,x\nsecret words,x\n")
    public.write_text("text,label\none two three,y\n")
    before = sorted(path for path in home.rglob("*"))
    assert run(home, "data", "check", "--hold-out", str(public)) == 0
    out = capsys.readouterr().out
    assert re.search(r"word by word\s+│?\s*1 ", out)
    assert "a release that no budget counts" in out
    assert "secret" not in out
    assert run(home, "data", "check", "--hold-out", str(public), "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["hold_out"] == {
        "held": 1, "same": 1, "near": 0, "units": 0, "has_units": False,
    }  # fmt: skip
    assert sorted(path for path in home.rglob("*")) == before
    assert run(home, "data", "check", "--hold-out", "builtin:wards", "--split", "all") == 2
    assert "split must be one of train, dev, test, got 'all'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "columns", "said"),
    [
        ("text,label\n", {}, "notes.csv must hold at least one record"),
        ("text,ward\nsecret,x\n", {}, "notes.csv:1: header must name column 'label'"),
        ("text,label\nsecret,x\nsecret\n", {}, "notes.csv:3: row must have the header's 2 columns"),
        ("text,label\nsecret,x\n", {"unit": "patient"}, "must name column 'patient'"),
    ],
)
def test_bad_data_is_one_line_without_content(
    homes: Homes, capsys: Capture, text: str, columns: dict[str, str], said: str
) -> None:
    home = homes.make()
    write_data(home, text, **columns)
    assert run(home, "data", "check") == 2
    err = capsys.readouterr().err
    assert said in err
    assert "secret" not in err
    assert len(err.splitlines()) == 1


def test_a_data_set_that_is_not_mapped_is_refused(homes: Homes, capsys: Capture) -> None:
    home = homes.make()
    assert run(home, "data", "check") == 2
    assert "site.toml must map a data set" in capsys.readouterr().err
    write_data(home, "text,label\na,x\n")
    assert run(home, "data", "check", "other") == 2
    assert "(notes), got 'other'" in capsys.readouterr().err


def test_a_label_outside_the_job_s_set_is_named_by_its_line(
    homes: Homes, job_data: Callable[[], dict[str, Any]], tmp_path: Path, capsys: Capture
) -> None:
    home = homes.make()
    write_data(home, "text,label\nw1 w2,surgery\nw3 " * 1 + "w4 " * 60 + ",dentistry\n")
    path = tmp_path / "job.toml"
    path.write_text(tomli_w.dumps(job_data()))
    assert run(home, "data", "check", "--job", str(path)) == 2
    out, err = capsys.readouterr()
    assert err == (
        "error: notes.csv:3: label must be one of the job's 3 public labels, got another\n"
    )
    assert "dentistry" not in out + err
    # 61 words are 61 tokens of this vocabulary, and two special ones.
    assert "cut at 48 tokens (median 33.5, longest 63)" in out


def test_a_predict_without_an_adapter_names_the_command(
    homes: Homes, manifest: Manifest, capsys: Capture
) -> None:
    home = homes.load()
    assert run(home.folder, "predict", "wards", "text") == 2
    assert "a site that has run none" in capsys.readouterr().err
    signed = manifest()
    Outbox.of(home).open_job(signed.job.sha256, "wards", signed.to_bytes())
    assert run(home.folder, "predict", "wards", "text") == 2
    assert "fl-client --site A fetch wards" in capsys.readouterr().err
    assert run(home.folder, "predict", "wards", " \x07 ") == 2
    assert "text must hold something" in capsys.readouterr().err


def test_quick_commands_never_import_the_model_libraries(homes: Homes) -> None:
    home = homes.make()
    write_data(home, "text,label\na,x\n")
    script = """
import sys
from client.cli import main
site = ["--site", "A", "--home", sys.argv[1]]
for argv in (["--help"], ["status"], ["init"], ["install", "x"], ["jobs"], ["data", "check"]):
    main([*site, *argv])
print(sorted({"torch", "transformers", "peft", "opacus"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", script, str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts ``fl-client --site A`` as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(home: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", MAIN, "--site", "A", "--home", str(home), "--json-log"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM] * 3,
        pytest.param([signal.SIGTERM], marks=pytest.mark.slow),
        pytest.param([signal.SIGINT], marks=pytest.mark.slow),
    ],
)
def test_a_running_site_stops_cleanly_on_a_signal(
    homes: Homes, serving: Serving, spawn: Spawn, signals: list[signal.Signals]
) -> None:
    link = serving(lambda site, job: None)
    home = homes.make(port=link.port)
    process = spawn(home)
    wait_until(lambda: link.connected() == {"A"})
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events[-1] == "site stopped"
    assert json.loads((home / "state.json").read_text())["reason"] == "stopped"


@pytest.mark.slow
def test_a_second_process_of_a_home_is_refused(
    homes: Homes, serving: Serving, spawn: Spawn
) -> None:
    link = serving(lambda site, job: None)
    home = homes.make(port=link.port)
    spawn(home)
    wait_until(lambda: link.connected() == {"A"})
    second = spawn(home)
    _, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 2
    assert f"error: home must have one running site, got a second for {home}\n" in err
    assert link.connected() == {"A"}


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
