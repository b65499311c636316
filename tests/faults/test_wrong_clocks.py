"""A clock that is a year off: said in one line by who starts; a ledger goes by its own order."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from client.enrolment import init_site, install
from client.outbox import Outbox
from server.enrolment import enroll, init_server
from simulations.federation import console_script
from tests.faults.account_driver import STEPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("faketime") is None, reason="faketime is not installed"),
]


def at(clock: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["faketime", "-f", clock, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def homes(tmp_path: Path) -> Path:
    address = "127.0.0.1:1"
    init_server(tmp_path / "s", hosts=["127.0.0.1"], address=address, listen="127.0.0.1:0")
    init_site(tmp_path / "A", "A")
    enroll(tmp_path / "s", tmp_path / "A" / "A.csr", tmp_path / "A.bundle")
    install(tmp_path / "A", "A", tmp_path / "A.bundle")
    return tmp_path


@pytest.mark.parametrize(("clock", "words"), [("-1y", "not valid before"), ("+1y", "expired on")])
def test_a_site_whose_clock_is_a_year_off_does_not_start(
    homes: Path, clock: str, words: str
) -> None:
    done = at(clock, console_script("fl-client"), "--site", "A", "--home", str(homes / "A"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: site certificate must be valid today, got one that")
    assert words in line


@pytest.mark.parametrize(("clock", "words"), [("-1y", "not valid before"), ("+3y", "expired on")])
def test_a_server_whose_clock_is_years_off_does_not_start(
    homes: Path, clock: str, words: str
) -> None:
    done = at(clock, console_script("fl-server"), "--home", str(homes / "s"), "start")
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()  # after the log of what it tried
    assert "certificate must be valid today, got one that" in line
    assert line.startswith("error: ")
    assert words in line


RELEASE = """
import os, sys
from pathlib import Path
from client.outbox import Outbox, RoundKey
from tests.faults.account_driver import EVENT, JOB
box, round_ = Outbox(Path(sys.argv[1]), site="A"), int(sys.argv[2])
box.open_job(JOB, "icu", b"{}")
key = RoundKey(JOB, round_, f"{round_:064x}")
if box.stored(key) is None:
    box.reserve(key, EVENT, b"start")
    box.store(key, os.urandom(40))
"""


def test_a_clock_that_moves_gives_no_budget_back_and_changes_no_order(tmp_path: Path) -> None:
    account = tmp_path / "account.db"
    root = Path(__file__).parents[2]
    for clock, round_ in (("+1y", 1), ("-1y", 2), ("+0d", 2), ("+9y", 3)):
        command = [sys.executable, "-c", RELEASE, str(account), str(round_)]
        done = at(clock, "env", f"PYTHONPATH={root}", *command)
        assert done.returncode == 0, done.stderr
    box = Outbox(account)
    box.verify()
    assert [(c.round, c.event.steps) for c in box.charges()] == [(n, STEPS) for n in (1, 2, 3)]
    with closing(sqlite3.connect(account)) as db:
        rows = db.execute("SELECT body FROM entry ORDER BY seq").fetchall()
    years = [int(json.loads(body)["at"][:4]) for (body,) in rows]
    assert years != sorted(years), "the clock must have gone back"
