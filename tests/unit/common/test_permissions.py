import os
import time
from pathlib import Path

import pytest

from common import permissions
from common.diagnosis import Finding

IS_ROOT = os.geteuid() == 0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "a home"
    (made / "pki").mkdir(parents=True, mode=0o700)
    made.chmod(0o700)
    (made / "pki" / "site.key").touch(0o600)
    (made / "site.toml").touch(0o644)
    return made


def only(lines: list[Finding]) -> Finding:
    (found,) = lines
    return found


@pytest.mark.parametrize(
    ("mode", "mark", "private_mark"),
    [
        (0o700, "ok", "ok"),
        (0o750, "warning", "fault"),
        (0o701, "warning", "fault"),
        (0o720, "fault", "fault"),
        (0o702, "fault", "fault"),
    ],
)
def test_a_home_that_others_can_enter_is_named(
    home: Path, mode: int, mark: str, private_mark: str
) -> None:
    home.chmod(mode)
    found = only(list(permissions.folder(home)))
    assert (found.check, found.mark) == ("home", mark)
    assert f"mode {mode:04o}" in found.found
    assert found.advice == ("" if mark == "ok" else f"chmod 700 '{home}'")
    assert only(list(permissions.folder(home, is_private=True))).mark == private_mark


def test_a_home_that_is_a_file_is_named(home: Path) -> None:
    assert "no folder" in only(list(permissions.folder(home / "site.toml"))).found


@pytest.mark.skipif(not IS_ROOT, reason="only root gives files away")
def test_another_owner_is_named(home: Path) -> None:
    os.chown(home / "pki" / "site.key", 12345, -1)
    found = permissions.key_fault("key", home / "pki" / "site.key", "make it")
    assert found is not None
    assert "belongs to uid 12345" in found.found
    assert found.advice == "run this as uid 12345"
    os.chown(home, 12345, -1)
    assert only(list(permissions.folder(home))).advice == "run this as uid 12345"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o610])
def test_a_key_that_others_can_read_is_named(home: Path, mode: int) -> None:
    key = home / "pki" / "site.key"
    assert permissions.key_fault("key", key, "make it") is None
    key.chmod(mode)
    found = permissions.key_fault("key", key, "make it")
    assert found is not None
    assert (found.check, found.mark) == ("key", "fault")
    assert found.found == f"pki/site.key has mode {mode:04o}: others may have read it"
    assert found.advice.startswith(f"chmod 600 '{key}'")


def test_a_key_that_is_missing_is_named(home: Path) -> None:
    found = permissions.key_fault("key", home / "pki" / "other.key", "make it")
    assert found is not None
    assert (found.found, found.advice) == ("pki/other.key is missing", "make it")


def test_a_file_that_others_can_change_is_named(home: Path) -> None:
    files = [home / "site.toml", home / "account.db"]
    assert only(list(permissions.others(home, files))).mark == "ok"
    (home / "site.toml").chmod(0o664)
    found = only(list(permissions.others(home, files)))
    assert (found.check, found.mark) == ("permissions", "fault")
    assert "site.toml (0664)" in found.found
    assert found.advice == f"chmod go-w '{home / 'site.toml'}'"


@pytest.mark.parametrize(
    ("ahead_s", "mark", "words"),
    [
        (-10**6, "ok", "no file"),
        (30, "ok", "no file"),
        (600, "fault", "10 minutes ahead"),
        (10 * 3600, "fault", "10 hours ahead"),
        (10 * 86400, "fault", "10 days ahead"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["site.toml", "pki/site.key"])
def test_a_file_of_the_future_tells_of_two_clocks(
    home: Path, name: str, ahead_s: int, mark: str, words: str
) -> None:
    moment = time.time() + ahead_s + 1
    os.utime(home / name, (moment, moment))
    found = only(list(permissions.dates(home)))
    assert (found.check, found.mark) == ("clock and files", mark)
    assert words in found.found
    if mark == "fault":
        assert name in found.found
        assert "set the clock" in found.advice
