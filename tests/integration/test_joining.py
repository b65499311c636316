"""First contact by a token over real TLS, and what does not get in by one."""

import datetime as dt
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from client.config import load_home
from client.enrolment import init_site, install
from client.identity import read_identity
from client.joining import join
from client.renewal import renew
from common import pki
from common.bundle import read_bundle
from common.errors import InvalidInput, LinkDown, Refusal
from common.failpoints import VARIABLE
from common.files import as_path
from common.flower import become_server
from common.invitation import Token, new_secret
from common.link import first_contact as wire
from common.link.channel import Credentials
from server import joining, throttle
from server.certificate import ServerCertificate
from server.daemon import Daemon
from server.enrolment import enroll, init_server, invite, revoke
from server.invitations import Invitations
from server.repeats import MOST_A_MINUTE
from server.roster import Roster
from tests.integration.live import (
    HOST,
    PATIENCE_S,
    eventually,
    free_port,
    is_open,
    running_daemon,
)

NOW = dt.datetime.now(dt.UTC)


def invited(server: Path, site: str = "A", **options: object) -> Token:
    """A token whose port is open."""
    token = invite(server, site, **options).token  # type: ignore[arg-type]
    eventually(lambda: is_open(token))
    return token


def admitted(server: Path, site: str = "A") -> list[str]:
    """The keys of a site whose certificates stand."""
    entries = Roster(server / "roster.json").sites().get(site, ())
    return sorted({entry.key_sha256 for entry in entries if entry.stands(NOW)})


def test_a_site_joins_by_a_token_and_its_certificate_works(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    token = invited(server)
    made = join(tmp_path / "A", "A", token, max_epsilon=3.5)
    assert made.days_left in (29, 30)
    assert made.root_sha256 == token.root_sha256
    home = load_home(tmp_path / "A", "A")
    assert home.config.policy.max_epsilon == 3.5
    operator = (server / "pki/operator.pub").read_text().strip()
    assert home.config.policy.allowed_signers == (operator,)
    renew(home)  # the link takes it
    assert len(admitted(server)) == 1


def test_the_port_is_open_only_while_an_invitation_stands(
    server: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("server.invitations._ASK_AGAIN", dt.timedelta(seconds=0.5))
    token = invited(server)
    join(tmp_path / "A", "A", token)
    eventually(lambda: not is_open(token))
    again = invited(server, "B", hours=0.5 / 3600)
    eventually(lambda: not is_open(again))
    third = invited(server, "C")
    assert Invitations(server).cancel("C") == 1
    eventually(lambda: not is_open(third))
    with pytest.raises(LinkDown, match="refused the connection: the port is open while"):
        join(tmp_path / "C", "C", third)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_a_port_on_every_address_takes_ipv4_and_ipv6(server: Path) -> None:
    def credentials() -> Credentials:
        return ServerCertificate(server).credentials

    port = free_port()
    joins = joining.JoinServer(f"[::]:{port}", server, credentials, throttle.Limit())
    joins.start()
    try:
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), PATIENCE_S).close()
    finally:
        joins.stop()


