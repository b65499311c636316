"""Each fault planted for real, and seen on its own line with its own advice.

The other lines stay as they were; what one fault makes of another's line is said where it is so.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import pytest
import tomli_w

from client import cli
from client.doctor import Patient, checks, doctor
from client.linkcheck import LINES
from common import pki
from common.diagnosis import Finding, examine
from common.files import write_file
from common.installation import PACKAGES
from common.keys import new_operator_key

SOURCE = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]
Make = Callable[..., Path]
Lines = dict[str, Finding]


class Look(Protocol):
    """The fixture of that name."""

    def __call__(self, home: Path, *names: str, is_offline: bool = False) -> Lines: ...


# The test's own folder may be in memory, or nearly full.
PLACE = {"file system", "disk space", "inodes"}


def marked(found: Lines, mark: str) -> set[str]:
    return {name for name, finding in found.items() if finding.mark == mark}


def test_a_healthy_home_is_all_well(whole: Make, look: Look) -> None:
    found = look(whole())
    assert set(found) - marked(found, "ok") <= PLACE
    assert set(LINES) <= marked(found, "ok")
    assert found["admission"].found.endswith("admits site A")
    assert found["clock and server"].found == "within 1 s of the server's"
    assert found["root"].found.startswith("sha256 ")


def settings(home: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = home / "site.toml"
    content = tomllib.loads(path.read_text())
    change(content)
    path.write_text(tomli_w.dumps(content))


def another_root(home: Path) -> None:
    (home / "pki" / "root.pem").write_bytes(pki.create_root("loopback").certificate)


def other_key(home: Path) -> None:
    (home / "pki" / "site.key").write_bytes(pki.new_site_key_and_csr("A")[0])


def of_the_future(home: Path) -> None:
    moment = time.time() + 7 * 86400
    os.utime(home / "notes.csv", (moment, moment))


def unsigned(home: Path) -> None:
    settings(home, lambda toml: toml["policy"].pop("allowed_signers"))


def on_a_tpu(home: Path) -> None:
    settings(home, lambda toml: toml["runtime"].update(device="tpu"))


Plant = tuple[Callable[[Path], object], str, str, str]
PLANTED: dict[str, Plant] = {
    "home": (lambda h: h.chmod(0o777), "fault", "others may write", "chmod 700"),
    "site.toml": (on_a_tpu, "fault", "runtime.device must be", "correct that in"),
    "policy": (unsigned, "warning", "every job is refused", "operator's key"),
    "data": (lambda h: (h / "notes.csv").unlink(), "fault", "notes cannot be opened", "its path"),
    "permissions": (
        lambda h: (h / "site.toml").chmod(0o666), "fault", "site.toml (0666)", "chmod go-w",
    ),
    "clock and files": (of_the_future, "fault", "notes.csv is dated 7 days", "set the clock"),
}  # fmt: skip


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_fault_has_its_own_line_and_advice_and_changes_no_other(
    whole: Make, look: Look, check: str
) -> None:
    plant, mark, words, advice = PLANTED[check]
    home = whole()
    well = look(home, is_offline=True)
    assert well[check].mark == "ok"
    plant(home)
    found = look(home, is_offline=True)
    assert found[check].mark == mark
    assert words in found[check].found
    assert advice in found[check].advice
    assert {name for name in found if found[name].mark != well[name].mark} == {check}


IDENTITIES: dict[str, tuple[Plant, set[str]]] = {
    "key": (
        (lambda h: (h / "pki/site.key").chmod(0o644), "fault", "mode 0644", "chmod 600"),
        {"key and certificate", *LINES},
    ),
    "key and certificate": (
        (other_key, "fault", "for another key", "put that key back"),
        {"admission", "clock and server"},
    ),
    "certificate chain": (
        (another_root, "fault", "of another root", "fl-server invite A"),
        {"key and certificate", "server certificate", "admission", "clock and server"},
    ),
}


@pytest.mark.parametrize("check", IDENTITIES)
def test_an_identity_that_does_not_fit_is_named(whole: Make, look: Look, check: str) -> None:
    (plant, mark, words, advice), follows = IDENTITIES[check]
    home = whole()
    plant(home)
    found = look(home)
    assert found[check].mark == mark
    assert words in found[check].found
    assert advice in found[check].advice
    assert set(found) - marked(found, "ok") - {check} <= follows | PLACE


@pytest.mark.parametrize(
    ("days", "age_days", "mark", "words", "advice"),
    [
        (2, 5, "fault", "expired on", "join -"),
        (90, -3, "fault", "is not valid before", "set this machine's clock"),
        (60, 49, "warning", "expires in 10 days", "join -"),
    ],
)
def test_a_certificate_out_of_its_time_is_told_from_a_wrong_one(
    whole: Make, look: Look, days: int, age_days: int, mark: str, words: str, advice: str
) -> None:
    found = look(whole(days=days, age_days=age_days))
    assert found["certificate"].mark == mark
    assert words in found["certificate"].found
    assert advice in found["certificate"].advice
    assert found["certificate chain"].mark == found["key and certificate"].mark == "ok"
    assert found["server certificate"].mark == "ok"
    assert found["admission"].mark == ("not checked" if mark == "fault" else "ok")


def test_another_sites_certificate_is_named(whole: Make, look: Look, aged: Any) -> None:  # noqa: ANN401
    home, other = whole(), aged.make("B")
    shutil.copy(other / "pki" / "site.pem", home / "pki" / "site.pem")
    found = look(home, is_offline=True)["certificate chain"]
    assert (found.mark, found.found) == ("fault", "the certificate is site B's, not A's")
    assert "own bundle" in found.advice


def test_a_key_of_another_kind_is_named(whole: Make, look: Look) -> None:
    home = whole()
    write_file(home / "pki" / "site.key", new_operator_key())
    assert "ECDSA P-256" in look(home, is_offline=True)["key"].found


def test_every_error_of_the_settings_has_a_line_and_the_rest_is_used(whole: Make) -> None:
    home = whole()
    wrong = {"max_epsilon": -1, "token": "hunter2", "max_job_delta": "x"}
    settings(home, lambda toml: toml["policy"].update(wrong))
    patient = Patient(home, "A", "fl-client --site A")
    wanted = {"site.toml", "policy", "data", LINES[0]}
    found = examine(one for one in checks(patient) if one.name in wanted)
    lines = [f for f in found if f.check == "site.toml"]
    assert [f.mark for f in lines] == ["fault"] * 3
    assert all(f.advice.endswith("site.toml") for f in lines)
    told = " ".join(f.found for f in lines)
    assert all(f"policy.{key} must be" in told for key in wrong)
    assert "hunter2" not in repr(found)  # a secret may stand under a key that nobody knows
    by = {f.check: f for f in found}
    assert by["policy"].mark == "not checked"
    assert by["admission"].mark == by["data"].mark == "ok"


def test_data_that_is_not_mapped_is_told_from_data_that_is_mapped_wrongly(
    whole: Make, look: Look
) -> None:
    found = look(whole(data={}), "data")["data"]
    assert (found.mark, found.found) == ("warning", "no data set is mapped, so no job can be taken")
    wrong = look(whole(data={"notes": {"path": 3}}), "data")["data"]
    assert (wrong.mark, wrong.advice) == ("not checked", "correct site.toml first")


@pytest.mark.parametrize("content", [b"", b"\xff", b"= 1", b"[[[[", None])
def test_settings_that_cannot_be_read_hide_nothing_else(
    whole: Make, look: Look, content: bytes | None
) -> None:
    home = whole()
    (home / "site.toml").unlink()
    if content is not None:
        (home / "site.toml").write_bytes(content)
    found = look(home)
    assert found["site.toml"].mark == "fault"
    assert {"key", "certificate", "certificate chain", "database"} <= marked(found, "ok")
    assert set(LINES) <= marked(found, "not checked")


def test_another_sites_settings_are_named(whole: Make, look: Look) -> None:
    home = whole()
    settings(home, lambda toml: toml.update(site="B"))
    found = look(home, "site.toml")["site.toml"]
    assert (found.mark, found.found) == ("fault", "it is for site 'B', not A")


@pytest.mark.parametrize("gone", ["pki", "pki/root.pem", "pki/site.pem", "pki/site.key"])
def test_what_is_missing_is_named_and_hides_no_more_than_it_must(
    whole: Make, look: Look, gone: str
) -> None:
    home = whole()
    shutil.rmtree(home / gone) if gone == "pki" else (home / gone).unlink()
    found = look(home)
    names = {"pki/root.pem": "root", "pki/site.pem": "certificate", "pki/site.key": "key"}
    missing = {names[gone]} if gone in names else set(names.values())
    assert marked(found, "fault") - PLACE == missing
    assert found["database"].mark == found["data"].mark == "ok"


def test_a_site_that_is_not_set_up_is_told_how(tmp_path: Path) -> None:
    patient = Patient(tmp_path / "none", "A", "fl-client --site A")
    first = doctor(patient).findings[0]
    assert (first.check, first.mark, first.advice) == ("home", "fault", "fl-client --site A init")
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").write_text("")
    assert "is no folder" in doctor(patient).findings[0].found


def test_the_command_ends_with_1_for_a_fault_and_0_without(whole: Make, capsys: Capture) -> None:
    home = whole()
    command = ["--site", "A", "--home", str(home), "doctor", "--offline"]
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["program"], told["home"], told["faults"]) == ("fl-client", str(home), 0)
    (home / "pki" / "site.key").chmod(0o644)
    assert cli.main(command) == 1
    out = capsys.readouterr().out.splitlines()
    line = next(line for line in out if line.split()[1:2] == ["key"])
    assert line.startswith("fault")
    assert "pki/site.key has mode 0644" in line
    assert "; next: chmod 600" in line
    assert out[-1].startswith("1 fault, ")


@pytest.mark.slow
def test_an_installed_site_is_well_from_its_first_line_to_its_last(
    whole: Make, tmp_path: Path
) -> None:
    home, site = whole(), tmp_path / "site-packages"
    install(site)
    code = "import sys; from client.cli import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--site", "A", "--home", str(home), "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert {f["check"] for f in findings if f["mark"] != "ok"} <= PLACE
    assert done.returncode == 0
    assert {"program files", "package names", "libraries", "device", "memory", "base model"} <= {
        f["check"] for f in findings
    }


def install(site: Path) -> None:
    """Our packages as a wheel's installer leaves them: files, and RECORD with their hashes."""
    for package in PACKAGES:
        kept = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE / package, site / package, ignore=kept)
    found = metadata.distribution("veiltune")  # of a wheel, or of a checkout
    told = found.read_text("METADATA") or found.read_text("PKG-INFO")
    rows = [
        f"{path.relative_to(site).as_posix()},sha256={urlsafe(path)},"
        for path in sorted(site.rglob("*"))
        if path.is_file()
    ]
    info = site / "veiltune-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(told or "")
    (info / "RECORD").write_text("\n".join(rows) + "\n")


def urlsafe(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor"],
        ["--site", "A", "doctor", "--job", "/none.toml"],
        ["--site", "../A", "doctor"],
    ],
)
def test_misuse_is_2(arguments: list[str], capsys: Capture) -> None:
    assert cli.main(arguments) == 2
    assert "must be" in capsys.readouterr().err
