"""Figures for Prometheus over HTTP, on this machine's loopback alone.

Whoever scrapes them may be anybody on this machine, and carry them anywhere. So nothing is served
that is computed from records: a site's figures are of its ledger, its link and its certificate
(client/metrics.py). No library's own figures are there either, such as a process' CPU seconds.

Not covered: who may ask, on a machine of several users; TLS, which loopback has no need of.
"""

import contextlib
import ipaddress
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from common.address import split_address
from common.cli import installed_version
from common.errors import InvalidInput

_TIMEOUT_S = 10.0

Collect = Callable[[], Iterable[Metric]]

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def serving(address: str, collect: Collect) -> Iterator[int]:
    """Serve what ``collect`` yields, anew for each request, until the block ends; yields the port.

    Args:
        address: host:port; nothing is served for an empty one, and the port is 0 then.
        collect: must not raise.

    Raises:
        InvalidInput: the address is not loopback's, or in use.
    """
    if not address:
        yield 0
        return
    host, port = require_loopback(address)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    try:
        server = make_server(host, port, _guarded(make_wsgi_app(registry)), _kind(host), _Silent)
    except OSError as error:
        raise InvalidInput(
            f"metrics address must be free, got {address}: {error.strerror}"
        ) from error
    threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()
    log.info(
        "metrics served", url=f"http://{address.rpartition(':')[0]}:{server.server_port}/metrics"
    )
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def require_loopback(address: str) -> tuple[str, int]:
    """Host and port of an address that is this machine's own alone.

    Raises:
        InvalidInput: it is another, or a name, which may come to mean another.
    """
    host, port = split_address(address)
    if not _is_loopback(host):
        raise InvalidInput(
            f"metrics address must be on loopback, such as 127.0.0.1:9464, got {address}"
        )
    return host, port


def build_info() -> Metric:
    """Which version this is."""
    return InfoMetricFamily("veiltune_build", "Version.", value={"version": installed_version()})


def gauge(name: str, help_: str, value: float) -> Metric:
    """One figure without labels."""
    return GaugeMetricFamily(name, help_, value=value)


def by_label(name: str, help_: str, label: str, values: dict[str, float]) -> Metric:
    """One figure for each value of a label."""
    family = GaugeMetricFamily(name, help_, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class _Collector:
    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _guarded(app: Any) -> Any:  # noqa: ANN401 -- WSGI applications have no useful type
    """Turn away a browser that a name of somebody else's led here."""

    def guarded(environ: dict[str, Any], start_response: Any) -> Any:  # noqa: ANN401
        host = str(environ.get("HTTP_HOST", "localhost"))
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name != "localhost" and not _is_loopback(name.strip("[]")):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"host must be loopback's\n"]
        return app(environ, start_response)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that went away."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _kind(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


class _Silent(WSGIRequestHandler):
    timeout = _TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no events."""
