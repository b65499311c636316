"""A server's home and what it hands out, judged by OpenSSL's command line and tomllib."""

import datetime as dt
import json
import os
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from common import pki
from common.errors import InvalidInput, Refusal, StorageFailed
from server.config import load_server_config
from server.enrolment import ROSTER_FILE, ServerIdentity, enroll, init_server, invite, revoke
from server.invitations import Invitations
from server.roster import Roster

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "server"


@pytest.fixture
def identity(home: Path) -> ServerIdentity:
    return init_server(home, hosts=["fl.example.org"], address="127.0.0.1:8443", name="north")


def request(folder: Path, site: str = "A") -> Path:
    path = folder / f"{site}.csr"
    path.write_bytes(pki.new_site_key_and_csr(site)[1])
    return path


def openssl(*words: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, check=False)
    return (done.stdout + done.stderr).decode()


def test_a_new_home_is_private_and_whole(identity: ServerIdentity, home: Path) -> None:
    assert sorted(os.listdir(home / "pki")) == [
        "intermediate.key", "intermediate.pem", "operator.key", "operator.pub",
        "root.key", "root.pem", "server.key", "server.pem",
    ]  # fmt: skip
    assert sorted(os.listdir(home)) == ["pki", "server.toml"]
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in home.rglob("*")}
    assert modes.pop("pki") == 0o700
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_openssl_accepts_the_servers_chain(identity: ServerIdentity, home: Path) -> None:
    folder = home / "pki"
    said = openssl(
        *("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", folder / "root.pem"),
        *("-untrusted", folder / "server.pem", "-verify_ip", "127.0.0.1", folder / "server.pem"),
    )
    assert said.endswith("OK\n"), said
    printed = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", folder / "root.pem")
    assert identity.root_sha256 in printed.replace(":", "").lower()
    assert identity.hosts == ("127.0.0.1", "fl.example.org")


def test_the_settings_are_those_asked_for(identity: ServerIdentity, home: Path) -> None:
    assert tomllib.loads((home / "server.toml").read_text()) == {
        "name": "north",
        "listen": "0.0.0.0:8443",
        "address": "127.0.0.1:8443",
        "database": "sqlite:///state.db",
    }
    config = load_server_config(home)
    assert config.database == f"sqlite:///{home.resolve()}/state.db"


def test_an_existing_server_is_left_alone(identity: ServerIdentity, home: Path) -> None:
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    with pytest.raises(InvalidInput, match="must not hold a server yet"):
        init_server(home, hosts=[], address="127.0.0.1:8443")
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("address", "hosts", "name"),
    [
        ("", [], "north"),
        ("host", [], "north"),
        ("host:0", [], "north"),
        ("host:65536", [], "north"),
        ("host:8443\n", [], "north"),
        ("*.example:8443", [], "north"),
        ("host:8443", ["a b"], "north"),
        ("host:8443", ["https://x"], "north"),
        ("host:8443", [], "../north"),
        ("host:8443", [], "n" * 64),
    ],
)
def test_a_malformed_argument_leaves_nothing_behind(
    home: Path, address: str, hosts: list[str], name: str
) -> None:
    with pytest.raises(InvalidInput):
        init_server(home, hosts=hosts, address=address, name=name)
    assert not home.exists()


def test_a_home_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed):
        init_server(tmp_path / "file" / "home", hosts=[], address="127.0.0.1:8443")


def test_a_bundle_holds_what_a_site_needs(
    identity: ServerIdentity, home: Path, tmp_path: Path
) -> None:
    enrolled = enroll(home, request(tmp_path))
    assert enrolled.bundle == tmp_path / "A.bundle"
    content = json.loads(enrolled.bundle.read_bytes())
    assert (content["site"], content["server"]) == ("A", "127.0.0.1:8443")
    assert content["operator"] == identity.operator == (home / "pki/operator.pub").read_text()[:64]
    assert "PRIVATE" not in enrolled.bundle.read_text()
    (tmp_path / "site.pem").write_text(content["certificate"])
    (tmp_path / "root.pem").write_text(content["root"])
    said = openssl(
        *("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", tmp_path / "root.pem"),
        *("-untrusted", tmp_path / "site.pem", tmp_path / "site.pem"),
    )
    assert said.endswith("OK\n"), said
    printed = openssl("x509", "-noout", "-serial", "-text", "-in", tmp_path / "site.pem")
    assert f"serial={int(enrolled.serial, 16):X}" in printed.replace("serial=0", "serial=")
    assert "URI:veiltune://site/A\n" in printed


