"""Proxies as gRPC chooses them. The oracle: what grpcio itself connects to, in one test."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from common import pki, reach
from common.errors import InvalidInput
from common.reach import ProxyRefused

PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, None),
        ({"https_proxy": PROXY}, "https_proxy"),
        ({"http_proxy": PROXY}, "http_proxy"),
        ({"http_proxy": PROXY, "https_proxy": PROXY, "grpc_proxy": PROXY}, "grpc_proxy"),
        ({"http_proxy": PROXY, "https_proxy": PROXY}, "https_proxy"),
        ({"grpc_proxy": "", "https_proxy": PROXY}, None),
        ({"HTTPS_PROXY": PROXY}, None),
        ({"all_proxy": PROXY}, None),
        ({"https_proxy": PROXY, "no_proxy": "*"}, "https_proxy"),
        ({"https_proxy": PROXY, "no_proxy": "other.example, north.example"}, None),
        ({"https_proxy": PROXY, "no_proxy": ".NORTH.example"}, None),
        ({"https_proxy": PROXY, "no_proxy": "north"}, "https_proxy"),
        ({"https_proxy": PROXY, "no_grpc_proxy": "x", "no_proxy": "example"}, "https_proxy"),
        ({"https_proxy": PROXY, "NO_PROXY": "example"}, "https_proxy"),
    ],
)
def test_the_proxy_is_the_one_that_grpc_takes(
    environment: dict[str, str], variable: str | None
) -> None:
    found = reach.proxy_for("fed.north.example", environment)
    assert (found and found.variable) == variable
    if found:
        assert found.place == "proxy.example:3128"


@pytest.mark.parametrize(
    ("entry", "is_direct"), [("10.1.0.0/16", True), ("10.2.0.0/16", False), ("10.1.2.3", True)]
)
def test_a_network_may_be_exempt(entry: str, is_direct: bool) -> None:
    found = reach.proxy_for("10.1.2.3", {"https_proxy": PROXY, "no_proxy": entry})
    assert (found is None) == is_direct


@pytest.mark.parametrize("value", ["https://p:1", "p:1", "http://", "http://p:x", "socks5://p:1"])
def test_a_value_that_grpc_does_not_take_is_named_without_itself(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        reach.proxy_for("h", {"https_proxy": value})
    assert str(caught.value) == "https_proxy must be http://HOST:PORT, got something else"


def test_a_login_is_shown_nowhere() -> None:
    found = reach.proxy_for("h", {"https_proxy": "http://ada:love%20lace@p:1"})
    assert found is not None
    assert found.login == "YWRhOmxvdmUgbGFjZQ=="  # printf 'ada:love lace' | base64
    assert found.login not in repr(found)
    assert "lace" not in repr(found)


@contextlib.contextmanager
def server(answer: bytes, heard: list[bytes]) -> Iterator[int]:
    """Says ``answer`` to every connection's first bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        heard.append(connection.recv(4096))
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


ASK = """
import common, grpc, sys
channel = grpc.secure_channel("fed.invalid:8443", grpc.ssl_channel_credentials())
try:
    channel.unary_unary("/a/b")(b"", timeout=10)
except grpc.RpcError as error:
    print(error.details())
"""


def test_grpc_asks_for_the_same_tunnel() -> None:
    heard: list[bytes] = []
    with server(b"HTTP/1.1 403 Forbidden\r\n\r\n", heard) as port:
        environment = {"https_proxy": f"http://ada:lovelace@127.0.0.1:{port}"}
        subprocess.run(
            [sys.executable, "-c", ASK], env={**os.environ, **environment}, check=True, timeout=60
        )
        proxy = reach.proxy_for("fed.invalid", environment)
        with pytest.raises(ProxyRefused) as caught:
            reach.connect("fed.invalid", 8443, 5, proxy)
    assert caught.value.status == "HTTP/1.1 403 Forbidden"
    grpcs, ours = heard[0].split(b"\r\n"), heard[-1].split(b"\r\n")
    assert set(ours) == {line for line in grpcs if not line.startswith(b"User-Agent")}
    assert grpcs[0] == ours[0] == b"CONNECT fed.invalid:8443 HTTP/1.1"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.0 407 Who are you\r\nA: b\r\n\r\nbody", "HTTP/1.0 407 Who are you"),
        (b"SSH-2.0-x\r\n", ""),
        (b"", ""),
        (b"\x15\x03\x01\x00\x02\x02\x16", ""),
        (b"HTTP/1.1 " + b"9" * 100_000, "HTTP/1.1 " + "9" * 51),
    ],
)
def test_plain_http_is_told_from_anything_else(answer: bytes, status: str) -> None:
    with server(answer, []) as port:
        assert reach.http_status("127.0.0.1", port, 5) == status


def test_what_shows_no_certificate_shows_none() -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n", []) as port:
        assert reach.presented("127.0.0.1", port, 5) is None


def test_this_machine_knows_the_way_to_itself() -> None:
    assert reach.has_route(socket.AF_INET, "127.0.0.1")
    assert reach.addresses("127.0.0.1", 1) == {"127.0.0.1": socket.AF_INET}


def test_an_issuer_is_named_as_it_names_itself() -> None:
    root = pki.create_root("north")
    leaf = pki.load_certificates(pki.issue_server(pki.create_intermediate(root), ["h"]).certificate)
    assert reach.issuer(leaf[0]) == "CN=Veiltune intermediate,O=north"
