"""Units against systemd's own parser where it is at hand, and against its documented syntax."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import systemd
from common.errors import InvalidInput
from server.cli import main as fl_server
from server.enrolment import init_server

PROGRAM = str(Path(sys.executable).parent / "fl-server")


def settings(text: str) -> dict[str, list[str]]:
    """Each setting of all sections, with its values in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as one outside of /tmp, where tests have theirs."""
    monkeypatch.setattr(systemd, "_OWN", ())
    return tmp_path


def made(home: Path, *reads: Path, has_gpu: bool = False) -> str:
    home.mkdir(parents=True, exist_ok=True)
    command = [PROGRAM, "--home", str(home), "start"]
    return systemd.unit("Veiltune server", command, home, reads=reads, has_gpu=has_gpu)


def verified(folder: Path, text: str, name: str = "veiltune-test.service") -> str:
    """What ``systemd-analyze verify`` has to say; nothing is the best."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    path = folder / name
    path.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    words = [line for line in done.stderr.splitlines() if name in line or "veiltune" in line]
    return "\n".join(words)


def test_a_unit_writes_to_its_home_alone_and_cannot_gain_rights(outside: Path) -> None:
    home = outside / "server"
    found = settings(made(home))
    assert found["ReadWritePaths"] == [str(home)]
    assert found["ProtectSystem"] == ["strict"]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["PrivateTmp"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
    assert found["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert found["PrivateDevices"] == ["yes"]
    assert found["Type"] == ["notify"]
    assert (found["Restart"], found["RestartPreventExitStatus"]) == (["on-failure"], ["2"])
    # Each tried: torch does not run under the one, a site cannot measure memory under the other.
    assert "MemoryDenyWriteExecute" not in found
    assert "ProcSubset" not in found


@pytest.mark.parametrize(
    "name", ["server", "a b", 'quo"te', "50%h", "back\\slash", "semi;colon", "it's", "dollar$HOME"]
)
def test_systemd_finds_no_fault_and_reads_the_same_path(outside: Path, name: str) -> None:
    home = outside / name
    text = made(home, has_gpu=True)
    assert verified(outside, text) == ""
    # systemd's own unquoting is that of a shell, after its specifiers and variables, which only
    # a doubled sign escapes.
    (line,) = settings(text)["ExecStart"]
    signs = re.findall("%+", text) + re.findall(r"\$+", line)
    assert not [run for run in signs if len(run) % 2]
    assert shlex.split(line.replace("%%", "%").replace("$$", "$")) == [
        PROGRAM, "--home", str(home), "start",
    ]  # fmt: skip


def test_a_fault_in_a_unit_would_be_found(outside: Path) -> None:
    text = made(outside / "server").replace("ProtectSystem=strict", "ProtectSystem=rather")
    assert "Failed to parse protect system value" in verified(outside, text)
    text = made(outside / "server").replace("PrivateTmp", "PrivateTemp")
    assert "PrivateTemp" in verified(outside, text)


@pytest.mark.parametrize("home", ["/home/u/.veiltune/server", "/root/v"])
def test_a_home_among_peoples_folders_is_all_that_is_seen_of_them(
    home: str, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_HIDDEN", (outside / "home", outside / "root"))
    place = outside / home[1:]
    data, elsewhere = outside / "home" / "u" / "notes.csv", Path("/srv/notes.csv")
    found = settings(made(place, data, elsewhere, place / "own.csv"))
    assert found["ProtectHome"] == ["tmpfs"]
    assert found["BindPaths"] == [str(place)]
    assert found["BindReadOnlyPaths"] == [str(data)]
    assert verified(outside, made(place, data)) == ""
    assert settings(made(outside / "srv"))["ProtectHome"] == ["yes"]


def test_a_home_in_tmp_of_which_a_service_has_its_own_is_refused(tmp_path: Path) -> None:
    monkeyed = Path("/tmp") / tmp_path.name
    monkeyed.mkdir()
    try:
        with pytest.raises(InvalidInput, match="must not lie below /tmp"):
            made(monkeyed)
    finally:
        monkeyed.rmdir()


@pytest.mark.parametrize(
    ("home", "user", "words"),
    [
        ("line\nExecStartPre=x", "", "must be printable"),
        ("server", "nobody-of-that-name", "user must be one of this machine"),
    ],
)
def test_what_no_unit_can_name_is_refused(outside: Path, home: str, user: str, words: str) -> None:
    (outside / home).mkdir()
    with pytest.raises(InvalidInput, match=words):
        systemd.unit("x", [PROGRAM, "--home", str(outside / home)], outside / home, user=user)


def test_the_commands_print_units_that_start_what_printed_them(
    outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = outside / "server"
    init_server(home, hosts=[], address="127.0.0.1:8443")
    assert fl_server(["--home", str(home), "systemd", "--metrics", "127.0.0.1:9464"]) == 0
    text = capsys.readouterr().out
    (line,) = settings(text)["ExecStart"]
    assert shlex.split(line) == [
        PROGRAM, "--home", str(home), "start", "--metrics", "127.0.0.1:9464",
    ]  # fmt: skip
    assert text.splitlines()[0] == f"# Written by: fl-server --home {home} systemd"
    assert "systemctl enable --now veiltune-server" in text.splitlines()[1]
    assert verified(outside, text) == ""
