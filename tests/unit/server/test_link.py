import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from client.calls import fetch
from client.session import LinkConfig
from common.errors import InvalidInput, LinkDown, Refusal, UpdateRejected
from common.link import federation_pb2 as wire
from common.link.channel import FETCH, SERVICE, Credentials, open_channel
from server.handshakes import HandshakeLog, cause_of
from server.link import LinkServer
from server.repeats import MOST_A_MINUTE
from simulations.loopback import HOST, Loopback, make_loopback

JOB = "ab" * 32
ADAPTER = bytes(range(256)) * 10_000


@pytest.fixture
def loopback(tmp_path: Path) -> Loopback:
    return make_loopback(tmp_path)


def stored(site: str, job_sha256: str) -> bytes | None:
    return ADAPTER if (site, job_sha256) == ("A", JOB) else None


@pytest.fixture
def server(loopback: Loopback) -> Iterator[LinkServer]:
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, fetch=stored)
    link.start()
    yield link
    link.stop()


def test_a_port_in_use_is_refused(loopback: Loopback) -> None:
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        with pytest.raises(InvalidInput, match=f"listen address must be free, got {address}"):
            LinkServer(address, loopback.credentials, loopback.roster).start()


def test_the_port_of_another_link_server_is_refused(server: LinkServer, loopback: Loopback) -> None:
    with pytest.raises(InvalidInput, match="listen address must be free"):
        LinkServer(f"{HOST}:{server.port}", loopback.credentials, loopback.roster).start()


@pytest.mark.parametrize("address", ["192.0.2.1:8443", "127.0.0.1:notaport", "127.0.0.1:70000"])
def test_an_address_that_is_not_this_machine_s_is_refused(loopback: Loopback, address: str) -> None:
    with pytest.raises(InvalidInput, match=r"address must be (free|host:port)"):
        LinkServer(address, loopback.credentials, loopback.roster).start()


def test_a_stopped_server_frees_its_port(loopback: Loopback) -> None:
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    link.start()
    link.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, link.port), timeout=5).close()
    again = LinkServer(f"{HOST}:{link.port}", loopback.credentials, loopback.roster)
    again.start()
    again.stop()


def test_a_site_fetches_a_finished_job_s_adapter(server: LinkServer, loopback: Loopback) -> None:
    assert fetch(loopback.enroll("A", server.port), JOB, len(ADAPTER)) == ADAPTER


def test_a_job_that_is_not_the_site_s_is_not_fetched(
    server: LinkServer, loopback: Loopback
) -> None:
    with pytest.raises(Refusal, match="must be one of B's with an adapter, got abababababab"):
        fetch(loopback.enroll("B", server.port), JOB, len(ADAPTER))


def test_an_adapter_over_the_cap_is_not_taken(server: LinkServer, loopback: Loopback) -> None:
    with pytest.raises(UpdateRejected, match="at most 2559999 bytes, got 2560000 announced"):
        fetch(loopback.enroll("A", server.port), JOB, len(ADAPTER) - 1)


def test_a_job_name_that_is_no_sha256_is_refused(server: LinkServer, loopback: Loopback) -> None:
    with pytest.raises(Refusal, match="64 hex digits, got 16 characters"):
        fetch(loopback.enroll("A", server.port), "../../etc/passwd", 100)


def test_a_revoked_site_fetches_nothing(server: LinkServer, loopback: Loopback) -> None:
    config = loopback.enroll("A", server.port)
    loopback.roster.revoke("A")
    with pytest.raises(Refusal, match="revoked"):
        fetch(config, JOB, len(ADAPTER))


def test_a_fetch_from_nobody_says_why(loopback: Loopback) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LinkDown) as caught:
        fetch(loopback.enroll("A", port), JOB, 100)
    assert "refused" in str(caught.value) or "nothing listens" in str(caught.value)


def test_two_fetches_of_one_site_at_once_are_one_too_many(loopback: Loopback) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def slow(site: str, job_sha256: str) -> bytes:
        is_asked.set()
        may_answer.wait(20)
        return ADAPTER

    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, fetch=slow)
    link.start()
    config = loopback.enroll("A", link.port)
    got: list[bytes] = []
    first = threading.Thread(target=lambda: got.append(fetch(config, JOB, len(ADAPTER))))
    first.start()
    assert is_asked.wait(20)
    with pytest.raises(Refusal, match="one job at a time"):
        fetch(config, JOB, len(ADAPTER))
    may_answer.set()
    first.join(20)
    link.stop()
    assert got == [ADAPTER]


def test_a_fetch_that_is_still_read_is_one_at_a_time_too(loopback: Loopback) -> None:
    adapter = bytes(32 * 2**20)  # more than is sent to somebody who does not read
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, fetch=lambda *_: adapter)
    link.start()
    config = loopback.enroll("A", link.port)
    request = wire.FetchRequest(job_sha256=JOB).SerializeToString()
    with open_channel(config.server, config.credentials) as channel:
        slow = channel.unary_stream(f"/{SERVICE}/{FETCH}")(request)
        assert next(slow)
        with pytest.raises(Refusal, match="one job at a time"):
            fetch(config, JOB, len(adapter))
        slow.cancel()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(Refusal):
            assert fetch(config, JOB, len(adapter)) == adapter
            break
    for _ in range(3):  # each ends its stream before the next begins
        assert fetch(config, JOB, len(adapter)) == adapter
    link.stop()


def test_a_key_never_shows_in_a_repr(loopback: Loopback) -> None:
    credentials = loopback.credentials
    config = LinkConfig("h:1", b"root", b"chain", b"-----secret", "A")
    assert "PRIVATE" not in repr(credentials)
    assert "secret" not in repr(config)
    assert "secret" not in repr(Credentials(b"r", b"c", b"-----secret"))


