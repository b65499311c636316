"""A site's figures: of its ledger, its link and its certificate, and of no record."""

import threading
import time
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from client import serve
from client.metrics import SiteMetrics
from client.presence import Presence
from common.job import Job
from common.metrics import _Collector
from common.privacy.accounting import GaussianSteps
from common.privacy.rdp_filter import RdpFilter

if TYPE_CHECKING:
    from tests.unit.client.conftest import Homes

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]


def samples(figures: SiteMetrics) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(figures))
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


@pytest.mark.slow
def test_other_records_give_the_same_figures_and_epsilon_is_that_of_the_steps(
    make_job: MakeJob, federation: MakeFederation
) -> None:
    made = make_job(training={"rounds": 2})
    fed = federation(made)
    fed.run()
    found = {name: samples(SiteMetrics(one.home, one.outbox)) for name, one in fed.sites.items()}
    # A has 36 records and B 52 others. What they add up to is the job's alone.
    assert found["A"] == found["B"]
    figures = found["A"]
    assert figures["veiltune_site_charged_rounds_total",] == 2
    assert figures["veiltune_site_charged_steps_total",] == made.steps
    assert figures["veiltune_site_jobs", "finished"] == 1
    assert figures["veiltune_site_ledger_entries",] == fed.sites["A"].outbox.head().size
    assert figures["veiltune_site_epsilon_limit",] == 50.0
    steps = GaussianSteps(made.privacy.sampling_rate, made.noise_multiplier, made.steps)
    expected = RdpFilter.for_cap(50.0, 1e-4).epsilon([steps])
    assert figures["veiltune_site_epsilon_charged",] == pytest.approx(expected)
    assert figures["veiltune_site_epsilon_drawn",] == pytest.approx(expected)


def test_the_figures_are_these_and_no_others(
    make_job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    # A new one is a new release wherever a monitoring system carries it: think, then add it here.
    made = make_job(training={"rounds": 1}, privacy=no_privacy)
    fed = federation(made, policy={"allow_no_privacy": True})
    fed.run()
    one, other = fed.sites["A"], fed.sites["B"]
    assert samples(SiteMetrics(one.home, one.outbox)) == samples(
        SiteMetrics(other.home, other.outbox)
    )
    figures = SiteMetrics(one.home, one.outbox)
    figures.presence = Presence(7, connected=True, since="2026-01-01T00:00:00Z", reason="")
    found = samples(figures)
    assert {name.removeprefix("veiltune_") for name, *_ in found} == {
        "build_info",
        "site_connected",
        "site_link_change_timestamp_seconds",
        "site_ledger_whole",
        "site_ledger_entries",
        "site_jobs",
        "site_charged_rounds_total",
        "site_charged_steps_total",
        "site_uncovered_rounds_total",
        "site_epsilon_limit",
        "site_epsilon_charged",
        "site_epsilon_drawn",
        "site_delta",
    }
    assert found["veiltune_site_uncovered_rounds_total",] == 1
    assert found["veiltune_site_link_change_timestamp_seconds",] == 1767225600


def test_a_running_site_is_scraped_and_a_broken_ledger_told(homes: "Homes") -> None:
    home = homes.load()
    stop, port = threading.Event(), _free_port()
    thread = threading.Thread(target=serve.run, args=(home, stop, f"127.0.0.1:{port}"))
    thread.start()
    try:
        text = _scraped(port)
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert found["veiltune_site_connected"] == 0
        assert found["veiltune_site_ledger_whole"] == 1
        assert found["veiltune_site_ledger_entries"] == 1
        days = found["veiltune_site_certificate_expiry_timestamp_seconds"] - time.time()
        assert days / 86400 == pytest.approx(90, abs=1)
        home.account_path.write_bytes(b"no ledger" * 100)
        assert "veiltune_site_ledger_whole 0.0\n" in _scraped(port)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scraped(port: int) -> str:
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.05)
    raise AssertionError("no metrics")
