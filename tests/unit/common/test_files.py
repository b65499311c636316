"""Files are whole or absent, private where they must be, and failures come in words."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InvalidInput, StorageFailed
from common.files import (
    exists,
    locked,
    make_folder,
    make_private,
    read_file,
    read_private,
    write_file,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_mode_is_the_one_asked_for_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "private", b"k")
        write_file(tmp_path / "public", b"c", mode=0o644)
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "private"), mode_of(tmp_path / "public")) == (0o600, 0o644)


@settings(max_examples=25)
@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_a_file_holds_what_was_written_last(first: bytes, second: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"veiltune-test-{os.getpid()}"
    try:
        write_file(path, first)
        write_file(path, second)
        assert path.read_bytes() == second
        assert read_file(path, max_bytes=len(second)) == second
        if second:
            with pytest.raises(InvalidInput, match=f"at most {len(second) - 1} bytes"):
                read_file(path, max_bytes=len(second) - 1)
    finally:
        path.unlink()


def test_a_taken_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    write_file(path, b"first", overwrite=False)
    with pytest.raises(InvalidInput, match="must not exist yet"):
        write_file(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["site.key"]


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    # The kernel's own refusal: a limit on file size, in a process of its own.
    path = tmp_path / "roster.json"
    path.write_bytes(b"before")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_file(path, b"x" * 5000)
        except StorageFailed:
            os._exit(7)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["roster.json"]


def test_no_space_left_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel answers every write to /dev/full with ENOSPC; the file goes aside onto it.
    real_open = os.open

    def open_full(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL:
            return real_open("/dev/full", os.O_WRONLY)
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", open_full)
    monkeypatch.setattr(os, "fchmod", lambda file, mode: None)  # the device keeps its mode
    with pytest.raises(StorageFailed, match="but the disk is full"):
        write_file(tmp_path / "roster.json", b"data")


def test_a_missing_folder_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="the folder is missing"):
        write_file(tmp_path / "no" / "x", b"")
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match="no folder"):
        write_file(tmp_path / "file" / "x", b"")
    with pytest.raises(StorageFailed):
        make_folder(tmp_path / "file")


def test_made_folders_are_private_all_the_way(tmp_path: Path) -> None:
    make_folder(tmp_path / "home" / "sites" / "A")
    assert {mode_of(p) for p in (tmp_path / "home").rglob("*")} == {0o700}
    assert mode_of(tmp_path / "home") == 0o700
    make_folder(tmp_path / "home")
    assert exists(tmp_path / "home")
    assert not exists(tmp_path / "away")


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "loop"):
        with pytest.raises(InvalidInput):
            read_file(path, max_bytes=10)
    for path in (tmp_path / "none", tmp_path / "a\x00b", tmp_path / ("x" * 300)):
        with pytest.raises(InvalidInput, match="must be a readable file"):
            read_file(path, max_bytes=10)


def test_a_file_made_private_is_empty_and_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        make_private(tmp_path / "account.db")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "account.db") == 0o600
    assert (tmp_path / "account.db").read_bytes() == b""


def test_a_file_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "account.db"
    write_file(path, b"kept", mode=0o640)
    make_private(path)
    assert (path.read_bytes(), mode_of(path)) == (b"kept", 0o640)


def test_a_file_that_cannot_be_made_private_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="the folder is missing"):
        make_private(tmp_path / "nowhere" / "account.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_owner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    write_file(path, b"k")
    os.chown(path, 12345, -1)
    with pytest.raises(InvalidInput, match="must belong to the user who runs this"):
        read_private(path, max_bytes=10)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    contents = [bytes([65 + i]) * (200_000 + i) for i in range(6)]
    write_file(path, contents[0])

    def rewrite() -> None:
        for _ in range(5):
            for content in contents:
                write_file(path, content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    while writer.is_alive():
        assert read_file(path, max_bytes=300_000) in contents
    writer.join()
    assert os.listdir(tmp_path) == ["roster.json"]


def test_a_lock_is_held_against_other_processes(tmp_path: Path) -> None:
    path, log = tmp_path / "lock", tmp_path / "log"
    script = (
        "import pathlib, sys; from common.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): pathlib.Path(sys.argv[2]).touch()"
    )
    with locked(path):
        child = subprocess.Popen([sys.executable, "-c", script, str(path), str(log)])
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        assert not log.exists()
    assert child.wait(timeout=20) == 0
    assert log.exists()
