"""Who and what the link turns away, over real TLS on 127.0.0.1, and that it lives on after."""

import datetime as dt
import os
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from structlog.testing import capture_logs

from client.session import LinkConfig, State, run
from common import pki
from common.flower import become_server, message_from_bytes, message_to_bytes
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import SERVICE, SESSION, Credentials, open_channel
from common.link.framing import Assembler
from common.link.identity import node_id
from server.grid import LinkGrid
from server.link import LinkServer
from simulations.loopback import HOST, Loopback, make_loopback

JOB = "ab" * 32
CAP = 2_000_000
PATIENCE_S = 20.0


@pytest.fixture
def loopback(tmp_path: Path) -> Loopback:
    become_server()
    return make_loopback(tmp_path)


@pytest.fixture
def server(loopback: Loopback) -> Iterator[LinkServer]:
    link = LinkServer(f"{HOST}:0", loopback.credentials, loopback.roster, software="0.1.0")
    link.start()
    yield link
    link.stop()


def credentials(config: LinkConfig) -> Credentials:
    return Credentials(config.root_pem, config.certificate_pem, config.key_pem)


class RawSite:
    """A site that may send anything: the tests' own end of the stream."""

    def __init__(self, config: LinkConfig, first: bytes | None = None) -> None:
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.channel = open_channel(config.server, credentials(config))
        self.outgoing.put(framing.hello("test") if first is None else first)
        call = self.channel.stream_stream(f"/{SERVICE}/{SESSION}")
        self.call = call(iter(self.outgoing.get, None), timeout=PATIENCE_S)

    def next(self) -> wire.Frame:
        return framing.parse(next(self.call))

    def refusal(self) -> wire.Refusal:
        """The refusal that ends the session; letters before it are skipped."""
        frames = [framing.parse(data) for data in self.call]
        assert frames[-1].WhichOneof("body") == "refusal"
        return frames[-1].refusal

    def message(self) -> tuple[wire.MessageHeader, Message]:
        assembler = Assembler(lambda header: True)
        while (received := assembler.take(self.next())) is None:
            pass
        assert received.body is not None
        return received.header, message_from_bytes(received.body)

    def close(self) -> None:
        self.outgoing.put(None)
        self.channel.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., RawSite]]:
    sites: list[RawSite] = []

    def open_site(config: LinkConfig, first: bytes | None = None) -> RawSite:
        sites.append(RawSite(config, first))
        return sites[-1]

    yield open_site
    for site in sites:
        site.close()


def send(site: RawSite, body: bytes, **header: str) -> None:
    for frame in framing.split(body, **{"message_type": "train", "job_sha256": JOB, **header}):
        site.outgoing.put(frame)


def train(site: str, round_: int = 1) -> Message:
    content = RecordDict({"r": ConfigRecord({"round": round_})})
    return Message(content, node_id(site), "train", group_id=str(round_))


def answer(message: Message, value: int = 7) -> Message:
    return Message(RecordDict({"a": ConfigRecord({"value": value})}), reply_to=message)


def eventually(condition: Callable[[], bool]) -> None:
    ready = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        if condition():
            return
        ready.wait(0.02)
    pytest.fail("nothing happened")


def require_alive(server: LinkServer, config: LinkConfig, connect: Callable[..., RawSite]) -> None:
    """A good site still gets a session."""
    eventually(lambda: config.site not in server.connected())
    assert connect(config).next().WhichOneof("body") == "welcome"


def why_not(config: LinkConfig) -> str:
    """What the real client says of its first attempt."""
    stop, states = threading.Event(), queue.SimpleQueue[State]()

    def observe(state: State) -> None:
        states.put(state)
        stop.set()

    run(lambda: config, lambda m: m, lambda job: CAP, stop, observe)
    return states.get(timeout=PATIENCE_S).reason


# --- certificates -------------------------------------------------------------------------------


def test_no_client_certificate(server: LinkServer, loopback: Loopback) -> None:
    plain = grpc.ssl_channel_credentials(loopback.root.certificate)
    with grpc.secure_channel(f"{HOST}:{server.port}", plain) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(iter([framing.hello("x")]))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.connected() == set()


