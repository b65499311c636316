"""A ledger in trouble, planted in the file itself, and seen by the doctor."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import load_home
from client.linkcheck import LINES
from client.outbox import Outbox, RoundKey
from common import pki
from common.diagnosis import Finding
from common.job import SignedJob
from common.privacy.accounting import GaussianSteps

Make = Callable[..., Path]
Look = Callable[..., dict[str, Finding]]
Charge = Callable[[Path, int], None]

NAMES = ("database", "ledger", "key and certificate", "certificate")
JOB = "ab" * 32


@pytest.fixture
def charge(manifest: Callable[..., SignedJob]) -> Charge:
    """Charges a round to a home's ledger; the first time, a job is opened in it."""

    def to(home: Path, number: int) -> None:
        outbox = Outbox.of(load_home(home, "A"))
        if not outbox.jobs():
            outbox.open_job(JOB, "wards", manifest().to_bytes(), 700)
        outbox.reserve(RoundKey(JOB, number, "cd" * 32), GaussianSteps(0.05, 1.3, 4), b"\0" * 4)

    return to


def test_a_ledger_that_is_whole_is_verified(whole: Make, look: Look, charge: Charge) -> None:
    home = whole()
    assert look(home, "ledger")["ledger"].found.startswith("none yet")
    charge(home, 1)
    found = look(home, "database", "ledger")
    assert {f.mark for f in found.values()} == {"ok"}
    assert found["ledger"].found.startswith("whole: 3 entries")
    assert found["anchor"].found == "remembers 3 of the ledger's 3, and agrees"
    assert set(found) == {"database", "ledger", "anchor", "limits", "heads"}


def flip(home: Path, _: Charge) -> None:
    path = home / "account.db"
    data = path.read_bytes()
    assert b'"wards"' in data
    path.write_bytes(data.replace(b'"wards"', b'"warts"', 1))


def other_bytes(home: Path, _: Charge) -> None:
    with contextlib.closing(sqlite3.connect(home / "account.db")) as db:
        assert db.execute("UPDATE content SET start = x'00'").rowcount == 1
        db.commit()


def roll_back(home: Path, charge: Charge) -> None:
    shutil.copy(home / "account.db", home.parent / "old.db")
    charge(home, 2)
    shutil.copy(home.parent / "old.db", home / "account.db")


def fall_behind(home: Path, charge: Charge) -> None:
    shutil.copy(home / "account.anchor", home.parent / "old.anchor")
    charge(home, 2)
    shutil.copy(home.parent / "old.anchor", home / "account.anchor")


def to_wal(home: Path, _: Charge) -> None:
    with contextlib.closing(sqlite3.connect(home / "account.db")) as db:
        assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)


def other_key(home: Path, _: Charge) -> None:
    (home / "pki" / "site.key").write_bytes(pki.new_site_key_and_csr("A")[0])


def other_limits(home: Path, _: Charge) -> None:
    path = home / "site.toml"
    path.write_text(path.read_text().replace("max_epsilon = 7.0", "max_epsilon = 9.0"))


def cut_off(home: Path, _: Charge) -> None:
    (home / "account.db-journal").write_bytes(b"\xd9\xd5\x05\xf9" * 200)


def write(name: str, content: bytes) -> Callable[[Path, Charge], object]:
    return lambda home, _: (home / name).write_bytes(content)


def remove(name: str) -> Callable[[Path, Charge], object]:
    return lambda home, _: (home / name).unlink()


LATEST = "put the latest account.db back"
NOT_VERIFIED = ("not checked", "could not be verified", "mend the ledger")
OTHERWISE = ("not checked", "remembers another", "mend the anchor")
CUT_OFF = ("not checked", "was cut off", "start the site")
Expected = dict[str, tuple[str, str, str]]
TROUBLES: dict[str, tuple[Callable[[Path, Charge], object], Expected]] = {
    "an entry was changed": (flip, {
        "ledger": ("fault", "entry", LATEST), "anchor": NOT_VERIFIED,
    }),
    "the bytes that it names were changed": (other_bytes, {
        "ledger": ("fault", "must be the bytes that the ledger names", LATEST),
        "anchor": NOT_VERIFIED,
    }),
    "an older copy was put back": (roll_back, {
        "ledger": OTHERWISE, "anchor": ("fault", "account.anchor remembers, got 3", LATEST),
    }),
    "it was taken away": (remove("account.db"), {
        "ledger": OTHERWISE, "anchor": ("fault", "account.anchor remembers, got none", LATEST),
    }),
    "its anchor was taken away": (remove("account.anchor"), {
        "anchor": ("warning", "is missing", "put it back"),
    }),
    "its anchor is something else": (write("account.anchor", b"[]"), {
        "ledger": OTHERWISE, "anchor": ("fault", "must be as it was written", LATEST),
    }),
    "its anchor is behind, as after a kill": (fall_behind, {}),
    "it is no database": (write("account.db", b"x" * 5000), {
        "ledger": ("fault", "file is not a database", LATEST), "anchor": NOT_VERIFIED,
    }),
    "it keeps a write-ahead log": (to_wal, {
        "database": ("fault", "journal mode wal", "never in that mode"),
        "ledger": ("fault", "journal_mode=DELETE", LATEST),
        "anchor": NOT_VERIFIED,
    }),
    "another key is here": (other_key, {
        "key and certificate": ("fault", "for another key", "put that key back"),
        "ledger": ("fault", "signed last by this site's key", "ledger rekey"),
        "anchor": NOT_VERIFIED,
    }),
    "site.toml has other limits": (other_limits, {
        "limits": ("fault", "policy.max_epsilon must be the ledger's 7", "as the ledger has them"),
    }),
    "a write was cut off": (cut_off, {
        "ledger": CUT_OFF, "anchor": CUT_OFF, "limits": CUT_OFF, "heads": CUT_OFF,
    }),
}  # fmt: skip


@pytest.mark.parametrize("what", TROUBLES)
def test_a_ledger_in_trouble_is_named(whole: Make, look: Look, charge: Charge, what: str) -> None:
    plant, expected = TROUBLES[what]
    home = whole()
    charge(home, 1)
    plant(home, charge)
    found = look(home, *NAMES)
    told = {name: f for name, f in found.items() if f.mark != "ok"}
    assert set(told) == set(expected)
    for name, (mark, words, advice) in expected.items():
        assert told[name].mark == mark
        assert words in told[name].found
        assert advice in told[name].advice


def test_a_ledger_says_nothing_of_the_link(whole: Make, look: Look) -> None:
    assert not set(LINES) & set(look(whole(), "ledger"))
