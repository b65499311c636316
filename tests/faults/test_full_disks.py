"""A disk that is full: what cannot be made durable is not done, and is said in one sentence."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common.job import Job

if TYPE_CHECKING:
    from tests.faults.conftest import Hospitals


@pytest.fixture
def small_disks(hospitals: "Hospitals") -> "Hospitals":
    if not hospitals.has_small_disks:
        pytest.skip("needs root, to mount a small tmpfs")
    return hospitals


def _write_on(handle: int, block: bytes) -> None:
    while True:
        os.write(handle, block)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave not a byte on the disk of ``folder``."""
    filler = folder / "filler"
    handle = os.open(filler, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for size in (65536, 512):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                _write_on(handle, bytes(size))
        yield
    finally:
        os.close(handle)
        filler.unlink()


@pytest.mark.slow
def test_the_server_s_disk_is_full_while_it_checkpoints(
    small_disks: "Hospitals", ward_job: Callable[..., Job]
) -> None:
    job = ward_job("full-server", "AB", training={"rounds": 500, "local_steps": 1})
    sha256 = small_disks.queue(job)
    small_disks.wait_for("rounds", lambda: small_disks.closed(sha256) >= 2)
    begun = small_disks.log_size("server")
    with full(small_disks.server_home):
        small_disks.wait_for("the end", lambda: "job ended" in small_disks.log("server", begun))
        shown = small_disks.show(sha256)  # the daemon lives, and what it had can be read
        assert len(shown["closed"]) >= 3
        receipts = small_disks.receipts(sha256)
        assert shown["state"] == "failed"
        assert "database or disk is full" in shown["reason"]
        assert "\n" not in shown["reason"]
    assert "Traceback" not in small_disks.log("server", begun)
    for site in "AB":  # nothing that was used is uncharged
        charged = {row.round: row.payload_sha256 for row in small_disks.account(site, sha256)}
        used = {r: digest for (r, name), digest in receipts.items() if name == site}
        assert used.items() <= charged.items()
    small_disks.finish(small_disks.queue(ward_job("after-full", "AB", training={"rounds": 1})))
    state, reason = small_disks.state(sha256)  # and it was written down when there was room
    assert (state, reason) == ("failed", shown["reason"])


@pytest.mark.slow
def test_a_site_s_disk_is_full_while_it_takes_part(
    small_disks: "Hospitals", ward_job: Callable[..., Job]
) -> None:
    job = ward_job(
        "full-site", "ABC", training={"rounds": 400, "local_steps": 1, "quorum": 2}, private=False
    )
    sha256 = small_disks.queue(job)

    def latest() -> int:
        return max([r for r, site in small_disks.receipts(sha256) if site == "C"], default=0)

    small_disks.wait_for("C's updates", lambda: latest() >= 2)
    begun = small_disks.log_size("C")
    with full(small_disks.site_home("C")):
        small_disks.wait_for("trouble", lambda: "account must be" in small_disks.log("C", begun))
        last, closed = latest(), small_disks.closed(sha256)
        small_disks.wait_for("rounds without C", lambda: small_disks.closed(sha256) >= closed + 3)
        assert latest() == last
        charged = {row.round: row.payload_sha256 for row in small_disks.account("C", sha256)}
        used = {r: d for (r, site), d in small_disks.receipts(sha256).items() if site == "C"}
        assert used.items() <= charged.items()
        assert "site is in trouble" in small_disks.log("server")  # no more than that
        assert "account must be" not in small_disks.log("server")
    small_disks.wait_for("C's updates again", lambda: latest() > last)