def test_a_certificate_of_another_root(
    server: LinkServer, loopback: Loopback, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = make_loopback(tmp_path / "other").enroll("A", server.port)
    assert "certificate" in why_not(replace(stranger, root_pem=loopback.root.certificate))


def test_a_server_of_another_root(server: LinkServer, loopback: Loopback, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_loopback(tmp_path / "other")
    config = replace(loopback.enroll("A", server.port), root_pem=other.root.certificate)
    assert "root" in why_not(config)


def test_an_expired_certificate(server: LinkServer, loopback: Loopback) -> None:
    key, csr = pki.new_site_key_and_csr("A")
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=200)
    root = pki.Credential(loopback.root.certificate, loopback.root.key)
    old = pki.create_intermediate(root, now=long_ago)
    chain = pki.issue_site(csr, old, days=90, now=long_ago)
    config = LinkConfig(f"{HOST}:{server.port}", loopback.root.certificate, chain, key, "A")
    assert "expired" in why_not(config)


def test_the_server_s_own_certificate_is_none_for_a_client(
    server: LinkServer, loopback: Loopback
) -> None:
    with open_channel(f"{HOST}:{server.port}", loopback.credentials) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(iter([framing.hello("x")]))
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_names_no_site(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    config = loopback.enroll("A", server.port)
    chain, key = misnamed(loopback, "veiltune://auditor/A")
    refusal = connect(replace(config, certificate_pem=chain, key_pem=key)).refusal()
    assert refusal.reason == wire.Refusal.IDENTITY
    assert "must name one site" in refusal.words


def misnamed(loopback: Loopback, uri: str) -> tuple[bytes, bytes]:
    """A chain that TLS accepts, for a name that is no site's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key, csr = pki.new_site_key_and_csr("A")
    good = pki.load_certificates(pki.issue_site(csr, loopback.intermediate))[0]
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.subject)
        .issuer_name(good.issuer)
        .public_key(good.public_key())
        .serial_number(good.serial_number)
        .not_valid_before(good.not_valid_before_utc)
        .not_valid_after(good.not_valid_after_utc)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    leaf = builder.sign(pki.load_key(loopback.intermediate.key), hashes.SHA256())
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    return pem + loopback.intermediate.certificate, key


def test_a_certificate_that_the_roster_does_not_hold(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    key, csr = pki.new_site_key_and_csr("A")
    chain = pki.issue_site(csr, loopback.intermediate)
    config = LinkConfig(f"{HOST}:{server.port}", loopback.root.certificate, chain, key, "A")
    refusal = connect(config).refusal()
    assert refusal.reason == wire.Refusal.ROSTER
    assert "enrolled" in refusal.words


def test_a_revoked_certificate_gets_no_session_and_hears_why(
    server: LinkServer, loopback: Loopback
) -> None:
    config = loopback.enroll("A", server.port)
    loopback.roster.revoke("A")
    assert "revoked" in why_not(config)


def test_a_site_revoked_in_mid_session_gets_no_further_message(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    assert site.next().WhichOneof("body") == "welcome"
    loopback.roster.revoke("A")
    grid = LinkGrid(server, ["A"], CAP, JOB)
    grid.push_messages([train("A")])
    refusal = site.refusal()  # and no message before it
    assert refusal.reason == wire.Refusal.ROSTER
    assert "revoked" in refusal.words
    assert server.connected() == set()


def test_a_site_revoked_while_it_trains_is_not_listened_to(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    grid = LinkGrid(server, ["A"], CAP, JOB)
    site.next()
    (message_id,) = grid.push_messages([train("A")])
    _, message = site.message()
    loopback.roster.revoke("A")
    send(site, message_to_bytes(answer(message)), reply_to=message_id)
    assert site.refusal().reason == wire.Refusal.ROSTER
    assert grid.pull_messages([message_id]) == []


def test_a_revoked_site_that_idles_is_cut_when_the_next_round_counts_its_sites(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    site.next()
    assert server.connected() == {"A"}
    loopback.roster.revoke("A")
    assert server.connected() == set()
    assert "revoked" in site.refusal().words


# --- below gRPC ---------------------------------------------------------------------------------


def tls(server: LinkServer, config: LinkConfig, version: ssl.TLSVersion, folder: Path) -> str:
    """The version that a handshake with the site's certificate agrees on."""
    for name, pem in (("c", config.certificate_pem), ("k", config.key_pem), ("r", config.root_pem)):
        (folder / name).write_bytes(pem)
    context = ssl.create_default_context(cafile=folder / "r")
    context.load_cert_chain(folder / "c", folder / "k")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((HOST, server.port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname=HOST) as wrapped,
    ):
        return str(wrapped.version())


def test_tls_1_2_is_refused_and_1_3_works(
    server: LinkServer, loopback: Loopback, tmp_path: Path
) -> None:
    config = loopback.enroll("A", server.port)
    assert tls(server, config, ssl.TLSVersion.TLSv1_3, tmp_path) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        tls(server, config, ssl.TLSVersion.TLSv1_2, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes.fromhex("16030100ff") + os.urandom(40),  # a TLS record that is cut short
        os.urandom(5000),
    ],
    ids=["http", "http2", "cut short", "noise"],
)
def test_plaintext_and_garbage_end_their_connection_alone(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite], data: bytes
) -> None:
    with socket.create_connection((HOST, server.port), timeout=PATIENCE_S) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while raw.recv(4096):
                pass
    require_alive(server, loopback.enroll("A", server.port), connect)


