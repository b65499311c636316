"""Faults of a server planted for real, each seen on its own line with its own advice."""

import contextlib
import datetime as dt
import json
import shutil
import socket
import sqlite3
import ssl
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common import pki
from common.diagnosis import Finding, examine
from server import cli
from server.daemon import Daemon
from server.doctor import Patient, checks, doctor
from server.enrolment import enroll, init_server
from server.roster import Roster
from server.worker import Trainer

Capture = pytest.CaptureFixture[str]
Lines = dict[str, Finding]

SLOW = {"program files", "package names", "libraries"}
PLACE = {"file system", "disk space", "inodes"}  # the test's own folder may be in memory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server that was set up, with a site, and its root's key kept elsewhere."""
    folder = tmp_path_factory.mktemp("made")
    home = folder / "home"
    then = dt.datetime.now(dt.UTC) - dt.timedelta(days=60)
    addresses = {"address": "127.0.0.1:8443", "listen": "127.0.0.1:0"}
    init_server(home, hosts=["localhost"], **addresses, now=then)
    issue(home)  # as a running server renews its own
    (home / "pki" / "root.key").rename(folder / "root.key")
    request(folder, "A")
    enroll(home, folder / "A.csr")
    return home


def request(folder: Path, site: str) -> None:
    _, csr = pki.new_site_key_and_csr(site)
    (folder / f"{site}.csr").write_bytes(csr)


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "home"
    shutil.copytree(made, copy)
    copy.chmod(0o700)
    return copy


def look(home: Path, **given: bool) -> Lines:
    """The lines, which show no key, write nothing, and advise on whatever is not well."""
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in home.rglob("*")}
    found = examine(one for one in checks(Patient(home, **given)) if one.name not in SLOW)
    after = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in home.rglob("*")}
    assert after == before
    assert "PRIVATE" not in repr(found)
    assert all(bool(f.advice) == (f.mark != "ok") for f in found)
    assert len({f.check for f in found}) == len(found)
    return {f.check: f for f in found}


def marked(found: Lines, mark: str) -> set[str]:
    return {name for name, finding in found.items() if finding.mark == mark}


def test_a_healthy_home_is_all_well(home: Path) -> None:
    found = look(home)
    assert set(found) - marked(found, "ok") <= PLACE
    assert found["sites"].found == "1 site admitted, of 1 ever enrolled"
    assert found["port"].found.endswith("the server does not run (fl-server --home "
                                        f"{home} start)")  # fmt: skip
    operator = (home / "pki" / "operator.pub").read_text().strip()
    assert found["operator"].found == f"signs as {operator}"


@pytest.mark.parametrize(("age", "mark"), [(620, "ok"), (650, "warning")])
def test_an_intermediate_is_told_of_90_days_before_it_ends_with_its_own_remedy(
    made: Path, home: Path, age: int, mark: str
) -> None:
    folder, then = home / "pki", dt.datetime.now(dt.UTC) - dt.timedelta(days=age)
    key = (made.parent / "root.key").read_bytes()
    root = pki.Credential((folder / "root.pem").read_bytes(), key)
    intermediate = pki.create_intermediate(root, now=then)
    (folder / "intermediate.pem").write_bytes(intermediate.certificate)
    (folder / "intermediate.key").write_bytes(intermediate.key)
    issue(home)
    found = look(home)["certificates"]
    assert found.mark == mark
    if mark == "warning":
        assert found.found.startswith("the intermediate expires in 79 days, on ")
        assert f"fl-server --home {home} rotate intermediate --sign-with KEY" in found.advice


def settings(home: Path, **changed: str) -> None:
    path = home / "server.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changed))


def issue(home: Path, days_ago: int = 0, *, root: str = "") -> None:
    """Another certificate and key for the server, some days old; under another root if named."""
    then = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago)
    folder = home / "pki"
    pem, key = (folder / f"intermediate.{kind}" for kind in ("pem", "key"))
    above = pki.Credential(pem.read_bytes(), key.read_bytes())
    if root:
        above = pki.create_intermediate(pki.create_root(root))
    made = pki.issue_server(above, ["127.0.0.1", "localhost"], now=then)
    (folder / "server.pem").write_bytes(made.certificate)
    (folder / "server.key").write_bytes(made.key)


def other_operator(home: Path) -> None:
    public = pki.operator_public_hex(pki.new_operator_key())
    (home / "pki" / "operator.pub").write_text(f"{public}\n")


def lapsed(home: Path) -> None:
    path = home / "roster.json"
    content = json.loads(path.read_text())
    (entry,) = content["sites"]["A"]
    entry["not_after"] = "2026-01-02T03:04:05Z"
    path.write_text(json.dumps(content))


def soon(home: Path) -> None:
    path = home / "roster.json"
    end = dt.datetime.now(dt.UTC) + dt.timedelta(days=3)
    content = json.loads(path.read_text())
    content["sites"]["A"][0]["not_after"] = end.isoformat()
    path.write_text(json.dumps(content))


def left_behind(home: Path) -> None:
    Roster(home / "roster.json").retire("ab" * 32)


