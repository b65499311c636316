"""Metrics over HTTP: the oracle is Prometheus' own parser, and what another client is told."""

import http.client
import urllib.request
from collections.abc import Iterable, Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from common.errors import InvalidInput
from common.metrics import build_info, gauge, serving


def figures() -> Iterator[Metric]:
    yield build_info()
    yield gauge("veiltune_test_speed_meters", "How fast.", 2.5)


def scrape(port: int, host: str = "127.0.0.1") -> dict[str, float]:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families: Iterable[Metric] = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "127.0.0.7"])
def test_figures_are_served_on_loopback_until_the_end(host: str) -> None:
    with serving(f"{host}:0", figures) as port:
        assert scrape(port, host) == {"veiltune_build_info": 1.0, "veiltune_test_speed_meters": 2.5}
    with pytest.raises(OSError, match="refused"):
        scrape(port, host)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:9464",
        "[::]:9464",
        "10.0.0.1:9464",
        "192.168.1.4:1",
        "localhost:9464",
        "[fe80::1]:1",
    ],
)
def test_any_other_address_is_refused_a_name_too(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"metrics address must be on loopback.*got "):
        serving(address, figures).__enter__()


def test_without_an_address_nothing_is_served() -> None:
    with serving("", figures) as port:
        assert port == 0


def test_a_port_that_is_taken_is_named() -> None:
    with (
        serving("127.0.0.1:0", figures) as port,
        pytest.raises(InvalidInput, match=f"must be free, got 127.0.0.1:{port}"),
        serving(f"127.0.0.1:{port}", figures),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:{}", 200), ("localhost:{}", 200), ("[::1]", 200), ("evil.example:{}", 403)],
)
def test_a_name_that_was_made_to_point_here_gets_nothing(host: str, status: int) -> None:
    with serving("127.0.0.1:0", figures) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics", headers={"Host": host.format(port)})
        answer = connection.getresponse()
        assert answer.status == status
        assert (b"veiltune" in answer.read()) == (status == 200)
        connection.request("POST", "/metrics", body=b"x")
        assert connection.getresponse().status == 405
        connection.close()
