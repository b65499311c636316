"""Closed forms on a made-up cgroup tree, and the machine's own figures."""

from pathlib import Path

import psutil

from common.privacy.memory import _cgroup_bytes, free_bytes, rows_within_memory


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)


def test_the_tightest_limit_above_the_process_counts(tmp_path: Path) -> None:
    membership, mount = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("0::/job/step\n")
    write(mount / "job", max="9000", current="2500", stat="anon 7\ninactive_file 300\n")
    write(mount / "job" / "step", max="max", current="100")
    assert _cgroup_bytes(membership, mount) == 9000 - 2500 + 300


def test_a_first_version_tree_is_read_too(tmp_path: Path) -> None:
    membership, mount = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text("5:cpuset:/a\n4:memory:/a\n")
    write(mount / "memory" / "a", limit_in_bytes="700", usage_in_bytes="250")
    assert _cgroup_bytes(membership, mount) == 450


def test_no_limit_is_none(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    assert _cgroup_bytes(membership, tmp_path) is None
    membership.write_text("0::/\n")
    assert _cgroup_bytes(membership, tmp_path) is None


def test_rows_fill_the_share_and_are_never_none() -> None:
    size, share = 30_011, 0.125
    rows = rows_within_memory(size, "cpu", share=share, itemsize=8)
    free = free_bytes("cpu")
    assert 0 < free <= psutil.virtual_memory().total
    assert abs(rows * size * 8 / share - free) < 0.2 * free  # others use the machine meanwhile
    assert rows_within_memory(10**15, "cpu") == 1