def database(home: Path, *statements: str) -> None:
    (home / "state.db").touch(0o600)
    with contextlib.closing(sqlite3.connect(home / "state.db")) as db:
        for statement in ("CREATE TABLE t (x TEXT)", *statements):
            db.execute(statement)
        db.commit()


def damage(home: Path) -> None:
    database(home, *(f"INSERT INTO t VALUES ('{'y' * 900}')" for _ in range(50)))
    data = bytearray((home / "state.db").read_bytes())
    data[5000:9000] = b"\xff" * 4000
    (home / "state.db").write_bytes(data)


def wrong_key(home: Path) -> None:
    (home / "pki" / "server.key").write_bytes(pki.new_site_key_and_csr("A")[0])


Plant = tuple[Callable[[Path], object], str, str, str]
PLANTED: dict[str, tuple[str, Plant]] = {
    "home": ("home", (lambda h: h.chmod(0o750), "fault", "mode 0750", "chmod 700")),
    "a key's mode": (
        "keys", (lambda h: (h / "pki/operator.key").chmod(0o640), "fault", "pki/operator.key has",
                 "chmod 600")),
    "a key that is gone": (
        "keys", (lambda h: (h / "pki/intermediate.key").unlink(), "fault", "is missing", "backup")),
    "the root's key": (
        "root key", (lambda h: (h / "pki/root.key").touch(0o600), "warning", "lies on this machine",
                     "kept elsewhere")),
    "an expired certificate": (
        "certificates", (lambda h: issue(h, 40), "fault", "the server's expired on", "its own")),
    "one close to its end": (
        "certificates", (lambda h: issue(h, 25), "warning", "expires in 4 days", "its own")),
    "one that is not valid yet": (
        "certificates", (lambda h: issue(h, -2), "fault", "is not valid before", "clock")),
    "another root": (
        "certificate chain", (lambda h: issue(h, root="other"), "fault", "of another root",
                              "one backup")),
    "another key": (
        "key and certificate", (wrong_key, "fault", "is for another key", "one backup")),
    "another host name": (
        "host name", (lambda h: settings(h, address="localhost.localdomain:8443"), "fault",
                      "must be for localhost.localdomain, got one for 127.0.0.1", "server.toml")),
    "another operator": ("operator", (other_operator, "fault", "not the public half", "backup")),
    "a site that lapsed": (
        "sites", (lapsed, "warning", "certificate expired: A", "renews its own")),
    "a site that will": ("sites", (soon, "warning", "within 7 days: A", "renews its own")),
    "a site that a change of roots left behind": (
        "sites", (left_behind, "warning", "cut off by the last change of roots: A", "invite SITE")),
    "a roster of something else": (
        "sites", (lambda h: (h / "roster.json").write_text("[]"), "fault", "must be a roster",
                  "put roster.json back")),
    "a file that others change": (
        "permissions", (lambda h: (h / "roster.json").chmod(0o666), "fault", "roster.json (0666)",
                        "chmod go-w")),
    "a write-ahead log": (
        "database", (lambda h: database(h, "PRAGMA journal_mode=WAL"), "fault", "mode wal",
                     "start the server")),
    "a damaged database": ("database", (damage, "fault", "state.db is damaged", "backup back")),
    "a database that is none": (
        "database", (lambda h: (h / "state.db").write_bytes(b"x" * 5000), "fault",
                     "state.db is damaged: file is not a database", "backup back")),
}  # fmt: skip
FOLLOWS: dict[str, set[str]] = {
    "a key's mode": {"operator"},
    "another root": {"key and certificate", "host name"},
    "another host name": {"address"},  # a machine need not know itself by that name
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_has_its_own_line_and_advice(home: Path, what: str) -> None:
    check, (plant, mark, words, advice) = PLANTED[what]
    plant(home)
    found = look(home)
    assert found[check].mark == mark
    assert words in found[check].found
    assert advice in found[check].advice
    told = set(found) - marked(found, "ok") - PLACE
    assert check in told
    assert told - {check} <= FOLLOWS.get(what, set())


def test_every_error_of_the_settings_has_a_line_without_its_secret(home: Path) -> None:
    settings(home, listen="nowhere", databse="postgresql://ada:lovelace@db/x")
    found = examine(one for one in checks(Patient(home)) if one.name not in SLOW)
    lines = [f.found for f in found if f.check == "server.toml"]
    assert len(lines) == 2
    assert any("listen" in line or "address must be host:port" in line for line in lines)
    assert any("databse must be a known key (did you mean database?)" in line for line in lines)
    assert "lovelace" not in repr(found)
    by = {f.check: f.mark for f in found}
    for name in ("host name", "database", "port", "address"):
        assert by[name] == "not checked"
    assert by["keys"] == by["certificate chain"] == by["operator"] == "ok"


def test_an_empty_home_names_everything_that_is_missing(home: Path) -> None:
    for path in home.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = examine(one for one in checks(Patient(home)) if one.name not in SLOW)
    marks = {f.check: f.mark for f in found}
    for name in ("server.toml", "keys", "certificates", "operator"):
        assert marks[name] == "fault"
    assert len([f for f in found if f.check == "keys"]) == 3


def test_without_a_home_it_is_told_how_to_make_one(tmp_path: Path) -> None:
    first = doctor(Patient(tmp_path / "none")).findings[0]
    assert (first.check, first.mark) == ("home", "fault")
    assert first.advice == f"fl-server --home {tmp_path / 'none'} init --host NAME"


def test_a_cut_off_write_is_left_to_the_server(home: Path) -> None:
    database(home)
    (home / "state.db-journal").write_bytes(b"\xd9\xd5\x05\xf9" * 200)
    found = look(home)["database"]
    assert (found.mark, found.advice) == ("not checked", "start the server, which completes it")


# Port and address


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None] = lambda _: None) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(5)
                        answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_port_that_another_program_has_is_named(home: Path) -> None:
    with listening() as port:
        settings(home, listen=f"127.0.0.1:{port}")
        found = look(home)["port"]
    assert found.mark == "fault"
    assert "must be free" in found.found
    assert "end what listens there" in found.advice


