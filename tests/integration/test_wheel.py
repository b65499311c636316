"""Veiltune as a wheel in an environment of its own, with no checkout anywhere near.

Its dependencies are those of the Python that runs the tests, by a ``.pth``: nothing is downloaded.
The oracle of what must be in the wheel is the list of files that git tracks.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import TinyBase

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("client", "common", "server", "simulations")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and an empty folder to work in."""

    wheel: Path
    venv: Path
    folder: Path

    def run(self, program: str, *arguments: str, status: int = 0) -> str:
        """What it printed. No variable of ours leads back to the checkout."""
        kept = ("PATH", "LANG", "TMPDIR")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {"HOME": str(self.folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [str(self.venv / "bin" / program), *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == status, done.stderr
        return done.stdout


def tracked() -> list[str]:
    """The packages' files that git knows, as paths from the root."""
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return [name for name in found.stdout.decode().split("\0") if name]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    source = tmp_path_factory.mktemp("source")
    for name in (*tracked(), "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    made = tmp_path_factory.mktemp("made")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(made), str(source)], check=True
    )
    shutil.rmtree(source)
    (wheel,) = made.glob("*.whl")
    venv = made / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    subprocess.run(
        [*pip, "--python", python, "install", *offline, str(wheel)], check=True, cwd=made
    )
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    (Path(place.stdout.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return Installed(wheel, venv, tmp_path_factory.mktemp("empty"))


def test_the_wheel_holds_every_file_of_the_packages(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set(tracked())
    assert {"common/link/federation.proto", "common/documents/style.css"} <= held
    assert "simulations/scenarios/hospital.toml" in held


def test_what_runs_is_what_was_installed(installed: Installed) -> None:
    asked = "import common, client, server, simulations as s; print(common.__file__, s.__file__)"
    for place in installed.run("python", "-c", asked).split():
        assert Path(place).is_relative_to(installed.venv)


@pytest.mark.parametrize("name", ["fl-server", "fl-client", "fl-audit"])
def test_every_program_answers(installed: Installed, name: str) -> None:
    assert installed.run(name, "--help").startswith(f"Usage: {name}")
    assert installed.run(name, "--version").split()[0] == name


def test_an_auditor_needs_nothing_else(installed: Installed) -> None:
    figures = ("--sampling-rate", "0.04", "--noise-multiplier", "0.594", "--steps", "54")
    found = json.loads(installed.run("fl-audit", "epsilon", *figures, "--delta", "1e-5", "--json"))
    assert found["pld"] == pytest.approx(8.0, abs=0.02)


def test_homes_are_made_and_a_site_is_enrolled(installed: Installed) -> None:
    installed.run("fl-server", "init", "--host", "127.0.0.1")
    installed.run("fl-client", "--site", "A", "init")
    installed.run("fl-server", "enroll", ".veiltune/sites/A/A.csr", "--out", "A.bundle")
    assert "settings" in installed.run("fl-client", "--site", "A", "install", "A.bundle")
    assert installed.run("fl-server", "backup", "server.backup").startswith("server backed up")


def test_a_whole_job_runs_on_built_in_data(installed: Installed, tiny_base: "TinyBase") -> None:
    values = {
        "model.base": str(tiny_base.folder),
        "model.sha256": tiny_base.sha256,
        "model.max_length": "48",
        "adapter.targets": '["query"]',
        "evaluation.records": "40",
    }
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    said = installed.run(
        "python",
        "-m",
        "simulations.simulate",
        "--rounds",
        "1",
        "--local-steps",
        "1",
        "--sites",
        "2",
        *settings,
    )
    assert "report   veiltune-out/report.html" in said
    out = installed.folder / "veiltune-out"
    assert {path.name for path in out.iterdir()} >= {"adapter", "report.html", "result.json"}
    style = (ROOT / "common/documents/style.css").read_text()
    assert style.strip().splitlines()[0] in (out / "report.html").read_text()
    assert "FAIL" not in installed.run("fl-audit", "result", "veiltune-out")
