"""Certificates that replace themselves over real TLS: at a site, at the server, and cut by crashes.

The oracle for what is served is Python's ssl, for who is admitted the roster's file.
"""

import datetime as dt
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from client import calls
from client.config import SiteHome, load_home
from client.enrolment import init_site, install
from client.identity import read_identity
from client.renewal import renew
from client.session import Turned
from common import pki
from common.errors import InvalidInput, LinkDown, Refusal
from common.failpoints import VARIABLE
from common.files import write_file
from common.flower import become_server
from common.link import federation_pb2 as wire
from common.link.channel import RENEW
from server.authority import read_authorities
from server.backup import backup
from server.certificate import ServerCertificate
from server.daemon import Daemon
from server.enrolment import enroll, init_server, revoke
from server.restore import restore
from server.roster import MOST_A_DAY
from tests.integration.live import (
    HOST,
    PATIENCE_S,
    Start,
    eventually,
    free_port,
    running_daemon,
    running_sites,
)

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)


@dataclass
class Federation:
    """A server's home and sites' homes, as the commands make them."""

    folder: Path
    port: int

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def site(self, name: str, *, age_days: int = 0) -> SiteHome:
        """A site whose certificate was issued some days ago."""
        home = self.folder / name
        csr = init_site(home, name).csr
        bundle = enroll(self.server, csr, self.folder, now=NOW - age_days * DAY).bundle
        install(home, name, bundle, now=NOW - age_days * DAY)
        return load_home(home, name)

    def roster(self) -> dict[str, Any]:
        return dict(json.loads((self.server / "roster.json").read_text())["sites"])

    def served(self, home: SiteHome, folder: Path) -> int:
        """The serial number of the certificate that the server shows in a handshake."""
        pem = folder / "pair.pem"
        identity = read_identity(home)
        pem.write_bytes(identity.certificate + identity.key)
        context = ssl.create_default_context(cadata=identity.root.decode())
        context.load_cert_chain(pem)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((HOST, self.port), timeout=PATIENCE_S) as raw,
            context.wrap_socket(raw, server_hostname=HOST) as wrapped,
        ):
            found = wrapped.getpeercert()
            assert found is not None
            return int(str(found["serialNumber"]), 16)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    become_server()
    made = Federation(tmp_path, free_port())
    address = f"{HOST}:{made.port}"
    # Sixty days old: the server's own certificate has expired, its authorities have not.
    init_server(made.server, hosts=[HOST], address=address, listen=address, now=NOW - 60 * DAY)
    return made


@pytest.fixture
def daemon(federation: Federation) -> Iterator[Daemon]:
    with running_daemon(federation.server) as daemon:
        yield daemon


@pytest.fixture
def running() -> Iterator[Start]:
    with running_sites() as start:
        yield start


def serial(home: SiteHome) -> int:
    return pki.load_certificates(read_identity(home).certificate)[0].serial_number


def ask(home: SiteHome, csr: bytes) -> wire.Frame:
    """A renewal as any request, with this home's certificate."""
    config = calls.link_config(home, read_identity(home))
    return calls.call(config, RENEW, wire.RenewRequest(csr=csr).SerializeToString())


def test_a_running_site_renews_and_its_next_session_uses_the_new_certificate(
    federation: Federation, daemon: Daemon, running: Start
) -> None:
    home = federation.site("A", age_days=22)
    old, key = serial(home), read_identity(home).key
    with capture_logs() as events:
        running(home)
        eventually(lambda: serial(home) != old)
        new = serial(home)
        eventually(
            lambda: any(
                e["event"] == "site connected" and e["serial"] == f"{new:x}" for e in events
            )
        )
    assert daemon.link.connected() == {"A"}
    assert read_identity(home).key == key
    assert read_identity(home).days_left in (29, 30)
    assert [int(e["serial"], 16) for e in federation.roster()["A"]] == [old, new]
    # Both stand: a copy of the home from before is not locked out.
    assert all(entry["revoked"] is None for entry in federation.roster()["A"])


def test_a_site_that_renewed_since_the_backup_is_admitted_by_the_restored_server(
    federation: Federation, running: Start
) -> None:
    home, file = federation.site("A"), federation.folder / "server.backup"
    with running_daemon(federation.server):
        backup(federation.server, file)
        renew(home)
    federation.server.rename(federation.folder / "lost")
    restore(federation.server, file)
    assert [int(e["serial"], 16) for e in federation.roster()["A"]] != [serial(home)]
    with running_daemon(federation.server) as daemon:
        running(home)
        eventually(lambda: daemon.link.connected() == {"A"})
        assert int(federation.roster()["A"][-1]["serial"], 16) == serial(home)
        assert federation.roster()["A"][-1]["issuer"] == federation.roster()["A"][0]["issuer"]
        renew(home)
        assert revoke(federation.server, "A") == 3
        eventually(lambda: daemon.link.connected() == set())
        with pytest.raises(LinkDown, match="must not be revoked"):
            renew(home)