class Proxy:
    """Passes CONNECT on, or answers it with another status; ``asked`` is what it was asked."""

    def __init__(self, status: str = "200 Connection established") -> None:
        self.asked: list[str] = []
        self._status = status
        self._socket = socket.create_server((HOST, 0))
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed by the test
            while True:
                threading.Thread(
                    target=self._pass_on, args=(self._socket.accept()[0],), daemon=True
                ).start()

    def _pass_on(self, near: socket.socket) -> None:
        self.asked.append(near.recv(4096).split(b"\r\n")[0].decode())
        near.sendall(f"HTTP/1.1 {self._status}\r\n\r\n".encode())
        if not self._status.startswith("200"):
            near.close()
            return
        host, port = self.asked[-1].split(" ")[1].split(":")
        with near, socket.create_connection((host, int(port))) as far:
            threading.Thread(target=_pump, args=(far, near), daemon=True).start()
            _pump(near, far)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_a_site_joins_through_the_proxy_that_its_link_uses(
    server: Path, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = invited(server)
    with closing(Proxy()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        join(tmp_path / "A", "A", token)
        renew(load_home(tmp_path / "A", "A"))
    link = load_home(tmp_path / "A", "A").config.server
    assert proxy.asked[0] == f"CONNECT {token.address} HTTP/1.1"
    assert set(proxy.asked[1:]) == {f"CONNECT {link} HTTP/1.1"}
    assert len(admitted(server)) == 1


def test_a_proxy_that_does_not_let_a_site_through_is_named(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = invite(server, "A").token
    monkeypatch.delenv("no_proxy", raising=False)
    with closing(Proxy("403 Forbidden")) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        words = r"\(https_proxy\) does not let us through to .*: HTTP/1.1 403 .*pass CONNECT to"
        with pytest.raises(LinkDown, match=words):
            join(tmp_path / "A", "A", token)
    monkeypatch.setenv("https_proxy", f"http://{HOST}:1")
    with pytest.raises(LinkDown, match=r"proxy .* refused the connection"):
        join(tmp_path / "A", "A", token)
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(InvalidInput, match="https_proxy must be http://HOST:PORT"):
        join(tmp_path / "A", "A", token)


def test_a_token_works_once(server: Path, daemon: Daemon, tmp_path: Path) -> None:
    token = invited(server)
    join(tmp_path / "A", "A", token)
    first = admitted(server)
    with pytest.raises(Refusal, match="must be unused, got one that another key has used"):
        join(tmp_path / "thief", "A", token)
    assert admitted(server) == first


def test_a_site_whose_answer_was_lost_asks_again_and_gets_the_same_certificate(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    token = invited(server)
    first = join(tmp_path / "A", "A", token)
    assert join(tmp_path / "A", "A", token).certificate_sha256 == first.certificate_sha256
    assert len(Roster(server / "roster.json").sites()["A"]) == 1


def test_of_many_that_show_one_token_at_once_one_gets_in(
    server: Path, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.throttle.MOST_BY_CALLER", 6)
    token = invited(server)
    outcomes: list[str] = []

    def try_it(number: int) -> None:
        try:
            join(tmp_path / f"racer{number}", "A", token)
            outcomes.append("in")
        except Refusal as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert outcomes.count("in") == 1
    assert sum("another key has used" in outcome for outcome in outcomes) == 5
    assert len(admitted(server)) == 1


@pytest.mark.slow
def test_a_site_whose_certificate_has_expired_joins_again_with_the_key_it_has(
    tmp_path: Path,
) -> None:
    become_server()
    server, home, then = tmp_path / "server", tmp_path / "A", NOW - dt.timedelta(days=45)
    link, joins = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
    init_server(server, hosts=[HOST], address=link, listen=link, now=then)
    with (server / "server.toml").open("a") as file:
        file.write(f'join_listen = "{joins}"\njoin_address = "{joins}"\n')
    bundle = enroll(server, init_site(home, "A").csr, tmp_path, now=then).bundle
    install(home, "A", bundle, now=then)
    key = (home / "pki/site.key").read_bytes()
    assert admitted(server) == []
    with running_daemon(server):
        join(home, "A", invited(server))
        renew(load_home(home, "A"))  # the link takes it
    assert (home / "pki/site.key").read_bytes() == key
    assert len(admitted(server)) == 1


def test_a_token_is_for_its_site_alone(server: Path, daemon: Daemon, tmp_path: Path) -> None:
    token = invited(server, "A")
    with pytest.raises(Refusal, match="must be for the site that asks, B, got another's"):
        join(tmp_path / "B", "B", token)
    assert admitted(server, "B") == []
    join(tmp_path / "A", "A", token)  # it is not used up by that


def test_an_expired_token_and_a_made_up_one_are_refused(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    old = invite(server, "A", now=NOW - dt.timedelta(hours=25)).token
    token = invited(server, "B")
    words = "must stand, got one that was used, has expired or never was"
    with pytest.raises(Refusal, match=words):
        join(tmp_path / "A", "A", old)
    with pytest.raises(Refusal, match=words):
        join(tmp_path / "C", "C", Token(token.address, token.root_sha256, new_secret()))
    assert not (tmp_path / "A/pki/site.pem").exists()


def test_a_second_invitation_ends_the_first(server: Path, daemon: Daemon, tmp_path: Path) -> None:
    first = invite(server, "A").token
    second = invited(server, "A")
    with pytest.raises(Refusal, match="must stand"):
        join(tmp_path / "A", "A", first)
    join(tmp_path / "A", "A", second)


def test_a_token_outlives_a_restart_and_is_used_up_across_one(server: Path, tmp_path: Path) -> None:
    token = invite(server, "A").token
    for site in ("A", "thief"):
        running = Daemon(server)
        running.start()
        try:
            eventually(lambda: is_open(token))
            if site == "A":
                join(tmp_path / "A", "A", token)
            else:
                with pytest.raises(Refusal, match="another key has used"):
                    join(tmp_path / "thief", "A", token)
        finally:
            running.stop()
    assert not is_open(token)


def test_wrong_tokens_are_counted_and_the_right_one_waits_too(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    token = invited(server)
    wrong = Token(token.address, token.root_sha256, new_secret())
    for number in range(throttle.WRONG_BY_CALLER):
        with pytest.raises(Refusal, match="must stand"):
            join(tmp_path / f"guess{number}", "A", wrong)
    with pytest.raises(Refusal, match="too many wrong tokens came"):
        join(tmp_path / "A", "A", token)


def test_what_strangers_send_together_locks_no_invited_site_out(
    server: Path, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.throttle.WRONG_BY_ALL", 3)
    token = invited(server)
    wrong = Token(token.address, token.root_sha256, new_secret())
    for number in range(3):
        with pytest.raises(Refusal, match="must stand"):
            join(tmp_path / f"guess{number}", "A", wrong)
    with pytest.raises(Refusal, match="too many wrong tokens came"):
        join(tmp_path / "guess3", "A", wrong)
    join(tmp_path / "A", "A", token)


def test_a_server_keeps_no_token_that_could_be_used(server: Path) -> None:
    token = invite(server, "A").token
    kept = (server / "invitations.json").read_bytes()
    assert token.secret not in kept
    assert token.secret.hex().encode() not in kept
    assert token.to_text().encode() not in kept
    assert (server / "invitations.json").stat().st_mode & 0o077 == 0


def test_a_site_with_a_certificate_is_invited_only_to_replace_its_key(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    join(tmp_path / "A", "A", invited(server))
    with pytest.raises(InvalidInput, match="must have no certificate that stands"):
        invite(server, "A")
    join(tmp_path / "A2", "A", invited(server, "A", replace=True))
    identity = read_identity(load_home(tmp_path / "A2", "A"))
    key = pki.leaf_key(identity.certificate)
    from common.keys import public_key_sha256

    assert admitted(server) == [public_key_sha256(key)]


def test_revoking_a_site_ends_its_invitation(server: Path, tmp_path: Path) -> None:
    csr = init_site(tmp_path / "A", "A").csr
    enroll(server, csr)
    invite(server, "A", replace=True)
    revoke(server, "A")
    assert Invitations(server).standing() == ()


def test_a_key_that_was_revoked_does_not_come_back_by_a_token(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    first = invited(server)
    join(tmp_path / "A", "A", first)
    revoke(server, "A")
    eventually(lambda: not is_open(first))
    token = invited(server, "A")
    with pytest.raises(Refusal, match="must be a new one, got one revoked"):
        join(tmp_path / "A", "A", token)
    join(tmp_path / "A2", "A", token)  # the refusal did not use it up


def test_the_offline_way_stays(server: Path, tmp_path: Path) -> None:
    made = enroll(server, init_site(tmp_path / "A", "A").csr)
    assert read_bundle(made.bundle).site == "A"


# --- a server that is another -------------------------------------------------------------------


class Impostor:
    """Speaks the protocol with a certificate of its own and notes what it hears."""

    def __init__(self, chain: bytes, key: bytes, greeting: wire.Greeting) -> None:
        self.heard = b""
        self._greeting = greeting
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with as_path(chain + b"\n" + key) as path:
            self._context.load_cert_chain(path)
        self._socket = socket.create_server((HOST, 0))
        self.address = f"{HOST}:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with closing(self._context.wrap_socket(connection, server_side=True)) as secure:
            wire.send(secure, self._greeting)
            secure.settimeout(PATIENCE_S)
            try:
                self.heard = secure.recv(65536)
            except OSError:
                return

    def end(self) -> bytes:
        self._thread.join(PATIENCE_S)
        self._socket.close()
        return self.heard


@pytest.mark.parametrize("case", ["another root", "the true root, borrowed", "another host"])
def test_the_secret_is_not_sent_to_a_server_of_another_root(
    server: Path, tmp_path: Path, case: str
) -> None:
    true_root = (server / "pki/root.pem").read_bytes()
    true_chain = (server / "pki/server.pem").read_bytes()
    other = pki.create_root("veiltune")
    intermediate = pki.create_intermediate(other)
    own = pki.issue_server(intermediate, [HOST])
    if case == "another host":
        trusted = pki.Credential(
            (server / "pki/intermediate.pem").read_bytes(),
            (server / "pki/intermediate.key").read_bytes(),
        )
        own = pki.issue_server(trusted, ["elsewhere.example.org"])
    greeting = {
        "another root": (own.certificate, other.certificate),
        "the true root, borrowed": (true_chain, true_root),
        "another host": (own.certificate, true_root),
    }[case]
    chain, root = (pem.decode() for pem in greeting)
    impostor = Impostor(own.certificate, own.key, wire.Greeting(chain=chain, root=root))
    token = Token(impostor.address, pki.fingerprint(true_root), new_secret())
    with pytest.raises(Refusal, match=r"\(the secret was not sent\)"):
        join(tmp_path / "A", "A", token)
    assert impostor.end() == b""
    assert not (tmp_path / "A/pki/root.pem").exists()


def test_a_token_of_another_federation_is_not_followed_where_a_root_is_installed(
    server: Path, tmp_path: Path
) -> None:
    home = tmp_path / "A"
    made = enroll(server, init_site(home, "A").csr)
    from client.enrolment import install

    install(home, "A", made.bundle)
    with pytest.raises(InvalidInput, match="token must be of the root installed"):
        join(home, "A", Token(f"{HOST}:1", "ab" * 32, new_secret()))


# --- what strangers send ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", marks=pytest.mark.slow),
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(300),
        pytest.param(b"\n", marks=pytest.mark.slow),
    ],
    ids=["nothing", "http", "noise", "empty line"],
)
def test_plaintext_ends_its_connection_alone(
    server: Path, daemon: Daemon, tmp_path: Path, data: bytes
) -> None:
    token = invited(server)
    host, port = token.address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while raw.recv(4096):
                pass
    join(tmp_path / "A", "A", token)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"{}\n", marks=pytest.mark.slow),
        pytest.param(b"[]\n", marks=pytest.mark.slow),
        b"\xff\xff\n",
        json.dumps({"secret": "ab" * 20, "csr": "x", "more": 1}).encode() + b"\n",
        pytest.param(
            json.dumps({"secret": "AB" * 20, "csr": "x"}).encode() + b"\n",
            marks=pytest.mark.slow,
        ),
        b"[" * 60_000 + b"\n",
        b"x" * 70_000 + b"\n",
    ],
    ids=["empty", "list", "bytes", "unknown key", "case", "deep", "long"],
)
def test_a_line_that_is_no_request_is_dropped_with_one_warning(
    server: Path, daemon: Daemon, tmp_path: Path, line: bytes
) -> None:
    token = invited(server)
    host, port = token.address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        capture_logs() as events,
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw) as secure,
    ):
        wire.receive(secure, wire.Greeting)
        secure.sendall(line)
        with suppress(ConnectionError):
            assert secure.recv(4096) == b""
        eventually(lambda: bool([e for e in events if e["event"] == "join refused"]))
    assert len([e for e in events if e["log_level"] == "warning"]) == 1
    join(tmp_path / "A", "A", token)


@pytest.mark.slow
def test_lines_without_end_that_are_no_requests_are_told_by_a_count(
    server: Path, daemon: Daemon
) -> None:
    token = invited(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sent = MOST_A_MINUTE + 4
    with capture_logs() as events:
        for _ in range(sent):
            # One at a time, so that each has a place.
            with caller(token) as raw, context.wrap_socket(raw) as secure:
                wire.receive(secure, wire.Greeting)
                secure.sendall(b"{}\n")
                with suppress(ConnectionError):
                    assert secure.recv(4096) == b""
        daemon.stop()
    warned = [event for event in events if event["event"].startswith("join refused")]
    assert [event["event"] for event in warned[:-1]] == ["join refused"] * MOST_A_MINUTE
    assert (warned[-1]["event"], warned[-1]["count"]) == ("join refused, more of them", 4)


def caller(token: Token, source: str = HOST) -> socket.socket:
    host, port = token.address.split(":")
    return socket.create_connection((host, int(port)), PATIENCE_S, source_address=(source, 0))


def is_ended(connection: socket.socket) -> bool:
    """Whether the server has closed it; what it said before is thrown away."""
    connection.settimeout(0.01)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_of_one_address_two_are_served_at_once_and_others_find_a_place(
    server: Path, daemon: Daemon, tmp_path: Path
) -> None:
    token = invited(server)
    with ExitStack() as stack:
        silent = [stack.enter_context(caller(token, "127.0.0.9")) for _ in range(12)]
        eventually(lambda: sum(map(is_ended, silent)) == 10)
        join(tmp_path / "A", "A", token)
        assert sum(map(is_ended, silent)) == 10


def test_callers_who_say_nothing_do_not_keep_others_out(
    server: Path, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.joining._PATIENCE_S", 0.4)
    token = invited(server)
    with ExitStack() as stack:
        for number in range(12):
            stack.enter_context(caller(token, f"127.0.1.{number + 1}"))

        def joins() -> bool:
            try:
                join(tmp_path / "A", "A", token)
            except LinkDown:
                return False
            return True

        eventually(joins)


@pytest.mark.slow
def test_who_lets_bytes_drip_in_is_cut_off_all_the_same(
    server: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.joining._PATIENCE_S", 0.8)
    token = invited(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with caller(token) as raw, context.wrap_socket(raw) as secure:
        wire.receive(secure, wire.Greeting)

        def drips() -> bool:
            try:
                secure.sendall(b"x")
            except OSError:
                return False
            return True

        eventually(lambda: not drips())


def test_a_thread_that_cannot_be_started_costs_its_own_caller_alone(
    server: Path, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = invited(server)
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if "_serve" in thread.name:
            raise RuntimeError("can't start new thread")  # as Python says where none is left
        start(thread)

    with monkeypatch.context() as patched, capture_logs() as events:
        patched.setattr(threading.Thread, "start", fail)
        for told in range(1, 10):  # more than there are places
            with caller(token) as turned:
                eventually(lambda turned=turned: is_ended(turned))  # type: ignore[misc]
            # Its place is free when it is told, just after its connection ends. Whoever looked
            # whether the port was open before may be told as well.
            eventually(lambda n=told: [e["event"] for e in events].count("join not served") >= n)  # type: ignore[misc]
    join(tmp_path / "A", "A", token)


def test_tls_1_2_is_refused(server: Path, daemon: Daemon) -> None:
    token = invited(server)
    host, port = token.address.split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(raw)


# --- cut by a crash -----------------------------------------------------------------------------

JOINS = """
import sys
from pathlib import Path
from server.joining import join
join(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), Path(sys.argv[3]).read_bytes())
"""


@pytest.mark.parametrize(
    "failpoint",
    [
        pytest.param("server.invitation-claimed", marks=pytest.mark.slow),
        "server.invitation-enrolled",
    ],
)
def test_a_token_cut_by_a_crash_is_still_the_first_key_s_alone(
    server: Path, tmp_path: Path, failpoint: str
) -> None:
    secret = invite(server, "A").token.secret
    first = init_site(tmp_path / "A", "A").csr
    second = init_site(tmp_path / "thief", "A").csr
    words = [sys.executable, "-c", JOINS, str(server), secret.hex(), str(first)]
    environment = {**os.environ, VARIABLE: failpoint}
    assert subprocess.run(words, env=environment, check=False).returncode == -9
    with pytest.raises(Refusal, match="another key has used"):
        joining.join(server, secret, second.read_bytes())
    assert joining.join(server, secret, first.read_bytes()).site == "A"
    assert len(admitted(server)) == 1
