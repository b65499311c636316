"""A federation that goes over to another root while its sites run, and rosters signed elsewhere."""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from client import trust
from client.config import SiteHome, load_home
from client.enrolment import init_site, install
from client.identity import read_identity
from client.renewal import renew
from common import pki
from common.errors import InvalidInput
from common.failpoints import VARIABLE
from common.flower import become_server
from server import cli, rotation
from server.authority import read_authorities
from server.daemon import Daemon
from server.enrolment import enroll, init_server, revoke
from server.publication import draft, publish, published, sign_draft
from tests.integration.live import HOST, Start, eventually, free_port, running_sites


@pytest.fixture
def server(tmp_path: Path) -> Path:
    become_server()
    address = f"{HOST}:{free_port()}"
    init_server(tmp_path / "server", hosts=[HOST], address=address, listen=address)
    (tmp_path / "server/pki/root.key").rename(tmp_path / "old.key")  # as init tells
    return tmp_path / "server"


@pytest.fixture
def old_key(server: Path, tmp_path: Path) -> bytes:
    return (tmp_path / "old.key").read_bytes()


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    for name, seconds in (("TICK_S", 0.1), ("_DOCUMENTS_S", 0.4), ("_FIRST_RETRY_S", 0.3)):
        monkeypatch.setattr(f"client.upkeep.{name}", seconds)
    with running_sites() as start:
        yield start


def make_site(server: Path, name: str) -> SiteHome:
    home = server.parent / name
    csr = init_site(home, name).csr
    install(home, name, enroll(server, csr).bundle)
    return load_home(home, name)


def roots(home: SiteHome) -> list[str]:
    pem = (home.folder / "pki/root.pem").read_bytes()
    return [pki.fingerprint(root) for root in pki.load_certificates(pem)]


def key_of_next(server: Path) -> bytes:
    return (server / "pki/next/root.key").read_bytes()


def test_running_sites_go_over_to_another_root_without_a_restart(
    server: Path, daemon: Daemon, running: Start, old_key: bytes
) -> None:
    homes = [make_site(server, name) for name in "AB"]
    first = publish(server, sign_draft(draft(server), old_key))
    for home in homes:
        running(home)
    eventually(lambda: daemon.link.connected() == {"A", "B"})

    begun = rotation.begin(server, old_key)
    assert begun.coming is not None
    eventually(lambda: rotation.standing(server).waiting == ())
    for home in homes:
        assert roots(home) == [begun.coming, begun.current]
    assert pki.fingerprint((server / "pki/root.pem").read_bytes()) == begun.current

    ended = rotation.end(server, key_of_next(server))
    assert (ended.current, ended.coming) == (begun.coming, None)
    for home in homes:
        eventually(lambda home=home: roots(home) == [begun.coming])  # type: ignore[misc]
    eventually(lambda: daemon.link.connected() == {"A", "B"})
    for home in homes:
        read_identity(home).check()
        renew(home)
    assert not (server / "pki/next").exists()
    # The roster went over too: the old root's would be refused now.
    kept = trust.read_roster(homes[0])
    assert kept is not None
    assert (kept.root, sorted(kept.sites)) == (begun.coming, ["A", "B"])
    assert kept.sequence > first.sequence


def test_the_old_root_is_kept_while_a_site_needs_it(
    server: Path, daemon: Daemon, old_key: bytes
) -> None:
    home = make_site(server, "A")
    gone = make_site(server, "B")
    rotation.begin(server, old_key)
    with pytest.raises(InvalidInput, match="got none for A, B"):
        rotation.end(server, key_of_next(server))
    revoke(server, "B")
    with pytest.raises(InvalidInput, match="got none for A"):
        rotation.end(server, key_of_next(server))
    ended = rotation.end(server, key_of_next(server), force=True)
    assert (ended.coming, ended.cut_off) == (None, ("A",))
    del home, gone