# --- why handshakes fail: gRPC's lines were recorded from grpcio 1.85.1 --------------------------


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (
            "error:100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: "
            "Invalid certificate verification context",
            "no client certificate",
        ),
        (
            "error:1a000064:ECDSA routines:OPENSSL_internal:BAD_SIGNATURE: "
            "certificate signature failure",
            "not signed by this federation's root",
        ),
        (
            "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: "
            "unsupported certificate purpose",
            "not for clients",
        ),
        (
            "error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: moon phase",
            "certificate refused: moon phase",
        ),
        (
            "error:100000aa:SSL routines:OPENSSL_internal:SOMETHING_NEW: x",
            "handshake failed: something new",
        ),
        ("nobody knows", "handshake failed: Handshake failed with error SSL_ERROR_SSL: nobody"),
    ],
)
def test_grpc_s_line_becomes_words(tail: str, words: str) -> None:
    cause = cause_of(f"Handshake failed with error SSL_ERROR_SSL: {tail}")
    assert cause is not None
    assert words in cause


def test_other_lines_are_no_handshakes() -> None:
    assert cause_of("FD from fork parent still in poll list") is None


SERVER = """
import subprocess, sys, threading, time
from pathlib import Path
from server.link import LinkServer
from simulations.loopback import HOST, make_loopback
from common import log
log.configure()
folder = Path(sys.argv[1])
loopback = make_loopback(folder)
(folder / "root.pem").write_bytes(loopback.root.certificate)
config = loopback.enroll("A", 1)
(folder / "site.pem").write_bytes(config.certificate_pem)
(folder / "site.key").write_bytes(config.key_pem)
link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, names_handshakes=True)
link.start()
print("a line of python's", file=sys.stderr, flush=True)
subprocess.run(["sh", "-c", "echo a line of a child >&2"], check=True)
print(link.port, flush=True)
sys.stdin.read()
link.stop()
print("after the stop", file=sys.stderr, flush=True)
"""


def served(folder: Path) -> "subprocess.Popen[str]":
    """A server as a process of its own, which prints its port first."""
    command, pipe = [sys.executable, "-c", SERVER, str(folder)], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_the_server_s_log_says_why_handshakes_fail(tmp_path: Path) -> None:
    with served(tmp_path) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        knock(port, tmp_path)
        _, log = process.communicate(timeout=30)
    lines = [line for line in log.splitlines() if "handshake refused" in line]
    causes = " | ".join(lines)
    assert "no client certificate" in causes
    assert "TLS 1.2, and only 1.3 is served" in causes
    assert "plaintext: an HTTP request" in causes
    assert "no TLS: plaintext or garbage" in causes
    assert len(lines) == 4
    assert "a line of python's" in log
    assert "a line of a child" in log
    assert log.rstrip().endswith("after the stop")
    assert "not suitable for production" not in log


def knock(port: int, folder: Path) -> None:
    """Four clients that a server must not serve."""
    import ssl

    for version, certificate in ((ssl.TLSVersion.TLSv1_3, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.create_default_context(cafile=folder / "root.pem")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        if certificate:
            context.load_cert_chain(folder / "site.pem", folder / "site.key")
        with socket.create_connection((HOST, port), timeout=20) as raw:
            try:
                with context.wrap_socket(raw, server_hostname=HOST) as wrapped:
                    wrapped.recv(1)
            except (ssl.SSLError, ConnectionError):
                continue
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64):
        with socket.create_connection((HOST, port), timeout=20) as raw:
            raw.sendall(data)
            try:
                raw.recv(1)
            except ConnectionError:
                continue
    time.sleep(0.2)  # gRPC writes its line from a thread of its own


def test_handshakes_that_fail_without_end_are_told_by_a_count(tmp_path: Path) -> None:
    with served(tmp_path) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for _ in range(MOST_A_MINUTE + 5):
            with socket.create_connection((HOST, port), timeout=20) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    raw.recv(1)
        time.sleep(0.2)  # as above
        _, log = process.communicate(timeout=30)
    lines = [line for line in log.splitlines() if "handshake refused" in line]
    assert len(lines) == MOST_A_MINUTE + 1
    assert "count=5" in lines[-1]


def test_a_handshake_log_that_never_started_may_be_stopped() -> None:
    HandshakeLog().stop()


def test_a_refused_fetch_is_logged_with_its_site(server: LinkServer, loopback: Loopback) -> None:
    config = loopback.enroll("B", server.port)
    with capture_logs() as events, pytest.raises(Refusal):
        fetch(config, JOB, 100)
    assert [event["site"] for event in events if event["event"] == "fetch refused"] == ["B"]


def test_a_revoked_site_that_comes_again_and_again_is_told_by_a_count(
    loopback: Loopback,
) -> None:
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, fetch=stored)
    link.start()
    config = loopback.enroll("C", link.port)
    loopback.roster.revoke("C")
    request = wire.FetchRequest(job_sha256=JOB).SerializeToString()
    with (
        capture_logs() as events,
        open_channel(config.server, config.credentials) as channel,
    ):
        for _ in range(MOST_A_MINUTE + 3):
            list(channel.unary_stream(f"/{SERVICE}/{FETCH}")(request, timeout=20))
        link.stop()
    warned = [event for event in events if event["event"].startswith("fetch refused")]
    assert [event["event"] for event in warned[:-1]] == ["fetch refused"] * MOST_A_MINUTE
    assert (warned[-1]["kind"], warned[-1]["count"]) == ("C", 3)
