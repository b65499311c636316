"""Who would keep the link busy for nothing: sites are served meanwhile, and nothing is left."""

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from client.session import LinkConfig
from common import pki
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import FETCH, RENEW, SERVICE, SESSION, Credentials, open_channel
from server.link import LinkServer
from simulations.loopback import HOST, Loopback, make_loopback

PATIENCE_S = 30.0
HALF_OPEN = 400
THREADS = 24  # of the link, where a test takes them up


@pytest.fixture
def loopback(tmp_path: Path) -> Loopback:
    return make_loopback(tmp_path)


@pytest.fixture
def server(loopback: Loopback) -> Iterator[LinkServer]:
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster)
    link.start()
    yield link
    link.stop()


def require_served(server: LinkServer, config: LinkConfig) -> None:
    """A good site is welcomed."""
    credentials = Credentials(config.root_pem, config.certificate_pem, config.key_pem)
    over = threading.Event()

    def hello() -> Iterator[bytes]:
        yield framing.hello("test")
        over.wait(PATIENCE_S)

    with open_channel(config.server, credentials) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(hello(), timeout=PATIENCE_S)
        assert framing.parse(next(call)).WhichOneof("body") == "welcome"
        over.set()
        call.cancel()
    ready = threading.Event()
    while config.site in server.connected():
        ready.wait(0.01)


def test_a_site_is_served_beside_400_half_open_connections(
    server: LinkServer, loopback: Loopback
) -> None:
    with ExitStack() as stack:
        for number in range(HALF_OPEN):
            raw = stack.enter_context(socket.create_connection((HOST, server.port), PATIENCE_S))
            if number % 2:  # the beginning of a ClientHello
                raw.sendall(bytes.fromhex("16030100ff010000"))
        require_served(server, loopback.enroll("A", server.port))
    require_served(server, loopback.enroll("B", server.port))


@pytest.mark.slow
def test_half_open_connections_are_closed_by_the_handshakes_deadline(
    server: LinkServer,
) -> None:
    with ExitStack() as stack:
        raws = [
            stack.enter_context(socket.create_connection((HOST, server.port), PATIENCE_S))
            for _ in range(HALF_OPEN)
        ]
        for raw in raws:
            with suppress(ConnectionError):
                while raw.recv(4096):
                    pass


def handshaken(config: LinkConfig, folder: Path) -> ssl.SSLSocket:
    """A TLS connection of a good site on which a test writes HTTP/2 by hand."""
    for name, pem in (("c", config.certificate_pem), ("k", config.key_pem), ("r", config.root_pem)):
        (folder / name).write_bytes(pem)
    context = ssl.create_default_context(cafile=folder / "r")
    context.load_cert_chain(folder / "c", folder / "k")
    context.set_alpn_protocols(["h2"])
    raw = socket.create_connection((HOST, int(config.server.rpartition(":")[2])), PATIENCE_S)
    return context.wrap_socket(raw, server_hostname=HOST)


def h2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of RFC 9113, section 4.1."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


DATA, HEADERS, RESET, SETTINGS, PING = 0, 1, 3, 4, 6
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2(SETTINGS, 0, 0, b"")


def literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing, RFC 7541, section 6.2.2."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


# :method POST and :scheme https are entries 3 and 7 of the static table.
def headers_of(method: str) -> bytes:
    return (
        b"\x83\x87"
        + literal(b":path", f"/{SERVICE}/{method}".encode())
        + literal(b":authority", b"x")
        + literal(b"content-type", b"application/grpc")
        + literal(b"te", b"trailers")
    )


