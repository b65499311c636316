"""The way to the server, broken at each step for real, and seen by the doctor."""

import contextlib
import datetime as dt
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from client.admission import ask
from client.calls import link_config
from client.config import load_home
from client.identity import read_identity
from client.linkcheck import LINES
from common import pki, reach
from common.diagnosis import Finding
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import (
    FETCH,
    SERVICE,
    TIME_KEY,
    Credentials,
    server_credentials,
)
from simulations.loopback import Loopback

Make = Callable[..., Path]
Lines = dict[str, Finding]
Talking = Callable[[Callable[[socket.socket], None]], int]


class Homes(Protocol):
    """The fixture ``aged``."""

    loopback: Loopback


class Look(Protocol):
    """The fixture of that name."""

    def __call__(self, home: Path, *names: str, is_offline: bool = False) -> Lines: ...


@pytest.fixture
def link(look: Look) -> Callable[..., Lines]:
    """The lines of the link alone."""
    return lambda home, **given: look(home, LINES[0], **given)


def marked(found: Lines, mark: str) -> set[str]:
    return {name for name, finding in found.items() if finding.mark == mark}


def serve_at(home: Path, server: str) -> Path:
    path = home / "site.toml"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(
            f'server = "{server}"' if line.startswith("server = ") else line for line in lines
        )
    )
    return home


def rest_is_not_checked(found: Lines, check: str) -> None:
    after = LINES[LINES.index(check) + 1 :]
    assert set(after) == marked(found, "not checked")
    assert all(f"mend the {check} first" in found[name].advice for name in after)


def test_a_server_that_admits_us_is_well(whole: Make, link: Callable[..., Lines]) -> None:
    found = link(whole())
    assert marked(found, "ok") == set(LINES)
    assert found["proxy"].found == "none: gRPC connects directly"
    # 730 days, of which 400 are over
    told = "under our root, for 127.0.0.1, localhost, for 29 more days"
    assert found["server certificate"].found == told


def test_a_closed_port_is_named(whole: Make, link: Callable[..., Lines]) -> None:
    found = link(whole(port=1))
    assert marked(found, "fault") == {"server port"}
    assert "127.0.0.1:1 refused the connection" in found["server port"].found
    assert "firewall" in found["server port"].advice
    rest_is_not_checked(found, "server port")


def test_a_name_that_does_not_resolve_is_named(whole: Make, link: Callable[..., Lines]) -> None:
    found = link(serve_at(whole(), "no-such-host.invalid:8443"))
    if reach.is_offline():
        assert marked(found, "not checked") == set(LINES)
        return
    assert marked(found, "fault") == {"server name"}
    assert "'no-such-host.invalid' does not resolve" in found["server name"].found
    assert "DNS" in found["server name"].advice


def test_an_address_that_is_none_is_named(whole: Make, link: Callable[..., Lines]) -> None:
    found = link(serve_at(whole(), "host:99999"))
    assert [(f.mark, f.found) for f in found.values()] == [
        ("fault", "address must be host:port, got 'host:99999'")
    ]


def test_a_revoked_site_is_told_by_the_server(
    whole: Make, link: Callable[..., Lines], aged: Homes
) -> None:
    home = whole()
    aged.loopback.roster.revoke("A")
    found = link(home)
    assert marked(found, "fault") == {"admission"}
    assert "must not be revoked" in found["admission"].found
    assert "move pki/site.key away and join" in found["admission"].advice
    assert found["clock and server"].mark == "ok"


def test_a_site_that_is_not_revoked_is_told_to_keep_its_key(
    whole: Make, link: Callable[..., Lines], tmp_path: Path
) -> None:
    home = whole()
    (tmp_path / "roster.json").unlink()
    found = link(home)
    assert "must be enrolled at this server" in found["admission"].found
    assert found["admission"].advice.endswith("leave pki/site.key where it is")


# Proxies


def like_a_proxy(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")


def tunnel(connection: socket.socket) -> None:
    """A proxy as it should be (RFC 9110, section 9.3.6)."""
    method, where, _ = connection.recv(4096).split(b"\r\n")[0].decode().split(" ")
    assert method == "CONNECT"
    host, port = where.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as beyond:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=pump, args=(beyond, connection), daemon=True)
        back.start()
        pump(connection, beyond)
        back.join(5)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_plain_http_on_the_port_is_named(
    whole: Make, link: Callable[..., Lines], talking: Talking
) -> None:
    found = link(whole(port=talking(like_a_proxy)))
    assert marked(found, "fault") == {"server certificate"}
    assert "in plain HTTP (HTTP/1.1 407 Proxy Auth" in found["server certificate"].found
    assert "pass connections" in found["server certificate"].advice
    rest_is_not_checked(found, "server certificate")