@pytest.mark.slow
def test_a_certificate_that_is_not_due_is_left_alone(
    federation: Federation, daemon: Daemon, running: Start
) -> None:
    home = federation.site("A", age_days=19)
    before = serial(home)
    with capture_logs() as events:
        running(home)
        eventually(lambda: daemon.link.connected() == {"A"})
        threading.Event().wait(1.5)  # a tick and more
    assert serial(home) == before
    assert not [e for e in events if e["event"].startswith("certificate")]


def test_an_expired_server_certificate_is_renewed_before_the_server_listens(
    federation: Federation, daemon: Daemon, tmp_path: Path
) -> None:
    assert pki.days_left((federation.server / "pki/server.pem").read_bytes()) in (29, 30)
    assert federation.served(federation.site("A"), tmp_path) == serial_of(
        federation.server / "pki/server.pem"
    )


def serial_in(pem: bytes) -> int:
    return pki.load_certificates(pem)[0].serial_number


def serial_of(path: Path) -> int:
    return serial_in(path.read_bytes())


def served_is_on_disk(federation: Federation, home: SiteHome, folder: Path) -> bool:
    return federation.served(home, folder) == serial_of(federation.server / "pki/server.pem")


@pytest.mark.slow
def test_a_running_server_shows_its_new_certificate_and_keeps_its_sessions(
    federation: Federation,
    daemon: Daemon,
    running: Start,
    tmp_path: Path,
) -> None:
    home = federation.site("A")
    with capture_logs() as events:
        running(home)
        eventually(lambda: daemon.link.connected() == {"A"})
        before = federation.served(home, tmp_path)
        old = pki.issue_server(
            read_authorities(federation.server).current.intermediate, [HOST], now=NOW - 22 * DAY
        )
        write_file(federation.server / "pki/server.key", old.key)
        write_file(federation.server / "pki/server.pem", old.certificate)
        eventually(lambda: federation.served(home, tmp_path) != before)
        eventually(lambda: served_is_on_disk(federation, home, tmp_path))
    assert serial_of(federation.server / "pki/server.pem") != serial_in(old.certificate)
    assert daemon.link.connected() == {"A"}
    assert [e["event"] for e in events].count("site connected") == 1


def test_a_revoked_certificate_is_not_renewed(federation: Federation, daemon: Daemon) -> None:
    home = federation.site("A")
    revoke(federation.server, "A")
    before = (home.folder / "pki/site.pem").read_bytes()
    with pytest.raises(Turned, match="revoked"):
        renew(home)
    assert (home.folder / "pki/site.pem").read_bytes() == before
    assert len(federation.roster()["A"]) == 1


def test_an_expired_certificate_is_not_renewed(federation: Federation, daemon: Daemon) -> None:
    with pytest.raises(InvalidInput, match="must be valid today, got one that expired"):
        renew(federation.site("A", age_days=31))


def test_that_the_intermediate_ends_soon_is_logged_once_a_day(federation: Federation) -> None:
    then = NOW + 585 * DAY  # of its 730 days 60 were over
    with capture_logs() as events:
        certificate = ServerCertificate(federation.server, now=then - 10 * DAY)
        certificate.refresh(now=then - 9 * DAY)
    assert [e for e in events if e["event"] == "intermediate ends soon"] == []
    with capture_logs() as events:
        for _ in range(3):
            certificate.refresh(now=then)
        certificate.refresh(now=then + DAY)
    told = [e for e in events if e["event"] == "intermediate ends soon"]
    assert [e["days"] for e in told] == [84, 83]
    assert told[0]["remedy"] == "fl-server rotate intermediate --sign-with KEY"


def test_nobody_renews_for_another_site_or_for_another_key(
    federation: Federation, daemon: Daemon
) -> None:
    home = federation.site("A")
    other = federation.site("B")
    with pytest.raises(Turned, match="must be for site A, which asks, got one for B"):
        ask(home, (other.folder / "B.csr").read_bytes())
    with pytest.raises(Turned, match="must be for site A, which asks, got one for B"):
        ask(home, pki.create_csr("B", read_identity(home).key))
    with pytest.raises(Turned, match="must be for the key it has, got another"):
        ask(home, pki.new_site_key_and_csr("A")[1])
    with pytest.raises(Turned, match="PKCS #10"):
        ask(home, b"\xff" * 100)
    with pytest.raises(Turned, match="at most 16384 bytes"):
        ask(home, b"x" * 20_000)
    assert [len(entries) for entries in federation.roster().values()] == [1, 1]


