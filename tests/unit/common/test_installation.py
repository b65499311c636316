"""Distributions built by hand on ``sys.path``; RECORD's hashes come from ``wheel``'s own rule.

https://packaging.python.org/en/latest/specifications/binary-distribution-format/: sha256,
urlsafe base64 without padding.
"""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import common
from common import installation
from common.diagnosis import Finding, examine

SOURCE = Path(common.__file__).resolve().parents[1]
LIBRARIES = "Requires-Dist: cryptography>=50,<51\nRequires-Dist: nowhere-at-all; extra == 'dev'\n"


def dist_info(folder: Path, name: str, files: list[Path], told: str = "", **texts: str) -> Path:
    """The metadata of an installed distribution: what an installer writes."""
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n{told}")
    for file, text in texts.items():
        (info / file.replace("_json", ".json")).write_text(text)
    rows = [f"{path.relative_to(folder).as_posix()},{record_hash(path)},1" for path in files]
    (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/RECORD,,"]) + "\n")
    return info


def record_hash(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Veiltune as a wheel installs it, in a folder of its own that comes first."""
    return install(tmp_path / "site", monkeypatch)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, told: str = LIBRARIES) -> Path:
    for package in installation.PACKAGES:
        shutil.copytree(
            SOURCE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    dist_info(folder, "veiltune", [p for p in sorted(folder.rglob("*")) if p.is_file()], told)
    monkeypatch.syspath_prepend(str(folder))
    # As if its own modules ran: what runs here is the checkout's.
    monkeypatch.setattr(common, "__file__", str(folder / "common" / "__init__.py"))
    return folder


def line(check: str) -> Finding:
    found = [f for f in examine(installation.checks()) if f.check == check]
    assert len(found) == 1
    return found[0]


def test_files_as_they_were_installed_are_well(installed: Path) -> None:
    found = line("program files")
    assert found.mark == "ok"
    count = sum(
        1 for path in installed.rglob("*") if path.is_file() and "dist-info" not in str(path)
    )
    assert f"{count} files as they were installed" in found.found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text(path.read_text() + "#\n"), "common/keys.py was changed"),
        (lambda path: path.unlink(), "common/keys.py is missing"),
        (lambda path: path.with_name("more.py").write_text(""), "common/more.py was added"),
    ],
)
def test_a_file_that_differs_from_record_is_named(
    installed: Path, change: Callable[[Path], object], words: str
) -> None:
    change(installed / "common" / "keys.py")
    found = line("program files")
    assert (found.mark, found.found) == ("fault", words)
    assert "install it anew" in found.advice
    assert line("package names").mark == "ok"


def test_many_changed_files_are_counted(installed: Path) -> None:
    for path in (installed / "server").glob("*.py"):
        path.write_text("")
    count = len(list((SOURCE / "server").glob("*.py")))
    assert line("program files").found.endswith(f", and {count - 3} more")


def test_code_that_runs_from_elsewhere_is_named(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "__file__", str(SOURCE / "common" / "__init__.py"))
    found = line("program files")
    assert found.mark == "fault"
    assert found.found == f"what runs is in {SOURCE}, while {installed} is installed"
    assert "PYTHONPATH" in found.advice


def test_an_editable_install_says_that_nothing_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.dumps({"url": SOURCE.as_uri(), "dir_info": {"editable": True}})
    dist_info(tmp_path / "site", "veiltune", [], LIBRARIES, direct_url_json=told)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = line("program files")
    assert found.mark == "not checked"
    assert f"an editable install of {SOURCE}" in found.found
    assert "install a wheel" in found.advice


def test_a_distribution_whose_metadata_is_broken_is_another_one(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / "common").mkdir(parents=True)
    (other / "common" / "__init__.py").write_text("")
    dist_info(other, "nameless", [other / "common" / "__init__.py"])
    (metadata_file,) = other.glob("*.dist-info/METADATA")
    metadata_file.write_text("")
    monkeypatch.syspath_prepend(str(other))
    assert line("package names").found == "another distribution has common/ of one without a name"


def test_another_distribution_of_our_names_is_named(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / "common").mkdir(parents=True)
    (other / "common" / "__init__.py").write_text("")
    dist_info(other, "helpful-tools", [other / "common" / "__init__.py"])
    monkeypatch.syspath_prepend(str(other))
    found = line("package names")
    assert found.mark == "fault"
    assert found.found == "another distribution has common/ of helpful-tools"
    assert "uninstall" in found.advice
    assert line("program files").mark == "ok"


def test_libraries_within_their_ranges_are_well(installed: Path) -> None:
    found = line("libraries")
    assert found.mark == "ok"
    assert "1 within their ranges" in found.found
    assert f"cryptography {metadata.version('cryptography')}" in found.found


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("Requires-Dist: grpcio>=1.81,<1.82; python_version > '3'\n", "grpcio"),
        ("Requires-Dist: grpcio<0.1\n", f"grpcio {metadata.version('grpcio')} (needs <0.1)"),
        ("Requires-Dist: not-on-this-machine>=2\n", "not-on-this-machine is missing (needs >=2)"),
        ("Requires-Python: <3.5\n", "Python 3."),
    ],
)
def test_a_library_outside_its_range_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, words: str
) -> None:
    install(tmp_path / "site", monkeypatch, LIBRARIES + told)
    found = line("libraries")
    assert found.mark == "fault"
    assert words in found.found
    assert "cryptography" not in found.found
    assert "ranges" in found.advice


def test_without_an_installation_every_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "DISTRIBUTION", "no-such-distribution")
    found = {f.check: f.mark for f in examine(installation.checks())}
    assert found["program files"] == found["libraries"] == "fault"
