"""Sites that are away, turned away or doubled, and processes that are asked to stop."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.job import Job

if TYPE_CHECKING:
    from tests.faults.conftest import Hospitals

DEADLINE_S = 3.0
STEPS = 3


@pytest.fixture
def long_job(ward_job: Callable[..., Job]) -> Callable[[str], Job]:
    """More rounds than a test waits for, from A, B and C, of whom two are enough."""

    def make(name: str, rounds: int = 200) -> Job:
        return ward_job(
            name,
            "ABC",
            private=False,
            training={
                "rounds": rounds,
                "local_steps": STEPS,
                "quorum": 2,
                "deadline_s": DEADLINE_S,
            },
        )

    return make


def rounds_of(hospitals: "Hospitals", sha256: str, site: str) -> list[int]:
    return [round_ for round_, name in hospitals.receipts(sha256) if name == site]


def spent(shown: dict[str, Any], site: str) -> int:
    return int(next(row["steps"] for row in shown["spent"] if row["name"] == site))


@pytest.mark.slow
def test_a_round_waits_for_an_absent_site_until_its_deadline_and_the_site_rejoins(
    hospitals: "Hospitals", long_job: Callable[[str], Job]
) -> None:
    job = long_job("absence")
    sha256 = hospitals.queue(job)
    hospitals.wait_for("C's updates", lambda: 2 in rounds_of(hospitals, sha256, "C"))
    hospitals.freeze("C")  # within a round or just before the next: that one is asked of it
    missed = max(rounds_of(hospitals, sha256, "C")) + 1
    hospitals.wait_for("a round without C", lambda: hospitals.closed(sha256) >= missed)
    if missed in rounds_of(hospitals, sha256, "C"):  # its bytes were out when it froze
        missed += 1
        hospitals.wait_for("a round without C", lambda: hospitals.closed(sha256) >= missed)
    shown = hospitals.show(sha256)
    assert shown["closed"][missed]["seconds"] >= DEADLINE_S
    assert {name for round_, name in hospitals.receipts(sha256) if round_ == missed} == {"A", "B"}

    hospitals.kill("C")
    hospitals.freeze("A")  # holds the rounds back until C is there again
    begun = hospitals.log_size("server")
    hospitals.start_site("C")
    hospitals.wait_for("C", lambda: "site=C" in hospitals.log("server", begun))
    away = hospitals.show(sha256)
    # What C was asked and did not answer counts, until C itself says otherwise.
    released = sum(row.steps for row in hospitals.account("C", sha256) if row.payload_sha256)
    answered = STEPS * len(rounds_of(hospitals, sha256, "C"))
    assert spent(away, "C") >= max(released, answered + STEPS)
    hospitals.thaw("A")
    hospitals.wait_for(
        "C's updates after its absence",
        lambda: max(rounds_of(hospitals, sha256, "C")) > missed,
    )
    hospitals.command("fl-server", "stop", sha256[:12])
    hospitals.wait_for("the stop", lambda: hospitals.state(sha256)[0] == "stopped")
    charged = sum(row.steps for row in hospitals.account("C", sha256))
    assert charged <= spent(hospitals.show(sha256), "C")
    stopped_at_site = ["fl-client", "jobs", "--json"]

    def states() -> dict[str, str]:
        listed = json.loads(hospitals.command(*stopped_at_site, site="A"))
        return {row["sha256"]: row["state"] for row in listed}

    hospitals.wait_for("the end at the sites", lambda: states()[sha256] == "stopped")


@pytest.mark.slow
def test_a_round_short_of_its_quorum_takes_in_a_site_that_comes_back(
    hospitals: "Hospitals", long_job: Callable[[str], Job]
) -> None:
    sha256 = hospitals.queue(long_job("latecomer"))
    hospitals.wait_for("rounds of all", lambda: 2 in rounds_of(hospitals, sha256, "A"))
    hospitals.kill("A")
    last = max(rounds_of(hospitals, sha256, "A"))
    hospitals.wait_for("rounds without A", lambda: hospitals.closed(sha256) > last + 1)
    begun = hospitals.log_size("server")
    hospitals.freeze("C")  # B alone is no quorum
    hospitals.wait_for("a miss", lambda: "quorum missed" in hospitals.log("server", begun))
    stuck = hospitals.closed(sha256) + 1
    hospitals.start_site("A")
    hospitals.wait_for("A and B to go on", lambda: hospitals.closed(sha256) > stuck)
    assert {name for round_, name in hospitals.receipts(sha256) if round_ == stuck} == {"A", "B"}


@pytest.mark.slow
def test_the_result_states_the_steps_that_the_sites_were_charged(
    hospitals: "Hospitals", ward_job: Callable[..., Job]
) -> None:
    """C misses one round for good; its own account is at most what the result says."""
    job = ward_job(
        "missed",
        "ABC",
        training={"rounds": 5, "local_steps": 10, "quorum": 2, "deadline_s": DEADLINE_S},
    )
    sha256 = hospitals.queue(job)
    hospitals.catch("C", sha256, lambda latest: latest.round >= 2 and not latest.payload_sha256)
    hospitals.kill("C")
    outcome = hospitals.finish(sha256)
    answered = rounds_of(hospitals, sha256, "C")
    stated = {
        site["name"]: site["steps"]
        for site in json.loads((outcome / "result.json").read_text())["sites"]
    }
    charged = sum(row.steps for row in hospitals.account("C", sha256))
    assert stated == {"A": 50, "B": 50, "C": charged}
    assert charged == 10 * (len(answered) + 1)


@pytest.mark.slow
def test_sigterm_of_a_site_at_work_is_clean(
    hospitals: "Hospitals", long_job: Callable[[str], Job]
) -> None:
    begun, sha256 = hospitals.log_size("C"), hospitals.queue(long_job("site-stops"))
    hospitals.wait_for("rounds", lambda: hospitals.closed(sha256) >= 2)
    # Rounds close without a site that is slow to start; this one is to be at work.
    hospitals.wait_for("C's work", lambda: "round starts" in hospitals.log("C", begun))
    assert hospitals.terminate("C") == 0
    log = hospitals.log("C", begun)
    assert "Traceback" not in log
    assert "site stopped" in log


@pytest.mark.slow
def test_sigterm_of_the_server_at_work_is_clean_and_the_job_goes_on_at_its_next_start(
    hospitals: "Hospitals", long_job: Callable[..., Job]
) -> None:
    begun, sha256 = hospitals.log_size("server"), hospitals.queue(long_job("server-stops"))
    hospitals.wait_for("rounds", lambda: hospitals.closed(sha256) >= 2)
    assert hospitals.terminate("server") == 0
    log = hospitals.log("server", begun)
    assert "Traceback" not in log
    assert "server stopped" in log
    assert hospitals.state(sha256)[0] == "running"
    closed = hospitals.closed(sha256)
    hospitals.start_server()
    hospitals.wait_for("rounds after it", lambda: hospitals.closed(sha256) > closed + 1)


@pytest.mark.slow
def test_a_second_session_of_a_site_is_refused_and_the_first_lives_on(
    hospitals: "Hospitals", ward_job: Callable[..., Job], tmp_path: Path
) -> None:
    twin = tmp_path / "twin"
    # Without the account: B may be writing it, and a copy in between is one that no site takes.
    shutil.copytree(hospitals.site_home("B"), twin, ignore=shutil.ignore_patterns("account*"))
    begun = hospitals.log_size("server")
    words = "site B must have one session, got a second"
    with (tmp_path / "twin.log").open("wb") as log:
        second = subprocess.Popen(
            [*hospitals._prefix("fl-client", "B")[:-1], str(twin)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        hospitals.wait_for("its refusal", lambda: words in (tmp_path / "twin.log").read_text())
        assert words in hospitals.log("server", begun)
        second.terminate()
        assert second.wait(60) == 0
    finally:
        second.kill()
    hospitals.finish(hospitals.queue(ward_job("twin", "B", training={"rounds": 1})))


@pytest.mark.slow
def test_a_site_revoked_in_a_job_is_cut_off_and_the_job_goes_on(
    hospitals: "Hospitals", long_job: Callable[[str], Job]
) -> None:
    sha256 = hospitals.queue(long_job("revoked"))
    hospitals.wait_for("C's updates", lambda: 2 in rounds_of(hospitals, sha256, "C"))
    begun = hospitals.log_size("C")
    hospitals.command("fl-server", "revoke", "C")
    hospitals.wait_for("C to hear of it", lambda: "revoked" in hospitals.log("C", begun))
    last = hospitals.closed(sha256) + 1  # C may have answered it before it was cut off
    try:
        hospitals.wait_for("rounds without C", lambda: hospitals.closed(sha256) > last + 1)
        assert max(rounds_of(hospitals, sha256, "C")) <= last
    finally:
        hospitals.terminate("C")
        shutil.rmtree(hospitals.site_home("C") / "pki")  # a revoked key does not come back
        hospitals.enrol("C")
        # Its ledger was signed by the key that is gone: a person takes it on.
        said = hospitals.command("fl-client", "ledger", "rekey", "--yes", site="C")
        assert "accepted without the key before" in said
        # A peer with the roster of before would take the new key for a forgery.
        hospitals.command("fl-server", "roster", "--sign-with", str(hospitals.root_key))
        for site in "ABP":
            hospitals.terminate(site)  # it asks for the roster when it starts