@pytest.mark.slow
def test_an_end_by_force_cuts_off_who_has_not_gone_over_and_says_whom(
    server: Path,
    daemon: Daemon,
    running: Start,
    old_key: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("client.upkeep._DOCUMENTS_S", 300.0)  # it hears of no change for a while
    home = make_site(server, "A")
    publish(server, sign_draft(draft(server), old_key))
    running(home)
    eventually(lambda: daemon.link.connected() == {"A"})
    rotation.begin(server, old_key)
    (server.parent / "new.key").write_bytes(key_of_next(server))
    (server.parent / "new.key").chmod(0o600)
    command = ["--home", str(server), "rotate", "end", "--force", "--sign-with"]
    with capture_logs() as events:
        assert cli.main([*command, str(server.parent / "new.key")]) == 0
        eventually(lambda: any(e["event"] == "session refused" for e in events))
    refused = next(e for e in events if e["event"] == "session refused")
    assert refused["site"] == "A"
    assert "must be of the root in force" in refused["reason"]
    assert daemon.link.connected() == set()
    out = capsys.readouterr().out
    assert "cut off    A\n" in out
    assert f"--home {server} invite SITE" in out
    shown = published(server)
    assert shown is not None
    assert shown.sites == {}
    enroll(server, home.folder / "A.csr")  # with the key it has
    assert sorted(draft(server).sites) == ["A"]


def test_a_site_that_slept_through_it_comes_back_by_a_bundle_with_the_old_root_s_word(
    server: Path, tmp_path: Path, old_key: bytes
) -> None:
    home = make_site(server, "A")
    shutil.copytree(home.folder, tmp_path / "A-before")
    rotation.begin(server, old_key)
    rotation.end(server, key_of_next(server), force=True)
    made = enroll(server, home.folder / "A.csr")
    install(home.folder, "A", made.bundle)
    assert roots(home) == [made.root_sha256]
    read_identity(home).check()
    # Without that word the bundle is a stranger's.
    bundle = json.loads(made.bundle.read_text())
    del bundle["handover"]
    made.bundle.write_text(json.dumps(bundle))
    with pytest.raises(InvalidInput, match="must be of the root installed"):
        install(tmp_path / "A-before", "A", made.bundle)


def test_no_other_key_changes_a_root(server: Path, old_key: bytes) -> None:
    stranger = pki.create_root("veiltune").key
    for change in (rotation.begin, rotation.renew_intermediate):
        with pytest.raises(InvalidInput, match="signing key must be the root's"):
            change(server, stranger)
    with pytest.raises(InvalidInput, match="must be under way, got none"):
        rotation.end(server, old_key)
    rotation.begin(server, old_key)
    with pytest.raises(InvalidInput, match="must change one at a time"):
        rotation.begin(server, old_key)
    with pytest.raises(InvalidInput, match="must be ended before"):
        rotation.renew_intermediate(server, old_key)
    with pytest.raises(InvalidInput, match="signing key must be the root's"):
        rotation.end(server, old_key)  # the old root does not retire itself


def test_another_intermediate_signs_and_what_the_old_one_signed_stays_good(
    server: Path, daemon: Daemon, old_key: bytes
) -> None:
    home = make_site(server, "A")
    before = read_authorities(server).current.intermediate.certificate
    assert rotation.renew_intermediate(server, old_key) in (729, 730)
    after = read_authorities(server).current.intermediate.certificate
    assert after != before
    chain = renew(home).certificate
    assert chain.endswith(after)
    renew(make_site(server, "B"))


# --- cut by a crash -----------------------------------------------------------------------------

CHANGES = """
import sys
from pathlib import Path
from server import rotation
change, home, key = sys.argv[1:]
options = {"force": True} if change == "end" else {}
getattr(rotation, change)(Path(home), Path(key).read_bytes(), **options)
"""


def killed(server: Path, change: str, key: Path, failpoint: str) -> None:
    words = [sys.executable, "-c", CHANGES, change, str(server), str(key)]
    environment = {**os.environ, VARIABLE: failpoint}
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "failpoint"),
    [
        ("begin", "rotation.begun"),
        ("end", "rotation.ended"),
        ("end", "rotation.cut-off"),
        ("end", "rotation.half-tidied"),
        ("renew_intermediate", "rotation.certificate-aside"),
        ("renew_intermediate", "rotation.intermediate-key-kept"),
    ],
)
def test_a_change_cut_by_a_crash_has_happened_or_not(
    server: Path, tmp_path: Path, old_key: bytes, change: str, failpoint: str
) -> None:
    key, before = tmp_path / "old.key", read_authorities(server).current
    if change == "end":
        rotation.begin(server, old_key)
        (tmp_path / "new.key").write_bytes(key_of_next(server))
        key = tmp_path / "new.key"
    killed(server, change, key, failpoint)
    found = read_authorities(server)
    if change == "begin":
        assert (found.current, found.coming is None) == (before, False)
    elif change == "end":
        assert found.coming is None
        assert found.current.root_sha256 != before.root_sha256
    else:
        is_new = found.current.intermediate.key != before.intermediate.key
        assert is_new == (failpoint == "rotation.intermediate-key-kept")
    # Either way the server starts and admits.
    daemon = Daemon(server)
    daemon.start()
    try:
        home = make_site(server, "A")
        renew(home)
    finally:
        daemon.stop()
    assert not (change == "end" and (server / "pki/next").exists())