def test_plaintext_grpc_is_refused(server: LinkServer) -> None:
    with grpc.insecure_channel(f"{HOST}:{server.port}") as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(iter([framing.hello("x")]))
        with pytest.raises(grpc.RpcError):
            list(call)
    assert server.connected() == set()


# --- inside a session ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (b"\xff\xff\xff\xff", "frame must parse, got 4 bytes that do not"),
        (b"", "frame must have a known kind"),
        (framing.welcome("x"), "first frame must be a hello, got a welcome"),
        (
            wire.Frame(hello=wire.Hello(protocol=99)).SerializeToString(),
            "protocol version must be 1, got 99",
        ),
    ],
)
def test_a_session_that_does_not_begin_with_a_hello(
    server: LinkServer,
    loopback: Loopback,
    connect: Callable[..., RawSite],
    first: bytes,
    words: str,
) -> None:
    config = loopback.enroll("A", server.port)
    refusal = connect(config, first).refusal()
    assert refusal.reason == wire.Refusal.PROTOCOL
    assert words in refusal.words
    require_alive(server, config, connect)


def test_garbage_in_a_session_ends_it_with_one_line_in_the_log(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    config = loopback.enroll("A", server.port)
    with capture_logs() as events:
        site = connect(config)
        site.next()
        site.outgoing.put(b"\xff" * 37)
        assert site.refusal().reason == wire.Refusal.PROTOCOL
        eventually(lambda: server.connected() == set())
    warnings = [event for event in events if event["log_level"] == "warning"]
    assert [event["site"] for event in warnings] == ["A"]
    assert "got 37 bytes" in warnings[0]["reason"]
    require_alive(server, config, connect)


def announce(total_bytes: int, *, job_sha256: str = "", reply_to: str = "") -> bytes:
    head = wire.MessageHeader(
        total_bytes=total_bytes, message_type="train", job_sha256=job_sha256, reply_to=reply_to
    )
    return wire.Frame(header=head).SerializeToString()


def test_an_oversize_message_without_a_known_job_is_refused_by_its_header(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    config = loopback.enroll("A", server.port)
    site = connect(config)
    site.outgoing.put(announce(256 * 1024 + 1, job_sha256="cd" * 32))
    assert "at most 262144 bytes, got 262145 announced" in site.refusal().words
    require_alive(server, config, connect)


def test_an_oversize_reply_is_refused_by_its_header(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    (message_id,) = LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    site.outgoing.put(announce(CAP + 1, reply_to=message_id))
    assert f"at most {CAP} bytes, got {CAP + 1} announced" in site.refusal().words


def test_a_frame_larger_than_a_frame_ends_the_session_alone(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    config = loopback.enroll("A", server.port)
    unlimited = grpc.ssl_channel_credentials(
        config.root_pem, config.key_pem, config.certificate_pem
    )
    options = [("grpc.max_send_message_length", -1)]
    with grpc.secure_channel(config.server, unlimited, options=options) as channel:
        frames = iter([framing.hello("x"), bytes(framing.MAX_FRAME_BYTES + 1)])
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(f"/{SERVICE}/{SESSION}")(frames, timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    require_alive(server, config, connect)


def test_a_reply_with_another_hash_ends_the_session(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    (message_id,) = LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    site.outgoing.put(announce(5, reply_to=message_id, job_sha256=JOB))
    site.outgoing.put(wire.Frame(chunk=b"12345").SerializeToString())
    assert "sha256 must be the header's" in site.refusal().words


def test_a_reply_that_is_no_message_ends_the_session(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    (message_id,) = LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    send(site, b"\xff" * 99, reply_to=message_id)
    assert "must be a Flower message, got 99 bytes" in site.refusal().words


def test_a_reply_to_nothing_is_dropped_and_the_session_lives(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    site.next()
    with capture_logs() as events:
        send(site, b"x" * 1000, reply_to="ee" * 32)
        grid = LinkGrid(server, ["A"], CAP, JOB)
        (message_id,) = grid.push_messages([train("A")])
        _, message = site.message()
        send(site, message_to_bytes(answer(message)), reply_to=message_id)
        eventually(lambda: bool(grid.pull_messages([message_id])))
    dropped = [event for event in events if event["event"] == "reply dropped"]
    assert [(event["site"], event["bytes"]) for event in dropped] == [("A", 1000)]


def test_a_site_cannot_answer_for_another(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    mallory = connect(loopback.enroll("M", server.port))
    grid = LinkGrid(server, ["A", "M"], CAP, JOB)
    (message_id,) = grid.push_messages([train("A")])
    forged = train("A")
    forged.metadata.__dict__["_message_id"] = message_id
    send(mallory, message_to_bytes(answer(forged)), reply_to=message_id)
    assert "got one for another's" in mallory.refusal().words
    assert grid.pull_messages([message_id]) == []

    honest = connect(loopback.enroll("A", server.port))
    honest.next()
    _, message = honest.message()
    send(honest, message_to_bytes(answer(message)), reply_to=message_id)
    eventually(lambda: bool(grid.pull_messages([message_id])))


def test_a_reply_that_names_another_sender_ends_the_session(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    (message_id,) = LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    site.next()
    _, message = site.message()
    message.metadata.dst_node_id = node_id("B")  # becomes the reply's source
    send(site, message_to_bytes(answer(message)), reply_to=message_id)
    assert "must name its site as the sender" in site.refusal().words


def test_a_second_session_of_a_site_is_refused_and_the_first_lives(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    config = loopback.enroll("A", server.port)
    first = connect(config)
    first.next()
    refusal = connect(config).refusal()
    assert refusal.reason == wire.Refusal.BUSY
    assert "got a second" in refusal.words

    grid = LinkGrid(server, ["A"], CAP, JOB)
    (message_id,) = grid.push_messages([train("A")])
    _, message = first.message()
    send(first, message_to_bytes(answer(message)), reply_to=message_id)
    eventually(lambda: bool(grid.pull_messages([message_id])))


def test_a_reply_of_another_job_ends_the_session(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    (message_id,) = LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    site.next()
    _, message = site.message()
    body = message_to_bytes(answer(message))
    send(site, body, reply_to=message_id, job_sha256="cd" * 32)
    assert "must be of its message's job" in site.refusal().words


def test_a_reply_of_another_type_ends_the_session(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    (message_id,) = LinkGrid(server, ["A"], CAP, JOB).push_messages([train("A")])
    site.next()
    _, message = site.message()
    message.metadata.message_type = "evaluate"
    body = message_to_bytes(answer(message))
    send(site, body, reply_to=message_id, message_type="evaluate")
    assert "must be of its message's type" in site.refusal().words


def test_a_second_reply_to_one_message_is_dropped(
    server: LinkServer, loopback: Loopback, connect: Callable[..., RawSite]
) -> None:
    site = connect(loopback.enroll("A", server.port))
    grid = LinkGrid(server, ["A"], CAP, JOB)
    (message_id,) = grid.push_messages([train("A")])
    site.next()
    _, message = site.message()
    with capture_logs() as events:
        for value in (11, 12):
            send(site, message_to_bytes(answer(message, value)), reply_to=message_id)
        eventually(lambda: any(event["event"] == "reply dropped" for event in events))
    (reply,) = grid.pull_messages([message_id])
    assert reply.content.config_records["a"]["value"] == 11
    assert server.connected() == {"A"}


def test_a_site_that_never_says_hello_is_not_waited_for(
    server: LinkServer, loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.session._HELLO_TIMEOUT_S", 0.2)
    config = loopback.enroll("A", server.port)
    nothing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with open_channel(config.server, credentials(config)) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{SESSION}")(iter(nothing.get, None))
        frames = [framing.parse(data) for data in call]
        nothing.put(None)
    assert "hello must come within" in frames[-1].refusal.words
    assert server.connected() == set()