def test_a_site_of_another_root_gets_no_certificate(
    federation: Federation, daemon: Daemon, tmp_path: Path
) -> None:
    home = federation.site("A")
    stranger = Federation(tmp_path / "other", federation.port)
    stranger.folder.mkdir()
    address = f"{HOST}:{federation.port}"
    at = NOW - DAY  # NOW is some minutes ago where many tests go first
    init_server(stranger.server, hosts=[HOST], address=address, listen=address, now=at)
    foreign = stranger.site("A")
    with pytest.raises(LinkDown, match="another root"):
        renew(foreign)
    renew(home)


def test_a_site_that_renews_very_often_is_turned_away_in_words(
    federation: Federation, daemon: Daemon
) -> None:
    home = federation.site("A", age_days=21)  # due: but only once
    first = read_identity(home).certificate
    for _ in range(MOST_A_DAY):
        (home.folder / "pki/site.pem").write_bytes(first)
        renew(home)
    (home.folder / "pki/site.pem").write_bytes(first)
    with pytest.raises(Turned, match="must be at most 5 a day beyond those that are due"):
        renew(home)
    assert len(federation.roster()["A"]) == MOST_A_DAY + 1
    renew(federation.site("B"))


def test_two_that_renew_at_once_leave_a_certificate_that_is_admitted(
    federation: Federation, daemon: Daemon
) -> None:
    home = federation.site("A")
    threads = [threading.Thread(target=renew, args=(home,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert serial(home) in [int(e["serial"], 16) for e in federation.roster()["A"]]
    renew(home)


# --- cut by a crash -----------------------------------------------------------------------------

SITE_RENEWS = """
import sys
from pathlib import Path
from client.config import load_home
from client.renewal import renew
renew(load_home(Path(sys.argv[1]), "A"))
"""
SERVER_RENEWS = """
import datetime as dt, sys
from pathlib import Path
from server.authority import read_authorities
from server.backup import backup
from server.certificate import ServerCertificate
ServerCertificate(Path(sys.argv[1]), now=dt.datetime.now(dt.UTC) + dt.timedelta(days=22))
"""
SERVER_RUNS = """
import sys
from pathlib import Path
from server.daemon import Daemon
Daemon(Path(sys.argv[1])).serve()
"""


def killed(script: str, home: Path, failpoint: str) -> int:
    environment = {**os.environ, VARIABLE: failpoint}
    words = [sys.executable, "-c", script, str(home)]
    return subprocess.run(words, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    "failpoint",
    [pytest.param("site.certificate-received", marks=pytest.mark.slow), "site.certificate-kept"],
)
def test_a_site_killed_while_it_renews_has_the_old_certificate_or_the_new_one(
    federation: Federation, daemon: Daemon, failpoint: str
) -> None:
    home = federation.site("A", age_days=22)
    old = serial(home)
    assert killed(SITE_RENEWS, home.folder, failpoint) == -9
    assert (serial(home) == old) == (failpoint == "site.certificate-received")
    read_identity(home).check()
    renew(home)  # whichever it has, it is admitted with


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["server.certificate-issued", "server.certificate-recorded"])
def test_a_server_killed_while_it_renews_a_site_leaves_the_old_certificate_usable(
    federation: Federation, failpoint: str
) -> None:
    home = federation.site("A", age_days=22)
    old = serial(home)
    environment = {**os.environ, VARIABLE: failpoint}
    words = [sys.executable, "-c", SERVER_RUNS, str(federation.server)]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)

    def is_cut() -> bool:
        with pytest.raises((LinkDown, Refusal)):
            renew(home)
        return process.poll() is not None

    eventually(is_cut)
    assert process.wait() == -9
    assert serial(home) == old
    server = Daemon(federation.server)
    server.start()
    try:
        renew(home)
        assert serial(home) != old
    finally:
        server.stop()


@pytest.mark.parametrize(
    "failpoint",
    ["server.own-key-kept", pytest.param("server.own-certificate-kept", marks=pytest.mark.slow)],
)
def test_a_server_killed_while_it_renews_its_own_serves_a_pair_that_matches(
    federation: Federation, failpoint: str, tmp_path: Path
) -> None:
    ServerCertificate(federation.server)
    before = serial_of(federation.server / "pki/server.pem")
    assert killed(SERVER_RENEWS, federation.server, failpoint) == -9
    found = ServerCertificate(federation.server).credentials
    assert pki.leaf_key(found.chain_pem) == pki.load_key(found.key_pem).public_key()
    assert serial_of(federation.server / "pki/server.pem") != before
    pki.check_server_chain(found.chain_pem, found.root_pem, HOST)