# --- a roster that is signed elsewhere ----------------------------------------------------------


def test_a_roster_is_signed_on_a_machine_that_has_no_server(
    server: Path, tmp_path: Path, old_key: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    make_site(server, "A")
    make_site(server, "B")
    revoke(server, "B")
    away = tmp_path / "away"
    away.mkdir()
    home = ["--home", str(server)]
    assert cli.main([*home, "roster"]) == 0
    assert "no roster published yet" in capsys.readouterr().out
    assert cli.main([*home, "roster", "draft", str(away / "draft")]) == 0
    signing = ["roster", "sign", str(away / "draft"), str(away / "signed"), "--sign-with"]
    nowhere = ["--home", str(tmp_path / "none")]
    (tmp_path / "strange.key").write_bytes(pki.create_root("veiltune").key)
    (tmp_path / "strange.key").chmod(0o600)
    assert cli.main([*nowhere, *signing, str(tmp_path / "strange.key")]) == 2
    assert "signing key must be the root's, got another" in capsys.readouterr().err
    assert cli.main([*nowhere, *signing, str(tmp_path / "old.key")]) == 0
    out = capsys.readouterr().out
    number = int(out.split()[1])
    assert f"roster {number} of veiltune signed in" in out
    assert "  A key sha256 " in out
    assert "  B" not in out
    assert "1 certificate denied" in out
    assert cli.main([*home, "roster", "publish", str(away / "signed")]) == 0
    assert cli.main([*home, "roster", "publish", str(away / "signed")]) == 2
    assert f"sequence number must be above {number}, got {number}" in capsys.readouterr().err
    assert cli.main([*home, "roster", "--sign-with", str(tmp_path / "old.key")]) == 0
    assert int(capsys.readouterr().out.split()[1]) > number


def test_a_roster_s_number_is_above_any_that_a_restored_server_forgot(
    server: Path, old_key: bytes
) -> None:
    then = dt.datetime(2026, 11, 25, 9, tzinfo=dt.UTC)
    forgotten = [publish(server, sign_draft(draft(server, now=then), old_key)) for _ in range(3)]
    (server / "roster.signed").unlink()
    later = draft(server, now=then + dt.timedelta(minutes=1))
    assert later.sequence > forgotten[-1].sequence
    publish(server, sign_draft(later, old_key))
    # And above the last one where the clock went back.
    assert draft(server, now=then).sequence == later.sequence + 1


def test_sites_fetch_the_roster_and_part_with_a_server_that_shows_an_older_one(
    server: Path,
    daemon: Daemon,
    running: Start,
    old_key: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("client.upkeep._REFUSED_S", 0.3)
    home = make_site(server, "A")
    first = publish(server, sign_draft(draft(server), old_key))
    older = (server / "roster.signed").read_bytes()
    second = publish(server, sign_draft(draft(server), old_key))
    newer = (server / "roster.signed").read_bytes()
    with capture_logs() as events:
        running(home)
        eventually(lambda: (home.folder / "roster.signed").exists())
        eventually(lambda: daemon.link.connected() == {"A"})
        (server / "roster.signed").write_bytes(older)  # an operator, or who took the server over
        eventually(lambda: daemon.link.connected() == set())
        (server / "roster.signed").write_bytes(newer)
        eventually(lambda: daemon.link.connected() == {"A"})
    refused = [e["reason"] for e in events if e["event"] == "root's documents refused"]
    assert refused == [
        f"roster's sequence number must be at least {second.sequence}, got {first.sequence} "
        "(an older one is shown)"
    ]
