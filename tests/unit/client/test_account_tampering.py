"""An account that somebody else wrote to, cut, replaced or copied back is never trained from."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.outbox import Outbox, RoundKey, Terms, spent
from common.errors import InvalidInput, JobRefused, LedgerBroken, RoundRefused, StorageFailed
from common.keys import load_key, new_key
from common.privacy.account import Charge, steps_of
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import Entry, Reserved, write_entry
from common.privacy.extract import read_extract, replay
from common.privacy.ledger import Chain, Head, public_hex
from common.privacy.lifetime import PldSchedule, cap_from_dict, cap_to_dict

GOLDEN = Path(__file__).parents[2] / "golden"
EVENT = GaussianSteps(0.05, 1.3, 4)
JOB, OTHER, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
Edit = Callable[[sqlite3.Connection], object]


def key(round_: int = 1, job: str = JOB) -> RoundKey:
    return RoundKey(job, round_, f"{round_:064x}")


def fill(path: Path) -> Outbox:
    box = Outbox(path, site="A")
    for job in (JOB, OTHER):
        box.open_job(job, job[:2], b"{ }", 700, GaussianSteps(0.05, 1.3, 24), Terms(delta=1e-5))
    for round_ in (1, 2):
        box.reserve(key(round_), EVENT, b"start %d" % round_)
        box.store(key(round_), b"payload %d" % round_)
    box.reserve(key(1, OTHER), EVENT, b"start")
    box.decide(JOB, "approve", "Ada", "as agreed")
    return box


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "account.db"


def edit(path: Path, *statements: str | Edit) -> None:
    with closing(sqlite3.connect(path)) as db:
        for trigger in ("entry_stays", "entry_kept"):
            db.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            if callable(statement):
                statement(db)
            else:
                db.execute(statement)
        db.commit()


ENTRIES = 9  # of fill()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DELETE FROM entry WHERE seq = 3", "entry 3 must be there, got entry 4"),
        ("DELETE FROM entry WHERE seq = 0", "entry 0 must be there, got entry 1"),
        ("UPDATE entry SET seq = -seq WHERE seq = 4", "entry 0 must be there, got entry -4"),
        ("UPDATE entry SET body = zeroblob(length(body)) WHERE seq = 5", "entry 5 must match"),
        ("UPDATE entry SET hash = zeroblob(32) WHERE seq = 6", "entry 6 must match its hash"),
        ("UPDATE entry SET signature = x'30' WHERE seq = 7", "entry 7 must be signed"),
        (
            "INSERT INTO entry SELECT 9, body, hash, signature FROM entry WHERE seq = 8",
            "entry 9 must match its hash",
        ),
        (
            "UPDATE entry SET body = (SELECT body FROM entry WHERE seq = 3) WHERE seq = 5",
            "entry 5 must match",
        ),
    ],
)
def test_a_changed_row_is_named_and_nothing_is_charged_after_it(
    path: Path, statement: str, says: str
) -> None:
    running = fill(path)
    running.verify()
    edit(path, statement)
    with pytest.raises(LedgerBroken, match=says):
        Outbox(path)
    with pytest.raises(LedgerBroken, match=says):
        running.verify()


def test_a_process_that_runs_notices_that_its_ledger_was_cut_or_replaced(
    path: Path, tmp_path: Path
) -> None:
    running = fill(path)
    shutil.copy(path, tmp_path / "older.db")
    running.reserve(key(3), EVENT, b"start")
    (tmp_path / "older.db").replace(path)
    for act in (
        lambda: running.reserve(key(4), EVENT, b"start"),
        lambda: running.store(key(3), b"bytes"),
        lambda: running.stored(key(3)),
        running.charges,
        running.head,
    ):
        with pytest.raises(LedgerBroken, match="entry 9 must be the one read before"):
            act()


def test_a_process_that_runs_notices_another_history_of_the_same_length(
    path: Path, tmp_path: Path
) -> None:
    running = fill(path)
    shutil.copy(path, tmp_path / "account.copy")
    running.reserve(key(3), EVENT, b"start")
    (tmp_path / "account.copy").replace(path)
    path.with_suffix(".anchor").unlink()
    other = Outbox(path)
    for round_ in (5, 6):
        other.reserve(key(round_), EVENT, b"start")
        with pytest.raises(LedgerBroken, match="entry 9 must be the one read before"):
            running.charges()


@pytest.mark.parametrize(
    ("version", "table", "has_anchor"),
    [
        ("ledger", "entry", True),
        ("ledger", "entry", False),
        ("first", "release", False),
        ("first", "job", False),
    ],
)
def test_an_account_whose_table_is_gone_is_not_begun_anew(
    path: Path, version: str, table: str, has_anchor: bool
) -> None:
    if version == "first":
        shutil.copy(GOLDEN / "account_v1.db", path)
    else:
        fill(path)
    if not has_anchor:
        path.with_suffix(".anchor").unlink(missing_ok=True)
    says = "account.db must hold the 9 entries" if has_anchor else "account must be new, a ledger"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"ALTER TABLE {table} RENAME TO lost")
        db.commit()
    for _ in range(2):
        with pytest.raises(LedgerBroken, match=says):
            Outbox(path)


def append(path: Path, model: type[Entry], **fields: object) -> None:
    """The next entry as the site's own key signs it, without a question asked."""
    journal = Outbox(path).journal
    given = {"seq": journal.rows()[-1].seq + 1, "at": "2026-01-01T00:00:00Z", "salt": "00" * 16}
    chain = Chain()
    for row in journal.rows():
        chain.extend(row)
    private = load_key(path.with_suffix(".key").read_bytes())
    row = chain.tail.row(write_entry(model, **given, **fields), private)
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", astuple(row))
        db.commit()