def test_a_proxy_that_turns_us_away_is_named(
    whole: Make, link: Callable[..., Lines], talking: Talking, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"127.0.0.1:{talking(like_a_proxy)}"
    monkeypatch.setenv("https_proxy", f"http://ada:lovelace@{place}")
    found = link(whole())
    assert marked(found, "fault") == {"proxy"}
    assert f"proxy {place} (https_proxy) does not let us through" in found["proxy"].found
    assert "HTTP/1.1 407" in found["proxy"].found
    assert "no_proxy" in found["proxy"].advice
    assert "lovelace" not in repr(found)
    assert set(found) - {"proxy"} == marked(found, "not checked")


def test_a_proxy_that_is_not_there_is_named(
    whole: Make, link: Callable[..., Lines], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    found = link(whole())
    assert marked(found, "fault") == {"proxy"}
    assert "proxy 127.0.0.1:1 (grpc_proxy) refused the connection" in found["proxy"].found


def test_a_proxy_that_lets_us_through_is_walked_through(
    whole: Make, link: Callable[..., Lines], talking: Talking, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"127.0.0.1:{talking(tunnel)}"
    monkeypatch.setenv("http_proxy", f"http://{place}")
    found = link(whole())
    assert set(found) == marked(found, "ok")
    assert found["proxy"].found == f"http_proxy sends the link through {place}"


def test_a_proxy_that_grpc_would_not_take_is_a_warning(
    whole: Make, link: Callable[..., Lines], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "https://ada:lovelace@proxy:1")
    found = link(whole())
    assert marked(found, "warning") == {"proxy"}
    assert "https_proxy must be http://HOST:PORT" in found["proxy"].found
    assert "lovelace" not in repr(found)


# Certificates that the server shows


def issued(days_ago: int, *hosts: str) -> Callable[[Loopback], pki.Credential]:
    moment = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago)
    return lambda loopback: pki.issue_server(loopback.intermediate, hosts, now=moment)


def under_another_root(_: Loopback) -> pki.Credential:
    return pki.issue_server(pki.create_intermediate(pki.create_root("firewall")), ["127.0.0.1"])


@pytest.mark.parametrize(
    ("issue", "words", "advice"),
    [
        (
            under_another_root,
            "another root than ours: its issuer is CN=Veiltune intermediate,O=firewall",
            "firewall which reads TLS",
        ),
        (
            issued(1, "fed.example", "10.9.8.7"),
            "is for another address: for fed.example, 10.9.8.7",
            "name the server",
        ),
        (
            issued(740, "127.0.0.1"),
            "has expired (its operator must renew it) on 20",
            "ask the operator",
        ),
        (
            issued(-3, "127.0.0.1"),
            "is not valid yet (do the two clocks agree?): not before 20",
            "clock",
        ),
    ],
    ids=["another root", "another host", "expired", "not valid yet"],
)
def test_a_server_that_shows_another_certificate_is_named(
    whole: Make,
    link: Callable[..., Lines],
    talking: Talking,
    aged: Homes,
    tmp_path: Path,
    issue: Callable[[Loopback], pki.Credential],
    words: str,
    advice: str,
) -> None:
    pair = issue(aged.loopback)
    (tmp_path / "pair.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1)

    found = link(whole(port=talking(answer)))
    assert marked(found, "fault") == {"server certificate"}
    assert words in found["server certificate"].found
    assert advice in found["server certificate"].advice
    rest_is_not_checked(found, "server certificate")


NO_SUCH_JOB = framing.refusal(wire.Refusal.UNKNOWN_JOB, "no such job")


@contextlib.contextmanager
def grpc_server(
    loopback: Loopback,
    told: str | None,
    pair: pki.Credential | None = None,
    answer: bytes = NO_SUCH_JOB,
) -> Iterator[int]:
    """A server that refuses every fetch, and says the time that a test gives it."""

    def refuse(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        if told is not None:
            context.set_trailing_metadata(((TIME_KEY, told),))
        yield answer

    handler = grpc.method_handlers_generic_handler(
        SERVICE, {FETCH: grpc.unary_stream_rpc_method_handler(refuse)}
    )
    shown = pair or loopback.server
    credentials = Credentials(loopback.root.certificate, shown.certificate, shown.key)
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: credentials))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_a_server_certificate_close_to_its_end_is_a_warning(
    whole: Make, link: Callable[..., Lines], aged: Homes
) -> None:
    pair = issued(25, "127.0.0.1")(aged.loopback)
    with grpc_server(aged.loopback, str(time.time()), pair) as port:
        found = link(whole(port=port))
    assert marked(found, "warning") == {"server certificate"}
    assert "for 4 more days" in found["server certificate"].found
    assert "renew" in found["server certificate"].advice


@pytest.mark.parametrize("answer", [b"\xff\xff", framing.goodbye("no")], ids=["none", "another"])
def test_a_server_of_another_protocol_is_named(
    whole: Make, link: Callable[..., Lines], aged: Homes, answer: bytes
) -> None:
    with grpc_server(aged.loopback, None, answer=answer) as port:
        found = link(whole(port=port))
    assert marked(found, "fault") == {"admission"}
    assert marked(found, "not checked") == {"clock and server"}
    assert "server's log" in found["admission"].advice


# Clocks


@pytest.mark.parametrize(
    ("ahead_s", "mark", "words"),
    [
        (3600, "fault", "s behind the server's: certificates"),
        pytest.param(
            -3600, "fault", "s ahead of the server's: certificates", marks=pytest.mark.slow
        ),
        (100, "warning", "s behind the server's"),
        pytest.param(5, "ok", "s of the server's", marks=pytest.mark.slow),
        (None, "not checked", "does not say its time"),
    ],
)
def test_a_clock_that_is_not_the_servers_is_named(
    whole: Make,
    link: Callable[..., Lines],
    aged: Homes,
    ahead_s: int | None,
    mark: str,
    words: str,
) -> None:
    told = None if ahead_s is None else str(time.time() + ahead_s)
    with grpc_server(aged.loopback, told) as port:
        found = link(whole(port=port))
    assert found["clock and server"].mark == mark
    assert words in found["clock and server"].found
    assert marked(found, "ok") | {"clock and server"} == set(LINES)


@pytest.mark.parametrize(
    "told", ["nan", "x", *(pytest.param(t, marks=pytest.mark.slow) for t in ("inf", "1e400", ""))]
)
def test_a_time_that_is_none_is_not_taken(whole: Make, aged: Homes, told: str) -> None:
    with grpc_server(aged.loopback, told) as port:
        home = load_home(whole(port=port), "A")
        assert ask(link_config(home, read_identity(home))).ahead_s is None


# No network


def test_offline_leaves_the_network_alone(
    whole: Make, link: Callable[..., Lines], talking: Talking
) -> None:
    heard: list[socket.socket] = []
    found = link(whole(port=talking(heard.append)), is_offline=True)
    assert set(found) == set(LINES) == marked(found, "not checked")
    assert all("--offline" in f.found for f in found.values())
    assert heard == []


WALK = """
import dataclasses, json, sys
from pathlib import Path
from client.doctor import Patient, checks
from client.linkcheck import LINES
from common.diagnosis import examine
patient = Patient(Path(sys.argv[1]), "A", "fl-client --site A")
found = examine(one for one in checks(patient) if one.name == LINES[0])
print(json.dumps([dataclasses.asdict(one) for one in found]))
"""


def walk_alone(home: Path, prepare: str) -> Lines:
    """Look at the link from a network namespace of its own, which has no network."""
    inside = f"{prepare} && exec {sys.executable} -c '{WALK}' {home}"
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", inside]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command[:3], "true"], check=False).returncode
    ):
        pytest.skip("needs a network namespace")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {f["check"]: Finding(**f) for f in json.loads(done.stdout)}


def test_a_machine_without_network_is_no_fault(whole: Make) -> None:
    found = walk_alone(serve_at(whole(), "fed.example.org:8443"), "true")
    assert set(found) == set(LINES) == marked(found, "not checked")
    assert {f.found for f in found.values()} == {"this machine has no network"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ip"), reason="needs iproute2")
def test_a_server_with_ipv6_alone_is_named_where_there_is_none(whole: Make) -> None:
    home = serve_at(whole(), "[2001:db8::1]:8443")
    ipv4_alone = "ip link set lo up && ip route add 192.0.2.0/24 dev lo"
    found = walk_alone(home, ipv4_alone)
    assert marked(found, "fault") == {"server name"}
    told = found["server name"]
    assert "IPv6 addresses only (2001:db8::1), and this machine has no route" in told.found
    assert "get IPv6 here" in told.advice
