"""Bases whose files change after a site or a job has named them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import load_home
from client.doctor import Patient, checks
from client.modelcheck import present
from common.diagnosis import Finding, examine
from common.job import SignedJob
from common.model import folder_hash

Make = Callable[..., Path]
Manifest = Callable[..., SignedJob]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base's files, by name if not by content."""
    made = tmp_path / "base"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def models(home: Path) -> list[Finding]:
    patient = Patient(home, "A", "fl-client --site A")
    found = examine(check for check in checks(patient) if check.name == "base model")
    return [f for f in found if "builtin" not in f.found]


def test_a_base_whose_files_changed_is_named(whole: Make, folder: Path) -> None:
    allowed = folder_hash(folder)
    policy = {"allowed_signers": ["ab" * 32], "allowed_bases": [allowed]}
    home = whole(models={"north/base": str(folder)}, policy=policy)
    (found,) = models(home)
    assert (found.mark, found.found) == ("ok", f"north/base, sha256 {allowed[:16]}")
    (folder / "model.safetensors").write_bytes(b"other weights")
    changed, gone = models(home)
    assert changed.mark == gone.mark == "warning"
    assert "not among policy.allowed_bases: its files changed" in changed.found
    assert "put its files back" in changed.advice
    assert f"no base here has the allowed sha256 {allowed[:16]}" in gone.found
    (folder / "config.json").unlink()
    broken, _ = models(home)
    assert broken.mark == "fault"
    assert "[models]" in broken.advice


def test_a_job_whose_base_changed_is_named(whole: Make, folder: Path, manifest: Manifest) -> None:
    sha256, signed = folder_hash(folder), manifest()
    model = signed.job.model.model_copy(update={"base": str(folder), "sha256": sha256})
    job = signed.job.model_copy(update={"model": model})
    home = whole()
    (home / "offers").mkdir()
    waiting = signed.model_copy(update={"job": job})
    (home / "offers" / f"{job.sha256}.json").write_bytes(waiting.to_bytes())
    (found,) = models(home)
    assert (found.mark, found.found) == ("ok", f"{folder} is the one that job wards pins")
    (folder / "model.safetensors").write_bytes(b"other weights")
    (found,) = models(home)
    assert found.mark == "fault"
    assert f"job wards pins {sha256[:16]}" in found.found
    assert "put the files" in found.advice


def test_the_weights_of_a_base_are_what_a_job_needs_at_the_least(whole: Make, folder: Path) -> None:
    home = load_home(whole(models={"north/base": str(folder)}), "A")
    (base,) = (one for one in present(home)[0] if one.name == "north/base")
    assert base.weights_bytes == len(b"weights")
    assert dataclasses.replace(base, name="x").folder == folder
