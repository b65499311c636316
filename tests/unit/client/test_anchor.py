"""A ledger that was lost, emptied, cut or begun anew is missed, though no server ever saw it."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from client.anchor import Anchor
from client.outbox import Outbox, RoundKey
from common import failpoints
from common.errors import InvalidInput, LedgerBroken, StorageFailed
from common.files import write_file
from common.keys import new_key
from common.privacy.accounting import GaussianSteps

EVENT = GaussianSteps(0.05, 1.3, 4)
JOB = "ab" * 32


def key(round_: int) -> RoundKey:
    return RoundKey(JOB, round_, f"{round_:064x}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "account.db"


def fill(path: Path, rounds: int = 2) -> Outbox:
    box = Outbox(path, site="A")
    box.open_job(JOB, "wards", b"{}")
    for round_ in range(1, rounds + 1):
        box.reserve(key(round_), EVENT, b"start")
    return box


def test_after_every_commit_the_anchor_is_the_ledgers_head(path: Path) -> None:
    box, seen = fill(path), Anchor(path)
    for act in (
        lambda: box.store(key(2), b"bytes"),
        lambda: box.acknowledge(JOB, 2, box.charges()[1].payload_sha256, accepted=True),
        lambda: box.decide(JOB, "approve", "Ada"),
        lambda: box.close_job(JOB, "finished", ""),
    ):
        act()
        head, now = seen.read(), box.head()
        assert head is not None
        assert head.is_signed()
        assert (head.size, head.root, head.public_key) == (now.size, now.root, now.public_key)
    assert seen.path.stat().st_mode & 0o777 == 0o600


def empty(path: Path) -> None:
    path.write_bytes(b"")


def begin_anew(path: Path) -> None:
    path.unlink()
    anchor = path.with_suffix(".anchor")
    anchor.rename(anchor.with_suffix(".away"))
    fill(path, rounds=4)
    anchor.with_suffix(".away").replace(anchor)


def first_version(path: Path) -> None:
    shutil.copy(Path(__file__).parents[2] / "golden" / "account_v1.db", path)


@pytest.mark.parametrize("lose", [Path.unlink, empty, begin_anew, first_version])
def test_a_ledger_that_was_lost_is_refused_and_not_begun_anew(
    path: Path, lose: Callable[[Path], None]
) -> None:
    fill(path)
    lose(path)
    left = path.read_bytes() if path.exists() else None
    for is_reader in (False, True):
        with pytest.raises(LedgerBroken, match=r"the 4 entries that account\.anchor remembers"):
            Outbox(path, site="A", is_reader=is_reader)
    assert (path.read_bytes() if path.exists() else None) == left


@pytest.mark.parametrize("make", [empty, first_version])
def test_a_reader_brings_no_account_up_to_date(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="must be a ledger, got an older or empty one"):
        Outbox(path, site="A", is_reader=True)
    assert [file.name for file in path.parent.iterdir()] == ["account.db"]
    assert path.read_bytes() == before
    assert Outbox(path, site="A").created().site == "A"


def test_a_ledger_that_goes_away_under_a_process_is_not_made_by_it(path: Path) -> None:
    box = fill(path)
    path.unlink()
    for act in (box.charges, lambda: box.reserve(key(3), EVENT, b"start"), box.head, box.verify):
        with pytest.raises(StorageFailed, match="account must be written to"):
            act()
    assert not path.exists()


def test_a_ledger_that_is_emptied_under_a_process_charges_nothing_more(path: Path) -> None:
    box = fill(path)
    path.write_bytes(b"")
    for act in (box.charges, lambda: box.reserve(key(2), EVENT, b"start")):
        with pytest.raises(StorageFailed):
            act()


def killed_at(failpoint: str, act: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        try:
            failpoints._armed, failpoints._left = failpoint, 1
            act()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_between_a_commit_and_its_anchor_does_no_harm(path: Path) -> None:
    fill(path)
    killed_at("ledger.reserve.after-commit", lambda: Outbox(path).reserve(key(3), EVENT, b"start"))
    behind = Anchor(path).read()
    assert behind is not None
    box = Outbox(path)
    assert [charge.round for charge in box.charges()] == [1, 2, 3]
    assert behind.size == box.head().size - 1
    box.reserve(key(4), EVENT, b"start")
    caught_up = Anchor(path).read()
    assert caught_up is not None
    assert caught_up.size == box.head().size == behind.size + 2


def test_a_kill_before_the_first_anchor_leaves_a_ledger_that_opens(path: Path) -> None:
    killed_at("ledger.create.after-commit", lambda: Outbox(path, site="A"))
    assert Anchor(path).read() is None
    assert fill(path).verify() == 4


def test_an_anchor_that_cannot_be_written_leaves_the_charge_and_is_asked_again(path: Path) -> None:
    box, anchor = fill(path), path.with_suffix(".anchor")
    anchor.unlink()
    anchor.mkdir()
    with pytest.raises(StorageFailed, match="a folder is in the way"):
        box.reserve(key(3), EVENT, b"start")
    anchor.rmdir()
    box.reserve(key(3), EVENT, b"start")
    assert [charge.round for charge in box.charges()] == [1, 2, 3]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"head": {"size": "4"}}', b"\xff"])
def test_an_anchor_that_is_none_is_refused(path: Path, content: bytes) -> None:
    fill(path)
    path.with_suffix(".anchor").write_bytes(content)
    with pytest.raises(LedgerBroken, match=r"account\.anchor must be as it was written"):
        Outbox(path)


def test_an_anchor_that_the_ledgers_keys_did_not_sign_is_refused(
    path: Path, tmp_path: Path
) -> None:
    box = fill(path)
    anchor = path.with_suffix(".anchor")
    said = json.loads(anchor.read_text())
    signature = bytearray.fromhex(said["head"]["signature"])
    signature[-1] ^= 1
    said["head"]["signature"] = signature.hex()
    anchor.write_text(json.dumps(said))
    with pytest.raises(LedgerBroken, match="must be signed by the ledger's key"):
        Outbox(path)
    assert box.charges()


def test_a_ledger_made_anew_is_said_once_and_aloud_at_a_real_site(tmp_path: Path) -> None:
    write_file(tmp_path / "site.key", new_key())
    with capture_logs() as events:
        Outbox(tmp_path / "real.db", tmp_path / "site.key")
        Outbox(tmp_path / "real.db", tmp_path / "site.key")
        Outbox(tmp_path / "simulated.db")
    assert {event["event"] for event in events} == {"ledger made anew"}
    made = [(e["log_level"], Path(e["account"]).name, e["imported"]) for e in events]
    assert made == [("warning", "real.db", False), ("info", "simulated.db", False)]
