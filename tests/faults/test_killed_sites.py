"""kill -9 of a site in the middle of a round: it is waited for, and no release is made twice."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.failpoints import VARIABLE
from common.job import Job

if TYPE_CHECKING:
    from tests.faults.conftest import Hospitals, Release

ROUNDS, STEPS = 6, 12


def is_reserved(latest: "Release") -> bool:
    return latest.round in (2, 3) and not latest.payload_sha256


def is_stored(latest: "Release") -> bool:
    return latest.round in (4, 5) and bool(latest.payload_sha256) and not latest.is_acknowledged


def kill_twice(hospitals: "Hospitals", job: Job) -> tuple[Path, "Release"]:
    """While A trains, and again when its bytes are made and no receipt has come for them."""
    sha256 = hospitals.queue(job)
    hospitals.catch("A", sha256, is_reserved)
    hospitals.kill("A")
    hospitals.start_site("A")
    stored = hospitals.catch("A", sha256, is_stored)
    hospitals.kill("A")
    hospitals.start_site("A")
    return hospitals.finish(sha256), stored


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False], ids=["private", "no-privacy"])
def test_a_site_killed_in_a_round_is_waited_for_and_releases_once(
    hospitals: "Hospitals",
    ward_job: Callable[..., Job],
    unkilled: Callable[[Job], Mapping[str, Any]],
    distance: Callable[[Path, Mapping[str, Any]], float],
    private: bool,
) -> None:
    job = ward_job(
        f"site-killed-{private}",
        "AB",
        private=private,
        training={"rounds": ROUNDS, "local_steps": STEPS},
    )
    outcome, stored = kill_twice(hospitals, job)

    receipts = hospitals.receipts(job.sha256)
    assert len(receipts) == 2 * ROUNDS
    for site in "AB":
        account = hospitals.account(site, job.sha256)
        # One charge a round, and the bytes charged for are the bytes used.
        assert [row.round for row in account] == list(range(1, ROUNDS + 1))
        assert {row.steps for row in account} == {STEPS}
        for row in account:
            assert row.payload_sha256 == receipts[row.round, site]
    # What was made before the kill is what the server has: nothing was trained anew.
    assert receipts[stored.round, "A"] == stored.payload_sha256
    if not private:
        assert distance(outcome, unkilled(job)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint",
    [
        "ledger.reserve.after-commit:2",
        "ledger.store.after-commit:2",
        "site.reply-made:3",  # that of round 2, after the offer's and that of round 1
        "site.reply-queued:3",
        "ledger.acknowledge.after-commit:2",
    ],
)
def test_a_site_killed_between_charge_bytes_reply_and_receipt_releases_once(
    hospitals: "Hospitals",
    ward_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    failpoint: str,
) -> None:
    name = failpoint.partition(":")[0].replace(".", "-")
    job = ward_job(f"killed-at-{name}", "AB", training={"rounds": 4, "local_steps": 2})
    hospitals.terminate("A")
    monkeypatch.setenv(VARIABLE, failpoint)
    hospitals.start_site("A")
    monkeypatch.delenv(VARIABLE)
    sha256 = hospitals.queue(job)
    process = hospitals.processes["A"]
    hospitals.wait_for("A's end", lambda: process.poll() is not None)
    assert process.returncode == -9
    left = {row.round: row.payload_sha256 for row in hospitals.account("A", sha256)}
    hospitals.start_site("A")
    hospitals.finish(sha256)
    receipts, account = hospitals.receipts(sha256), hospitals.account("A", sha256)
    assert [(row.round, row.steps) for row in account] == [(n, 2) for n in (1, 2, 3, 4)]
    for row in account:
        assert row.payload_sha256 == receipts[row.round, "A"]
        assert left.get(row.round, "") in ("", row.payload_sha256)
