"""A server's disk that reports errors: a round is closed whole or not at all, said in one line."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.job import Job, sign_job
from tests.faults import checkpoint_driver as driver

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


@pytest.fixture
def place(tmp_path: Path, job: Callable[..., Job], operator: Ed25519PrivateKey) -> Path:
    """State with one job whose round 1 is closed."""
    store = driver.open_state(tmp_path)
    store.add_job(sign_job(job(), operator))
    driver.save(store, 1)
    store.close()
    return tmp_path


@pytest.mark.parametrize(
    ("call", "visit"),
    [("fsync,fdatasync", "1"), ("fsync,fdatasync", "2+"), ("pwrite64", "3"), ("unlink", "1")],
)
def test_an_error_of_the_server_s_disk_leaves_a_round_whole_or_undone(
    place: Path, call: str, visit: str
) -> None:
    inject = f"inject={call}:error=EIO:when={visit}"
    command = ["strace", "-f", "-o", "/dev/null", "-e", inject, sys.executable, driver.__file__]
    done = subprocess.run(
        [*command, str(place)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    store = driver.open_state(place)
    (row,) = store.jobs()
    kept = [record.round for record in store.rounds(row.sha256)]
    assert kept in ([1], [1, 2])
    assert store.latest(row.sha256) == (kept[-1], driver.vector(kept[-1]))
    assert store.receipts(row.sha256) == [r for n in kept for r in driver.receipts(n)]
    assert done.returncode or call == "unlink"
    if done.returncode:
        (line,) = done.stderr.splitlines()
        assert line.startswith("storage failed: checkpoint must be written to ")
        assert "disk I/O error" in line
    else:
        assert kept == [1, 2]
    driver.save(store, 2)  # asked again, it is read back or done
    assert [record.round for record in store.rounds(row.sha256)] == [1, 2]
    store.close()