def test_sites_are_enrolled_without_the_roots_key(
    identity: ServerIdentity, home: Path, tmp_path: Path
) -> None:
    identity.root_key.unlink()
    out = tmp_path / "elsewhere.bundle"
    assert enroll(home, request(tmp_path), out).bundle == out
    assert out.is_file()
    assert enroll(home, request(tmp_path, "B"), tmp_path).bundle == tmp_path / "B.bundle"


def test_who_is_enrolled_is_on_the_roster_until_revoked(
    identity: ServerIdentity, home: Path, tmp_path: Path
) -> None:
    enrolled = enroll(home, request(tmp_path))
    roster, serial = Roster(home / ROSTER_FILE), int(enrolled.serial, 16)
    roster.check("A", serial)
    assert revoke(home, "A") == 1
    with pytest.raises(Refusal, match="revoked"):
        roster.check("A", serial)
    with pytest.raises(InvalidInput, match="must be enrolled"):
        revoke(home, "B")
    with pytest.raises(InvalidInput):
        revoke(home, "../x")


def test_a_second_key_needs_a_word_and_leaves_the_first_bundle(
    identity: ServerIdentity, home: Path, tmp_path: Path
) -> None:
    first = enroll(home, request(tmp_path))
    before = first.bundle.read_bytes()
    with pytest.raises(InvalidInput, match="another key that stands"):
        enroll(home, request(tmp_path))
    assert first.bundle.read_bytes() == before
    second = enroll(home, request(tmp_path), replace=True)
    roster = Roster(home / ROSTER_FILE)
    roster.check("A", int(second.serial, 16))
    with pytest.raises(Refusal):
        roster.check("A", int(first.serial, 16))


@pytest.mark.parametrize("content", [b"", b"junk", b"x" * 20_000, b"\xff" * 100])
def test_a_request_that_is_none_is_refused(
    identity: ServerIdentity, home: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "A.csr"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        enroll(home, path)
    assert Roster(home / ROSTER_FILE).sites() == {}
    assert os.listdir(tmp_path) == ["A.csr", "server"] or not (tmp_path / "A.bundle").exists()


def test_revoking_a_site_that_is_only_invited_ends_its_invitation(
    identity: ServerIdentity, home: Path
) -> None:
    invite(home, "A")
    with pytest.raises(InvalidInput, match="site must be enrolled"):
        revoke(home, "A")
    assert not Invitations(home).standing()


def test_without_a_server_nobody_is_enrolled_or_revoked(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="config file must be"):
        enroll(home, request(tmp_path))
    with pytest.raises(InvalidInput, match="config file must be"):
        revoke(home, "A")


def test_a_key_that_others_can_read_is_not_used(
    identity: ServerIdentity, home: Path, tmp_path: Path
) -> None:
    (home / "pki" / "intermediate.key").chmod(0o644)
    with pytest.raises(InvalidInput, match=r"pki/intermediate\.key must be readable by its owner"):
        enroll(home, request(tmp_path))


def test_an_expired_intermediate_signs_nobody(home: Path, tmp_path: Path) -> None:
    long_ago = NOW - dt.timedelta(days=731)
    init_server(home, hosts=[], address="127.0.0.1:8443", now=long_ago)
    with pytest.raises(InvalidInput, match="issuing certificate must be valid today"):
        enroll(home, request(tmp_path))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('database = "secret-word"', "database must be a database URL"),
        ('listen = "x"', "listen address must be host:port"),
        ("colour = 1", "colour must be a known key"),
    ],
)
def test_a_faulty_setting_is_named(home: Path, line: str, words: str) -> None:
    home.mkdir()
    lines = {"name": '"n"', "listen": '"0.0.0.0:1"', "address": '"h:1"'}
    key, _, value = line.partition(" = ")
    text = "\n".join(f"{k} = {v}" for k, v in {**lines, key: value}.items())
    (home / "server.toml").write_text(text)
    with pytest.raises(InvalidInput) as refused:
        load_server_config(home)
    assert words.removeprefix("listen ") in str(refused.value)
    assert "secret-word" not in str(refused.value)


def test_another_database_is_taken_as_it_is(home: Path) -> None:
    home.mkdir()
    url = "postgresql+psycopg://veiltune:s3cret@db.example/veiltune"
    (home / "server.toml").write_text(
        f'name = "n"\nlisten = "0.0.0.0:0"\naddress = "h:1"\ndatabase = "{url}"\n'
    )
    assert load_server_config(home).database == url
