"""The probe against servers that fail in each way; the TLS ends are grpcio's and OpenSSL's own."""

import contextlib
import datetime as dt
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

import common.link  # noqa: F401 -- sets gRPC's ciphers before its first import
from client.probe import diagnose
from common import pki

NOW = dt.datetime.now(dt.UTC)
ROOT = pki.create_root("north")
INTERMEDIATE = pki.create_intermediate(ROOT)
SERVER = pki.issue_server(INTERMEDIATE, ["127.0.0.1", "localhost"])
OTHER_ROOT = pki.create_root("north")  # of the same name, as a second federation's may be
OTHER_INTERMEDIATE = pki.create_intermediate(OTHER_ROOT)
TAKEN = "answers and takes our certificate"
TURNED_AWAY = "turned our certificate away"


def site_credential(
    site: str = "A",
    *,
    issuer: pki.Credential = INTERMEDIATE,
    days: int = 90,
    now: dt.datetime = NOW,
) -> pki.Credential:
    key, csr = pki.new_site_key_and_csr(site)
    return pki.Credential(pki.issue_site(csr, issuer, days=days, now=now), key)


SITE = site_credential()


def probe(
    server: str,
    *,
    credential: pki.Credential = SITE,
    root: pki.Credential = ROOT,
    site: str = "A",
    timeout_s: float = 2.0,
) -> str:
    sentence = diagnose(
        server, root.certificate, credential.certificate, credential.key, site, timeout_s=timeout_s
    )
    assert "\n" not in sentence
    assert len(sentence) < 300
    return sentence


