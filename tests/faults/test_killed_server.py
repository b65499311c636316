"""kill -9 of the server: it takes the job up again after its last closed round."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.job import Job

if TYPE_CHECKING:
    from tests.faults.conftest import Hospitals, Release

ROUNDS, STEPS = 6, 8


def kill_between_rounds(hospitals: "Hospitals", sha256: str) -> None:
    hospitals.wait_for("some closed rounds", lambda: hospitals.closed(sha256) >= 2)
    hospitals.kill("server")


def kill_with_one_update(hospitals: "Hospitals", sha256: str) -> "Release":
    """When A's update of a round is in the server's memory, and B's does not come."""
    begun, closed = hospitals.log_size("server"), hospitals.closed(sha256)
    hospitals.start_server()
    hospitals.wait_for("another round", lambda: hospitals.closed(sha256) > closed)
    hospitals.freeze("B")

    def is_there() -> bool:
        latest = hospitals.account("A", sha256)[-1]
        log = hospitals.log("server", begun).splitlines()
        carried = [line for line in log if "site=A" in line and "bytes=" in line]
        return (
            latest.round == hospitals.closed(sha256) + 1
            and bool(latest.payload_sha256)
            and "reply in" in carried[-1]
        )

    hospitals.wait_for("one of two updates", is_there)
    held = hospitals.account("A", sha256)[-1]
    assert held.round < ROUNDS, "the job must be in its middle"
    hospitals.kill("server")
    hospitals.thaw("B")
    return held


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False], ids=["private", "no-privacy"])
def test_a_killed_server_resumes_with_the_receipts_and_the_bytes_it_had(
    hospitals: "Hospitals",
    ward_job: Callable[..., Job],
    unkilled: Callable[[Job], Mapping[str, Any]],
    distance: Callable[[Path, Mapping[str, Any]], float],
    private: bool,
) -> None:
    job = ward_job(
        f"server-killed-{private}",
        "AB",
        private=private,
        training={"rounds": ROUNDS, "local_steps": STEPS},
    )
    sha256 = hospitals.queue(job)
    kill_between_rounds(hospitals, sha256)
    first = hospitals.receipts(sha256)
    held = kill_with_one_update(hospitals, sha256)
    second = hospitals.receipts(sha256)
    hospitals.start_server()
    outcome = hospitals.finish(sha256)

    receipts = hospitals.receipts(sha256)
    assert len(receipts) == 2 * ROUNDS
    assert len(first) >= 4
    assert first.items() <= second.items() <= receipts.items()
    # The update that died with the server came again, byte for byte.
    assert (held.round, "A") not in second
    assert receipts[held.round, "A"] == held.payload_sha256
    for site in "AB":
        account = hospitals.account(site, sha256)
        assert [(row.round, row.steps) for row in account] == [
            (round_, STEPS) for round_ in range(1, ROUNDS + 1)
        ]
        assert all(row.payload_sha256 == receipts[row.round, site] for row in account)
    if not private:
        assert distance(outcome, unkilled(job)) <= 1e-6


@pytest.mark.slow
def test_a_server_killed_after_the_last_round_leaves_a_whole_outcome(
    hospitals: "Hospitals", ward_job: Callable[..., Job]
) -> None:
    job = ward_job("server-killed-at-the-end", "AB", training={"rounds": 1})
    sha256 = hospitals.queue(job)
    hospitals.wait_for("the last round", lambda: hospitals.closed(sha256) == 1)
    hospitals.kill("server")
    receipts = hospitals.receipts(sha256)
    hospitals.start_server()
    outcome = hospitals.finish(sha256)
    result = json.loads((outcome / "result.json").read_text())
    weights = (outcome / "adapter" / "adapter_model.safetensors").read_bytes()
    assert result["adapter_sha256"] == hashlib.sha256(weights).hexdigest()
    assert {site["name"]: site["steps"] for site in result["sites"]} == {"A": 2, "B": 2}
    assert hospitals.receipts(sha256) == receipts