@pytest.fixture
def port(home: Path) -> int:
    """A port that is free, which the home's server listens on and sites come by."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = int(listener.getsockname()[1])
    settings(home, listen=f"127.0.0.1:{number}", address=f"127.0.0.1:{number}")
    return number


@pytest.fixture
def running(home: Path, port: int, trainer: Trainer, _logs_aside: None) -> Iterator[Daemon]:
    daemon = Daemon(home, trainer=trainer)
    daemon.start()
    yield daemon
    daemon.stop()


def test_a_server_that_runs_shows_its_certificate(home: Path, port: int, running: Daemon) -> None:
    found = look(home)
    assert set(found) - marked(found, "ok") <= PLACE
    for name in ("port", "address"):
        assert found[name].found == f"127.0.0.1:{port} answers with this home's certificate"


def test_a_server_that_runs_with_an_older_certificate_is_named(
    home: Path, port: int, running: Daemon
) -> None:
    issue(home)
    found = look(home)
    assert found["port"].mark == "fault"
    assert f"127.0.0.1:{port} shows another certificate" in found["port"].found
    assert "start the server again" in found["port"].advice
    assert found["certificate chain"].mark == found["key and certificate"].mark == "ok"


def test_what_reads_tls_on_the_way_is_named_by_its_issuer(
    home: Path, port: int, running: Daemon, tmp_path: Path
) -> None:
    shown = pki.issue_server(pki.create_intermediate(pki.create_root("firewall")), ["127.0.0.1"])
    (tmp_path / "pair.pem").write_bytes(shown.certificate + shown.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1)

    with listening(answer) as other:
        settings(home, address=f"127.0.0.1:{other}")
        found = look(home)
    assert marked(found, "fault") == {"address"}
    assert "issued by CN=Veiltune intermediate,O=firewall" in found["address"].found
    assert "on unread" in found["address"].advice


def test_a_web_server_at_the_address_is_named(home: Path, port: int, running: Daemon) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(answer) as other:
        settings(home, address=f"127.0.0.1:{other}")
        found = look(home)["address"]
    assert found.mark == "fault"
    assert "in plain HTTP (HTTP/1.1 400 Bad Request)" in found.found
    assert "as they are" in found.advice


def test_an_address_that_leads_nowhere_from_here_is_a_warning(
    home: Path, port: int, running: Daemon
) -> None:
    settings(home, address="127.0.0.1:1")
    found = look(home)["address"]
    assert found.mark == "warning"
    assert "127.0.0.1:1 cannot be reached from here: Connection refused" in found.found
    assert "site's network" in found.advice


def test_an_address_of_the_other_kind_than_the_port_is_named(home: Path) -> None:
    settings(home, address="[::1]:8443", listen="0.0.0.0:8443")
    found = look(home)["address"]
    assert found.mark == "fault"
    assert "::1 has IPv6 addresses only, and the server listens on 0.0.0.0:8443" in found.found
    assert 'listen = "[::]:8443"' in found.advice


def test_offline_leaves_the_address_alone(home: Path) -> None:
    found = look(home, is_offline=True)
    assert marked(found, "not checked") == {"address"}
    assert "--offline" in found["address"].found


def test_another_database_is_asked_and_its_password_is_not_shown(home: Path) -> None:
    settings(home, database="nosuchdriver://ada:lovelace@db/x")
    found = look(home)
    assert found["database"].mark == "fault"
    assert "lovelace" not in repr(found)
    assert look(home, is_offline=True)["database"].mark == "not checked"


def test_the_command_ends_with_1_for_a_fault_and_0_without(home: Path, capsys: Capture) -> None:
    command = ["--home", str(home), "doctor", "--offline"]
    assert cli.main([*command, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["program"], told["home"], told["faults"]) == ("fl-server", str(home), 0)
    Roster(home / "roster.json").revoke("A")
    (home / "pki" / "server.key").chmod(0o604)
    assert cli.main(command) == 1
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fault        keys ") and "0604" in line for line in out)
    assert any("0 sites admitted, of 1 ever enrolled" in line for line in out)
    assert out[-1].startswith("1 fault, ")
    assert cli.main(["doctor", "--no-such-option"]) == 2