def test_a_damaged_name_is_another_name(path: Path) -> None:
    running = fill(path)
    edit(path, "UPDATE manifest SET job_sha256 = CAST(x'ff' AS TEXT) WHERE rowid = 1")
    with pytest.raises(LedgerBroken, match="job ab must be the bytes that the ledger names"):
        running.jobs()


def test_an_entry_that_cannot_follow_ends_a_process_for_good(path: Path) -> None:
    running = fill(path)
    append(
        path,
        Reserved,
        job_sha256=JOB,
        round=1,
        input_sha256="1" * 64,
        start_sha256="",
        charge=steps_of(EVENT),
        terms={},
        code_sha256="",
        accountant="",
    )
    for act in (
        running.charges,
        running.charges,
        lambda: running.reserve(key(3), EVENT, b"start"),
        lambda: running.store(key(2), b"bytes"),
        lambda: running.decide(JOB, "approve", "Ada"),
        running.head,
        running.verify,
        running.charges,
    ):
        with pytest.raises(LedgerBroken, match="ledger entry 9 must charge a later round"):
            act()


def test_a_ledger_found_broken_by_verify_is_used_no_more(path: Path) -> None:
    running = fill(path)
    edit(path, "UPDATE entry SET body = zeroblob(length(body)) WHERE seq = 5")
    for act in (running.verify, running.charges, lambda: running.reserve(key(3), EVENT, b"start")):
        with pytest.raises(LedgerBroken, match="ledger entry 5 must match"):
            act()


def test_a_table_rebuilt_with_another_type_is_named(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT seq, body, hash, signature FROM entry").fetchall()
        db.execute("DROP TABLE entry")
        db.execute("CREATE TABLE entry (seq INTEGER PRIMARY KEY, body, hash, signature)")
        made = [(seq, body.decode(), *rest) for seq, body, *rest in rows]
        db.executemany("INSERT INTO entry VALUES (?, ?, ?, ?)", made)
        db.commit()
    with pytest.raises(LedgerBroken, match="ledger entry 0 must be bytes"):
        Outbox(path)


def test_our_own_code_cannot_change_an_entry(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        for statement in ("DELETE FROM entry", "UPDATE entry SET body = x'00'"):
            with pytest.raises(sqlite3.IntegrityError, match="entries stay"):
                db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE content SET payload = x'00' WHERE round = 2", "bytes of round 2"),
        ("DELETE FROM content WHERE round = 1", "bytes of round 1"),
        ("UPDATE content SET start = x'00' WHERE round = 2", "start of round 2"),
        ("UPDATE manifest SET content = x'00'", "job ab"),
    ],
)
def test_bytes_that_the_ledger_does_not_name_are_not_used(
    path: Path, statement: str, says: str
) -> None:
    fill(path)
    edit(path, statement)
    with pytest.raises(LedgerBroken, match=f"{says} must be the bytes that the ledger names"):
        Outbox(path).verify()