@contextlib.contextmanager
def grpc_server(
    credential: pki.Credential | None = SERVER, root: pki.Credential = ROOT
) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    if credential:
        pair = [(credential.key, credential.certificate)]
        tls = grpc.ssl_server_credentials(pair, root.certificate, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", tls)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def socket_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats each connection with ``answer`` and closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)


def tls_context(folder: Path, root: pki.Credential = ROOT) -> ssl.SSLContext:
    """An OpenSSL server that requires a client certificate under ``root``."""
    (folder / "pair.pem").write_bytes(SERVER.certificate + SERVER.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pair.pem")
    context.load_verify_locations(cadata=root.certificate.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def talk(context: ssl.SSLContext, reply: bytes = b"") -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            if reply:
                wrapped.sendall(reply)
            wrapped.recv(1)

    return answer


def test_a_server_that_accepts_us_is_said_to() -> None:
    with grpc_server() as server:
        assert TAKEN in probe(server)
        assert TAKEN in probe(server.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a.b.invalid"])
def test_a_name_that_does_not_resolve_is_named(host: str) -> None:
    assert probe(f"{host}:8443") == f"server name {host!r} does not resolve"


def test_a_closed_port_refuses_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refused the connection" in probe(f"127.0.0.1:{port}")


@pytest.mark.parametrize("server", ["", "host", "host:port", ":1", "a b:1", "[::1:8", "h:99999"])
def test_a_malformed_address_is_an_answer_too(server: str) -> None:
    assert "must be" in probe(server)


def test_a_full_backlog_times_out() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fill the backlog, so that further connection requests are dropped
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        sentence = probe(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)
    assert "did not answer within 0.3 s" in sentence


def test_a_plaintext_grpc_server_is_recognised() -> None:
    with grpc_server(credential=None) as server:
        assert "answers without TLS" in probe(server)


@pytest.mark.parametrize(
    "words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00" * 64, b"\xff" * 64]
)
def test_a_server_of_another_protocol_is_recognised(words: bytes) -> None:
    with socket_server(lambda connection: connection.sendall(words)) as server:
        sentence = probe(server)
    assert "answers without TLS" in sentence or "closed the connection" in sentence


def test_random_bytes_always_get_a_sentence() -> None:
    with socket_server(lambda connection: connection.sendall(os.urandom(256))) as server:
        for _ in range(20):
            assert server in probe(server)


def test_a_silent_server_times_out_in_the_handshake() -> None:
    def say_nothing(connection: socket.socket) -> None:
        while connection.recv(10_000):
            pass

    with socket_server(say_nothing) as server:
        assert "no TLS handshake within 0.2 s" in probe(server, timeout_s=0.2)


def test_a_server_that_hangs_up_is_said_to() -> None:
    with socket_server(lambda connection: None) as server:
        assert "closed the connection in the TLS handshake" in probe(server)


def test_a_server_without_tls_13_is_named(tmp_path: Path) -> None:
    context = tls_context(tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket_server(talk(context)) as server:
        assert "does not speak TLS 1.3" in probe(server)


@pytest.mark.parametrize(
    ("credential", "words"),
    [
        (pki.issue_server(INTERMEDIATE, ["other.example"]), "is for another address"),
        (pki.issue_server(OTHER_INTERMEDIATE, ["127.0.0.1"]), "another root than ours"),
        (site_credential(), "is not for use as a server"),
    ],
)
def test_a_servers_certificate_that_does_not_fit_is_named(
    credential: pki.Credential, words: str
) -> None:
    with grpc_server(credential) as server:
        assert words in probe(server)


def test_another_host_name_is_named() -> None:
    with grpc_server(pki.issue_server(INTERMEDIATE, ["other.example"])) as server:
        assert "another host name" in probe(server.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize(("shift", "words"), [(-731, "has expired"), (10, "is not valid yet")])
def test_a_servers_certificate_out_of_its_time_is_named(shift: int, words: str) -> None:
    # The authorities hold today; only the leaf is out of its time.
    long_lived = pki.Credential(INTERMEDIATE.certificate, INTERMEDIATE.key)
    leaf = pki.issue_server(long_lived, ["127.0.0.1"], now=NOW + dt.timedelta(days=shift))
    with grpc_server(leaf) as server:
        assert words in probe(server)


def test_our_own_certificate_is_checked_before_anything_is_sent() -> None:
    nowhere = "127.0.0.1:1"
    expired = site_credential(days=1, now=NOW - dt.timedelta(days=3))
    early = site_credential(now=NOW + dt.timedelta(days=3))
    foreign = site_credential(issuer=OTHER_INTERMEDIATE)
    swapped = pki.Credential(SITE.certificate, site_credential().key)
    assert "expired on" in probe(nowhere, credential=expired)
    assert "not valid before" in probe(nowhere, credential=early)
    assert "another root" in probe(nowhere, credential=foreign)
    assert "must be for site B, got one for A" in probe(nowhere, site="B")
    assert "got another" in probe(nowhere, credential=swapped)
    assert "another purpose" in probe(nowhere, credential=SERVER)
    assert "must be" in probe(nowhere, credential=pki.Credential(b"junk", b"junk"))


def test_a_grpc_server_that_trusts_another_root_turns_us_away() -> None:
    with grpc_server(root=OTHER_ROOT) as server:
        assert TURNED_AWAY in probe(server)


def test_an_openssl_server_says_why_it_turns_us_away(tmp_path: Path) -> None:
    with socket_server(talk(tls_context(tmp_path, root=OTHER_ROOT))) as server:
        assert f"{TURNED_AWAY}: it trusts another root" in probe(server)


def test_a_tls_server_that_is_no_grpc_server_is_recognised(tmp_path: Path) -> None:
    with socket_server(talk(tls_context(tmp_path), b"220 ready\r\n")) as server:
        assert "speaks TLS but not HTTP/2" in probe(server)


def test_a_tls_server_that_says_nothing_is_recognised(tmp_path: Path) -> None:
    with socket_server(talk(tls_context(tmp_path))) as server:
        assert "sent nothing within 0.3 s" in probe(server, timeout_s=0.3)


def test_the_key_is_in_no_sentence() -> None:
    with grpc_server(root=OTHER_ROOT) as server:
        assert "PRIVATE" not in probe(server)
