"""Real processes on a network that breaks: nothing is lost, doubled or silently wrong.

Site A's whole link goes through a proxy; each fault is set in the middle of a job, is seen at both
ends or borne, and is lifted.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from common.job import Job
from tests.faults.proxy import Fault, FaultProxy

if TYPE_CHECKING:
    from tests.faults.conftest import Hospitals

pytestmark = pytest.mark.slow

BROKE = "connection broke"


@dataclass(frozen=True)
class Case:
    """A fault, and the words at site A and at the server while it lasts; none where it is borne.

    ``is_reset``: after a while the connection is reset, as a firewall that lost its state does.
    """

    fault: Fault
    at_site: str = ""
    at_server: str = ""
    is_reset: bool = False


CASES = {
    "latency": Case(Fault("delay", delay_s=0.1)),
    "a narrow line": Case(Fault("bandwidth", bytes_per_s=40_000)),
    "a second without a network": Case(Fault("stall")),
    "cut in an update": Case(Fault("cut", "up", 3000), BROKE, "site disconnected"),
    "cut in an order": Case(Fault("cut", "down", 9000), BROKE, "site disconnected"),
    "half-closed by the site": Case(
        Fault("half-close", "up", 2000), "link down", "site disconnected"
    ),
    "half-closed by the server": Case(
        Fault("half-close", "down", 2000), "link down", "site disconnected"
    ),
    "bytes twice": Case(Fault("duplicate", "up", 2000), "link down", "site disconnected"),
    "garbage": Case(Fault("garbage", "down", 2000), "link down", "site disconnected"),
    "refused": Case(Fault("refuse"), BROKE, "site disconnected"),
    "nothing arrives at the server": Case(Fault("stall", "up"), BROKE, "site disconnected", True),
    "nothing arrives at the site": Case(Fault("stall", "down"), BROKE, "site disconnected", True),
}
BORNE_S = 0.7  # how long a fault lasts of which nobody needs to hear
ROUNDS = 45


@pytest.fixture
def proxied(hospitals: "Hospitals") -> Iterator[tuple["Hospitals", FaultProxy]]:
    """The federation with site A behind a proxy."""
    settings = hospitals.site_home("A") / "site.toml"
    direct = settings.read_text()
    with FaultProxy(hospitals.port) as proxy:
        _restart(hospitals, settings, direct.replace(f":{hospitals.port}", f":{proxy.port}"))
        assert proxy.connections
        yield hospitals, proxy
        _restart(hospitals, settings, direct)


def _restart(hospitals: "Hospitals", settings: Path, text: str) -> None:
    hospitals.terminate("A")
    settings.write_text(text)
    begun = hospitals.log_size("A")
    hospitals.start_site("A")
    hospitals.wait_for("A's link", lambda: "link up" in hospitals.log("A", begun))


def require_one_release_a_round(hospitals: "Hospitals", job: Job) -> None:
    receipts = hospitals.receipts(job.sha256)
    rounds = list(range(1, job.training.rounds + 1))
    assert sorted(receipts) == [(n, site) for n in rounds for site in job.sites]
    for site in job.sites:
        account = hospitals.account(site, job.sha256)
        assert [(row.round, row.steps) for row in account] == [
            (n, job.training.local_steps) for n in rounds
        ]
        assert all(row.payload_sha256 == receipts[row.round, site] for row in account)


def test_a_job_outlives_every_fault_of_a_network_with_the_adapter_of_a_run_without(
    proxied: tuple["Hospitals", FaultProxy],
    ward_job: Callable[..., Job],
    unkilled: Callable[[Job], Mapping[str, Any]],
    distance: Callable[[Path, Mapping[str, Any]], float],
) -> None:
    hospitals, proxy = proxied
    job = ward_job("networks", "AB", private=False, training={"rounds": ROUNDS, "local_steps": 1})
    sha256 = hospitals.queue(job)
    hospitals.wait_for("a round", lambda: hospitals.closed(sha256) >= 1)
    for name, case in CASES.items():
        begun = {end: hospitals.log_size(end) for end in ("A", "server")}
        proxy.set(case.fault)
        if case.is_reset:
            time.sleep(BORNE_S)
            proxy.set(Fault("refuse"))
        if case.at_site:
            hospitals.wait_for(
                f"words at A ({name})", partial(_seen, hospitals, "A", case.at_site, begun)
            )
            hospitals.wait_for(
                f"words at the server ({name})",
                partial(_seen, hospitals, "server", case.at_server, begun),
            )
        else:
            time.sleep(BORNE_S)
        proxy.lift()
        closed = hospitals.closed(sha256)
        assert closed < ROUNDS, f"the job must be under way after: {name}"
        hospitals.wait_for("a round", partial(_has_closed, hospitals, sha256, closed + 1))
        if not case.at_site:
            assert "link down" not in _log(hospitals, "A", begun), name
    outcome = hospitals.finish(sha256)
    require_one_release_a_round(hospitals, job)
    assert distance(outcome, unkilled(job)) <= 1e-6
    assert "Traceback" not in hospitals.log("A") + hospitals.log("server")


def _seen(hospitals: "Hospitals", end: str, words: str, begun: Mapping[str, int]) -> bool:
    return words in _log(hospitals, end, begun)


def _has_closed(hospitals: "Hospitals", sha256: str, round_: int) -> bool:
    return hospitals.closed(sha256) >= round_


def _log(hospitals: "Hospitals", end: str, begun: Mapping[str, int]) -> str:
    return hospitals.log(end, begun[end])


def test_a_private_job_s_update_that_is_cut_at_any_byte_is_released_once(
    proxied: tuple["Hospitals", FaultProxy], ward_job: Callable[..., Job]
) -> None:
    hospitals, proxy = proxied
    job = ward_job("cut", "A", training={"rounds": 30, "local_steps": 1})
    sha256 = hospitals.queue(job)
    cuts = 0
    while not hospitals.is_over(sha256) and cuts < 8:
        # Past the handshake and the hello of the next session, into its first update.
        proxy.set(Fault("cut", "up", after_bytes=3000 + 450 * cuts))
        if proxy.has_struck.wait(20):
            cuts += 1
    proxy.lift()
    hospitals.finish(sha256)
    assert cuts >= 6
    require_one_release_a_round(hospitals, job)


def sites_used(hospitals: "Hospitals", sha256: str) -> set[str]:
    return {site for _, site in hospitals.receipts(sha256)}


def test_a_line_of_a_byte_a_second_holds_no_round_past_its_deadline(
    proxied: tuple["Hospitals", FaultProxy], ward_job: Callable[..., Job]
) -> None:
    hospitals, proxy = proxied
    deadline_s = 2.0
    job = ward_job(
        "a-byte-a-second",
        "ABC",
        private=False,
        training={"rounds": 500, "local_steps": 1, "quorum": 2, "deadline_s": deadline_s},
    )
    sha256 = hospitals.queue(job)
    hospitals.wait_for("an update of A", lambda: "A" in sites_used(hospitals, sha256))
    begun = hospitals.log_size("server")
    proxy.set(Fault("bandwidth", bytes_per_s=1.0))
    hospitals.wait_for("a round without A", lambda: "missing=A" in hospitals.log("server", begun))
    closed = hospitals.closed(sha256)
    hospitals.wait_for("rounds without A", lambda: hospitals.closed(sha256) >= closed + 2)
    held = {site for round_, site in hospitals.receipts(sha256) if round_ == closed + 1}
    assert held == {"B", "C"}
    proxy.lift()
    missed = hospitals.closed(sha256)
    hospitals.wait_for(
        "A again", lambda: max(r for r, s in hospitals.receipts(sha256) if s == "A") > missed
    )
