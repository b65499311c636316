"""Magic numbers against coreutils' ``stat -f``, which has its own table of them."""

import os
import subprocess
from pathlib import Path

import pytest

from common import volume


@pytest.mark.parametrize("place", ["/proc", "/sys", "/dev/shm", "."])
def test_the_magic_is_the_kernels(place: str) -> None:
    if not Path(place).exists():
        pytest.skip(f"no {place} here")
    told = subprocess.run(["stat", "-f", "-c", "%t", place], capture_output=True, check=True)
    assert volume.magic(Path(place)) == int(told.stdout, 16)


def test_a_folder_that_is_missing_has_no_magic(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        volume.magic(tmp_path / "none")


# From include/uapi/linux/magic.h and fs/smb.
@pytest.mark.parametrize(
    ("magic", "mark", "words"),
    [
        (0x6969, "fault", "NFS"),
        (0xFF534D42, "fault", "CIFS"),
        (0xFE534D42, "fault", "SMB"),
        (0x00C36400, "fault", "Ceph"),
        (0x65735546, "warning", "FUSE"),
        (0x01021994, "warning", "tmpfs"),
        (0x794C7630, "warning", "overlay"),
        (0xEF53, "ok", "local"),
        (0x58465342, "ok", "local"),
        (None, "not checked", "does not say"),
    ],
)
def test_a_file_system_is_judged_by_its_magic(magic: int | None, mark: str, words: str) -> None:
    found = volume.file_system(magic)
    assert (found.check, found.mark) == ("file system", mark)
    assert words in found.found
    assert bool(found.advice) == (mark != "ok")


GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize(
    ("free", "mark"),
    [(99 * MIB, "fault"), (100 * MIB, "warning"), (GIB - 4096, "warning"), (GIB, "ok")],
)
def test_little_space_is_named(monkeypatch: pytest.MonkeyPatch, free: int, mark: str) -> None:
    # statvfs(3): f_bavail counts fragments of f_frsize bytes that an ordinary user may take.
    table = os.statvfs_result((7, 4096, 10**9, 10**9, free // 4096, 0, 0, 0, 0, 255, 0))
    monkeypatch.setattr(os, "statvfs", lambda path: table)
    found = volume.space(Path())
    assert (found.check, found.mark) == ("disk space", mark)
    assert bool(found.advice) == (mark != "ok")


@pytest.mark.parametrize(
    ("total", "free", "mark"),
    [
        (0, 0, "ok"),
        (9, 0, "fault"),
        (10**6, 199, "fault"),
        (10**6, 9_999, "warning"),
        (10**6, 10_000, "ok"),
    ],
)
def test_few_inodes_are_named(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, mark: str
) -> None:
    table = os.statvfs_result((7, 4096, 9, 9, 9, total, 10**9, free, 0, 255, 0))
    monkeypatch.setattr(os, "statvfs", lambda path: table)
    found = volume.inodes(Path())
    assert (found.check, found.mark) == ("inodes", mark)
    assert not total or found.found == f"{free:,} free"


def test_what_df_says_is_what_is_shown(tmp_path: Path) -> None:
    told = subprocess.run(
        ["df", "-B1", "--output=avail,iavail", str(tmp_path)], capture_output=True, check=True
    )
    space, inodes = map(int, told.stdout.split()[-2:])
    shown = volume.space(tmp_path).found
    assert abs(float(shown.split()[0]) - space / GIB) < 0.2
    assert abs(int(volume.inodes(tmp_path).found.split()[0].replace(",", "")) - inodes) < 100_000