def facts(box: Outbox) -> list[object]:
    stored = [box.stored(key(round_)) for round_ in (1, 2)]
    return [box.charges(), stored, box.latest_input(JOB), box.jobs(), box.decisions()]


def test_a_flipped_bit_in_any_entry_names_it(path: Path) -> None:
    rows = fill(path).journal.rows()
    whole = path.read_bytes()
    assert len(rows) == ENTRIES
    for row in rows:
        for part in (row.body, row.hash, row.signature):
            assert whole.count(part) == 1
            first = whole.index(part)
            for place in {first, first + len(part) // 2, first + len(part) - 1}:
                torn = bytearray(whole)
                torn[place] ^= 1 << (place % 8)
                path.write_bytes(torn)
                with pytest.raises(LedgerBroken, match=f"ledger entry {row.seq} "):
                    Outbox(path)
    path.write_bytes(whole)
    Outbox(path).verify()


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_the_file_is_found_or_changes_nothing(
    data: st.DataObject, tmp_path: Path
) -> None:
    whole, torn = tmp_path / "account.db", tmp_path / "torn" / "account.db"
    if not whole.exists():
        fill(whole)
        torn.parent.mkdir()
        shutil.copy(tmp_path / "account.key", torn.parent)
    before = facts(Outbox(whole))
    content = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    for old in torn.parent.glob("account.db*"):
        old.unlink()
    torn.write_bytes(content)
    try:
        box = Outbox(torn)
        box.verify()
    except StorageFailed:
        return
    assert facts(box) == before


def test_write_ahead_logging_is_refused(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
    with pytest.raises(StorageFailed, match=r"rollback journal.*got wal"):
        Outbox(path)


def test_an_older_copy_does_not_pass_the_servers_witness(path: Path, tmp_path: Path) -> None:
    box = fill(path)
    shutil.copy(path, tmp_path / "older.db")
    box.require_witnessed(None)
    box.require_witnessed(box.head())
    box.reserve(key(3), EVENT, b"start")
    witnessed = box.head()
    (tmp_path / "older.db").replace(path)
    with pytest.raises(LedgerBroken, match=r"with the 10 entries that account\.anchor remembers"):
        Outbox(path)
    path.with_suffix(".anchor").unlink()
    restored = Outbox(path)
    with pytest.raises(JobRefused, match="the 10 entries that the server witnessed, got 9"):
        restored.require_witnessed(witnessed)
    restored.reserve(key(7), EVENT, b"start")  # another history of the same length
    with pytest.raises(JobRefused, match="must begin with the 10 entries"):
        restored.require_witnessed(witnessed)
    restored.require_witnessed(restored.head())


def test_a_head_that_was_witnessed_long_ago_is_continued(path: Path) -> None:
    box = fill(path)
    early = box.head()
    for round_ in (3, 4, 5):
        box.reserve(key(round_), EVENT, b"start")
    box.require_witnessed(early)
    box.require_witnessed(Head(early.size, early.root, "", ""))
    with pytest.raises(JobRefused, match="must begin with"):
        box.require_witnessed(Head(early.size + 1, early.root, "", ""))


def new_pem(path: Path) -> Path:
    path.write_bytes(new_key())
    path.chmod(0o600)
    return path


def hex_of(pem: Path) -> str:
    return public_hex(load_key(pem.read_bytes()))


def test_a_new_key_signs_once_a_person_has_accepted_it_or_the_old_one_hands_over(
    path: Path, tmp_path: Path
) -> None:
    first, second, third = (new_pem(tmp_path / f"{n}.pem") for n in ("first", "second", "third"))
    running = Outbox(path, first, site="A")
    running.open_job(JOB, "wards", b"{}")
    changed = Outbox(path, second)
    for act in (lambda: changed.decide(JOB, "approve", "Ada"), changed.head):
        with pytest.raises(InvalidInput, match="must be signed last by this site's key"):
            act()
    assert len(changed.journal.rows()) == 2
    with pytest.raises(InvalidInput, match="old key must be the one that signed last"):
        changed.journal.rekey("Bo", load_key(third.read_bytes()))
    changed.journal.rekey("Bo", load_key(first.read_bytes()))
    changed.journal.rekey("Bo")  # again is no change
    changed.decide(JOB, "approve", "Ada")
    last = Outbox(path, third)
    last.journal.rekey("Cy")
    assert last.head().is_signed()
    assert [entry.words for entry in last.hand_overs()] == [
        "handed over by the key before, accepted by Bo",
        "without the key before, accepted by Cy",
    ]
    assert last.journal.keys == tuple(map(hex_of, (first, second, third)))
    assert last.verify() == 5
    assert last.created().binds_keys
    with pytest.raises(InvalidInput, match="must be signed last by this site's key"):
        running.reserve(key(1), EVENT, b"start")


def test_a_running_site_takes_up_the_key_that_was_put_in_its_place_once_the_ledger_names_it(
    path: Path, tmp_path: Path
) -> None:
    site_key = new_pem(tmp_path / "site.key")
    old = hex_of(site_key)
    running = Outbox(path, site_key, site="A")
    running.open_job(JOB, "wards", b"{}")
    site_key.write_bytes(new_key())
    running.decide(JOB, "approve", "Ada")  # nobody has said yet that the new one may sign
    Outbox(path, site_key).journal.rekey("Bo")
    running.decide(JOB, "approve", "Ada", "under the new key")
    assert running.head().is_signed()
    assert running.journal.keys == (old, hex_of(site_key))
    stranger = new_pem(tmp_path / "stranger.pem")
    Outbox(path, stranger).journal.rekey("Mallory")
    with pytest.raises(InvalidInput, match="must be signed last by this site's key"):
        running.head()


def test_an_account_can_be_read_without_its_key_but_not_written(path: Path) -> None:
    fill(path)
    beside = path.with_suffix(".key")
    beside.chmod(0o644)
    box = Outbox(path)
    assert len(box.charges()) == 3
    with pytest.raises(InvalidInput, match="mode 0600"):
        box.reserve(key(3), EVENT, b"start")
    assert len(box.charges()) == 3


def test_no_round_passes_the_budget_that_the_job_was_accepted_with(path: Path) -> None:
    box = fill(path)
    for event in (
        GaussianSteps(0.05, 1.3, 17), GaussianSteps(0.06, 1.3, 4), GaussianSteps(0.05, 1.2, 4),
    ):  # fmt: skip
        with pytest.raises(RoundRefused, match="within the 24 steps that the job was accepted"):
            box.reserve(key(3), event, b"start")
    box.reserve(key(3), GaussianSteps(0.05, 1.3, 16), b"start")
    with pytest.raises(RoundRefused, match="got 1 more after 24"):
        box.reserve(key(4), GaussianSteps(0.05, 1.3, 1), b"start")


def test_a_cap_over_all_charges_is_asked_within_the_transaction(path: Path) -> None:
    box = fill(path)
    asked: list[int] = []

    def within(charges: list[Charge]) -> None:
        asked.append(sum(charge.event.steps for charge in charges))
        if asked[-1] > 16:
            raise RoundRefused("steps must be at most 16, got more")

    box.reserve(key(3), EVENT, b"start", within=within)
    with pytest.raises(RoundRefused, match="at most 16"):
        box.reserve(key(4), EVENT, b"start", within=within)
    assert asked == [16, 20]
    assert len(box.charges()) == 4
    box.reserve(key(3), EVENT, b"start", within=within)  # charged already: not asked
    assert asked == [16, 20]


def test_a_charge_says_its_terms_and_the_job_its_whole_budget(path: Path) -> None:
    box = fill(path)
    terms = Terms(unit="patient_id", unit_cap=4, delta=1e-6)
    box.open_job(THIRD, "third", b"{}", 0, GaussianSteps(0.1, 2.0, 5), terms)
    box.reserve(key(1, THIRD), GaussianSteps(0.1, 2.0, 5), b"start")
    assert box.charges(THIRD)[0].terms == terms
    assert box.submissions()[-1].plan == GaussianSteps(0.1, 2.0, 5)
    body = json.loads(box.journal.rows()[-1].body)
    assert body["accountant"].startswith("dp-accounting 0.")
    assert len(body["code_sha256"]) == 64


def test_decisions_of_people_are_kept_in_order(path: Path) -> None:
    box = fill(path)
    box.decide(OTHER, "refuse", "Bo")
    found = [(d.job_sha256, d.decision, d.who, d.note) for d in Outbox(path).decisions()]
    assert found == [(JOB, "approve", "Ada", "as agreed"), (OTHER, "refuse", "Bo", "")]


def test_the_lifetime_cap_is_the_one_that_the_account_was_made_with(path: Path) -> None:
    Outbox(path, cap={"order": 8, "budget": 2.5}, unit="patient_id")
    again = Outbox(path, cap={"order": 2, "budget": 9.0})
    assert again.lifetime_cap() == {"order": 8, "budget": 2.5}


def test_an_account_of_the_first_version_keeps_every_charge(path: Path) -> None:
    shutil.copy(GOLDEN / "account_v1.db", path)
    box = Outbox(path, site="A")
    expected = json.loads((GOLDEN / "accounts.json").read_text())
    # The oracle is Opacus' PRV accountant, within its own error of 0.01.
    assert spent(box.charges(), 1e-5) == pytest.approx(expected["account_v1"], abs=0.01)
    found = [
        (c.job_sha256[0], c.round, c.event.steps, c.is_released, c.is_acknowledged)
        for c in box.charges()
    ]
    assert found == [
        ("a", 1, 40, True, True),
        ("b", 1, 25, True, True),
        ("a", 2, 40, False, False),
        ("c", 1, 9, True, False),
        ("b", 3, 25, False, False),
    ]
    rows = [(row.name, row.manifest, row.state) for row in box.jobs()]
    assert rows == [
        ("wards", b"{}", "finished"), ("icu", b"{  }", "running"), ("open", b"{ }", "stopped"),
    ]  # fmt: skip
    assert box.jobs()[0].final_sha256 == "f" * 64
    assert (box.cap("a" * 64), box.cap("c" * 64)) == (900, None)
    assert box.stored(RoundKey("b" * 64, 1, "1" * 64)) == b"\1\2\3"
    assert box.latest_input("b" * 64) == (3, b"\4\5")
    box.reserve(RoundKey("b" * 64, 4, "3" * 64), GaussianSteps(0.05, 1.3, 25), b"next")
    imported = [json.loads(row.body).get("is_imported") for row in box.journal.rows()]
    assert imported == [None] + [True] * 15 + [False]
    Outbox(path).verify()
    with closing(sqlite3.connect(path)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    assert not tables & {"job", "release"}


def test_a_recorded_account_opens_to_the_same_epsilon(path: Path) -> None:
    shutil.copy(GOLDEN / "account_capped.db", path)
    expected = json.loads((GOLDEN / "accounts.json").read_text())
    box = Outbox(path)
    # The oracle is Opacus' PRV accountant, within its own error of 0.01.
    assert spent(box.charges(), 1e-5) == pytest.approx(expected["ledger_v1"], abs=0.01)
    assert cap_from_dict(box.lifetime_cap()).max_epsilon == 8.0
    assert box.stored(RoundKey("b" * 64, 1, f"{1:064x}")) == b"bytes"
    assert [job.state for job in box.jobs()] == ["finished", "running"]
    assert box.verify() == 13
    exported = replay(read_extract((GOLDEN / "ledger_capped.jsonl").read_bytes()))
    assert exported.charges() == box.charges()
    with pytest.raises(InvalidInput, match="ledger's key must be in"):
        box.decide("b" * 64, "approve", "Ada")


def test_no_schedule_begins_after_earlier_releases(path: Path) -> None:
    shutil.copy(GOLDEN / "account_v1.db", path)
    cap = cap_to_dict(PldSchedule((JOB,), 7.0, 1e-4))
    with pytest.raises(InvalidInput, match=r"rdp-filter.*got 'pld-schedule' after 5 of them"):
        Outbox(path, site="A", cap=cap)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM release").fetchone() == (5,)
        db.execute("DELETE FROM release")
        db.commit()
    assert Outbox(path, site="A", cap=cap).lifetime_cap() == cap


def test_an_account_that_cannot_be_imported_whole_is_left_as_it_was(path: Path) -> None:
    shutil.copy(GOLDEN / "account_v1.db", path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE release SET sampling_rate = 7.5 WHERE round = 3")
        db.commit()
    with pytest.raises(InvalidInput, match="ledger entry must keep to its schema"):
        Outbox(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM release").fetchone() == (5,)
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry'").fetchone()