CALL = headers_of(SESSION)
FLOODS = {
    "rapid reset": [
        h2(HEADERS, 4, n, CALL) + h2(RESET, 0, n, b"\0\0\0\x08") for n in range(1, 6001, 2)
    ],
    "streams": [h2(HEADERS, 4, n, CALL) for n in range(1, 6001, 2)],
    "pings": [h2(PING, 0, 0, bytes(8)) for _ in range(3000)],
    "settings": [h2(SETTINGS, 0, 0, b"") for _ in range(3000)],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_http2_frames_costs_its_own_connection_alone(
    server: LinkServer, loopback: Loopback, tmp_path: Path, flood: str
) -> None:
    config, other = (loopback.enroll(name, server.port) for name in "AB")
    require_served(server, other)
    before = psutil.Process().memory_info().rss
    with handshaken(config, tmp_path) as wrapped:
        wrapped.settimeout(PATIENCE_S)
        with suppress(OSError):  # the server may have had enough before the end
            wrapped.sendall(PREFACE)
            for frame in FLOODS[flood]:
                wrapped.sendall(frame)
        require_served(server, other)
    assert psutil.Process().memory_info().rss - before < 64 << 20
    require_served(server, config)


def test_a_compressed_frame_is_not_blown_up_past_a_frame_s_size(
    server: LinkServer, loopback: Loopback
) -> None:
    """64 MB of zeros are 64 kB with gzip: gRPC's limit is on what comes out."""
    config = loopback.enroll("A", server.port)
    credentials = grpc.ssl_channel_credentials(
        config.root_pem, config.key_pem, config.certificate_pem
    )
    options = [("grpc.max_send_message_length", -1)]
    over = threading.Event()

    def frames() -> Iterator[bytes]:
        yield framing.hello("test")
        yield bytes(64 << 20)
        over.wait(PATIENCE_S)

    with grpc.secure_channel(config.server, credentials, options=options) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(
            frames(), timeout=PATIENCE_S, compression=grpc.Compression.Gzip
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        over.set()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    require_served(server, loopback.enroll("B", server.port))


def test_a_certificate_that_signed_itself_is_refused(
    server: LinkServer, loopback: Loopback
) -> None:
    key_pem, csr = pki.new_site_key_and_csr("A")
    good = pki.load_certificates(pki.issue_site(csr, loopback.intermediate))[0]
    builder = x509.CertificateBuilder(
        issuer_name=good.subject,
        subject_name=good.subject,
        public_key=good.public_key(),
        serial_number=good.serial_number,
        not_valid_before=good.not_valid_before_utc,
        not_valid_after=good.not_valid_after_utc,
        extensions=list(good.extensions),
    )
    own = builder.sign(pki.load_key(key_pem), hashes.SHA256()).public_bytes(Encoding.PEM)
    credentials = Credentials(loopback.root.certificate, own, key_pem)
    with open_channel(f"{HOST}:{server.port}", credentials) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(iter([framing.hello("x")]))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    require_served(server, loopback.enroll("A", server.port))


# --- calls that keep their request to themselves -------------------------------------------------


@pytest.fixture
def small(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> Iterator[LinkServer]:
    """A server with few threads, and a call that takes one request."""
    monkeypatch.setattr("server.link._CALLS", THREADS)
    monkeypatch.setattr("server.link._SWEEP_S", 0.05)
    answers = {
        RENEW: lambda site, serial, data: framing.refusal(wire.Refusal.UNSPECIFIED, "not today")
    }
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, answers=answers)
    link.start()
    yield link
    link.stop()


@contextmanager
def silent_calls(config: LinkConfig, folder: Path, method: str) -> Iterator[None]:
    """Twice as many calls as there are threads, with the most of a connection; no request comes."""
    with ExitStack() as stack:
        for _ in range(THREADS // 2):
            wrapped = stack.enter_context(handshaken(config, folder))
            wrapped.sendall(PREFACE)
            for stream in range(1, 9, 2):
                wrapped.sendall(h2(HEADERS, 4, stream, headers_of(method)))
            wrapped.sendall(h2(PING, 0, 0, b"all read"))
            read = b""
            while b"all read" not in read:  # the answer to it comes after the calls were taken up
                read += wrapped.recv(4096)
        yield


@pytest.mark.parametrize("method", [RENEW, FETCH])
@pytest.mark.parametrize("is_revoked", [True, False], ids=["revoked", "enrolled"])
def test_a_site_that_opens_calls_and_sends_no_request_locks_nobody_out(
    small: LinkServer, loopback: Loopback, tmp_path: Path, method: str, *, is_revoked: bool
) -> None:
    good, bad = (loopback.enroll(name, small.port) for name in "AC")
    if is_revoked:
        loopback.roster.revoke("C")
    with silent_calls(bad, tmp_path, method):
        require_served(small, good)


def test_refusals_that_a_revoked_site_does_not_read_lock_nobody_out(
    small: LinkServer, loopback: Loopback, tmp_path: Path
) -> None:
    good, bad = (loopback.enroll(name, small.port) for name in "AC")
    loopback.roster.revoke("C")
    no_window = h2(SETTINGS, 0, 0, struct.pack("!HI", 4, 0))  # RFC 9113: nothing may be sent us
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.PREFACE", PREFACE + no_window)
        with silent_calls(bad, tmp_path, SESSION):
            require_served(small, good)


def test_a_call_whose_request_does_not_come_is_ended(
    small: LinkServer, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calls.REQUEST_S", 0.2)
    config = loopback.enroll("A", small.port)
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(PATIENCE_S)
        yield from ()

    with open_channel(config.server, config.credentials) as channel:
        for method in (RENEW, FETCH):
            call = channel.stream_stream(f"/{SERVICE}/{method}")(nothing(), timeout=PATIENCE_S)
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        over.set()
        empty = channel.stream_unary(f"/{SERVICE}/{RENEW}")(iter(()), timeout=PATIENCE_S)
    assert framing.parse(empty).refusal.words == "call must bring a request, got none"


def test_a_revocation_that_comes_before_the_request_is_heeded(
    small: LinkServer, loopback: Loopback
) -> None:
    config = loopback.enroll("C", small.port)

    def late() -> Iterator[bytes]:
        while not small._calls._waiting:
            threading.Event().wait(0.01)
        loopback.roster.revoke("C")
        yield b"request"

    with open_channel(config.server, config.credentials) as channel:
        answer = channel.stream_unary(f"/{SERVICE}/{RENEW}")(late(), timeout=PATIENCE_S)
    assert "certificate of C must not be revoked" in framing.parse(answer).refusal.words


def test_a_call_that_was_broken_off_gives_its_place_back(
    small: LinkServer, loopback: Loopback
) -> None:
    config = loopback.enroll("A", small.port)
    for _ in range(3):
        require_served(small, config)
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if not small._calls._held:
            return
        pause.wait(0.05)
    pytest.fail("a place was kept")
