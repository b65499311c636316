"""A site whose key is lost or in other hands comes back by the commands, as who it was."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client import cli as site_cli
from client import serve
from client.account import open_account
from client.config import SiteHome, load_home
from client.outbox import Outbox, RoundKey, Terms
from client.renewal import renew
from client.session import Turned
from common.errors import InvalidInput
from common.invitation import read_token
from common.privacy.accounting import GaussianSteps
from server import cli as server_cli
from server.daemon import Daemon
from tests.integration.live import eventually, is_open

Say = Callable[..., tuple[int, str]]
JOB = "ab" * 32
EVENT = GaussianSteps(0.05, 1.3, 4)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], logs_kept: None) -> Say:
    """Runs a command; its status and all it said."""

    def call(main: Callable[[list[str]], int], *words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.fixture
def logs_kept() -> Iterator[None]:
    """Commands configure logging; nothing of that outlives a test."""
    import logging

    import structlog

    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


def invite(say: Say, server: Path) -> str:
    code, said = say(server_cli.main, "--home", server, "invite", "A")
    assert code == 0, said
    token = next(line for line in said.splitlines() if line.startswith("vt1."))
    eventually(lambda: is_open(read_token(token)))
    return token


def turn_away(say: Say, server: Path, token: str) -> None:
    """Revoke A, and wait until the port of its invitation is closed."""
    assert say(server_cli.main, "--home", server, "revoke", "A")[0] == 0
    eventually(lambda: not is_open(read_token(token)))


def spend(home: SiteHome) -> Outbox:
    """A job of which one round was charged."""
    outbox = open_account(home)
    planned = GaussianSteps(0.05, 1.3, 24)
    outbox.open_job(JOB, "wards", b"{}", 0, planned, Terms(unit="record"))
    outbox.reserve(RoundKey(JOB, 1, "1" * 64), EVENT, b"start")
    return outbox


def test_a_site_that_lost_its_key_comes_back_with_its_name_and_all_it_spent(
    server: Path, daemon: Daemon, say: Say, tmp_path: Path
) -> None:
    site = ["--site", "A", "--home", tmp_path / "A"]
    token = invite(say, server)
    code, said = say(site_cli.main, *site, "join", token)
    assert code == 0, said
    home = load_home(tmp_path / "A", "A")
    spent = spend(home)
    assert daemon.checkpoints.witness("A", spent.head()) == "longer"
    shutil.copytree(home.folder, tmp_path / "stolen")
    stolen = load_home(tmp_path / "stolen", "A")

    # The operator turns the old key away, for renewals too.
    (home.folder / "pki/site.key").unlink()
    turn_away(say, server, token)
    with pytest.raises(Turned, match="revoked"):
        renew(stolen)

    # A new key by a new token; the name, the settings and the pinned root stay.
    settings = (home.folder / "site.toml").read_bytes()
    code, said = say(site_cli.main, *site, "join", invite(say, server))
    assert code == 0, said
    assert (home.folder / "site.toml").read_bytes() == settings

    # What was spent goes on under the new key once a person has said so, and not before.
    with pytest.raises(InvalidInput, match="rekey"):
        serve.run(home, threading.Event())
    code, said = say(site_cli.main, *site, "ledger", "rekey")
    assert code == 2
    assert "--yes must be given" in said
    code, said = say(site_cli.main, *site, "ledger", "rekey", "--yes", "--by", "Ada")
    assert code == 0, said
    after = open_account(home)
    after.verify()
    assert after.charges() == spent.charges()
    assert len(after.charges()) == 1

    # The server's witness goes on with it, and takes nothing more that the old key signs.
    assert daemon.checkpoints.witness("A", after.head()) == "longer"
    old = Outbox.of(stolen)
    old.decide(JOB, "refuse", "somebody")
    old.decide(JOB, "refuse", "somebody")
    old.decide(JOB, "approve", "somebody")
    assert daemon.checkpoints.witness("A", old.head()) == "foreign"
    renew(home)


def test_the_key_before_hands_over_where_it_is_at_hand(
    server: Path, daemon: Daemon, say: Say, tmp_path: Path
) -> None:
    site = ["--site", "A", "--home", tmp_path / "A"]
    token = invite(say, server)
    assert say(site_cli.main, *site, "join", token)[0] == 0
    home = load_home(tmp_path / "A", "A")
    spend(home)
    (home.folder / "pki/site.key").rename(tmp_path / "before.key")
    turn_away(say, server, token)
    assert say(site_cli.main, *site, "join", invite(say, server))[0] == 0
    code, said = say(site_cli.main, *site, "ledger", "rekey", "--old-key", tmp_path / "before.key")
    assert code == 0
    assert "handed over by the key before" in said
    assert len(open_account(home).charges()) == 1
