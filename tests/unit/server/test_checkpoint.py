import contextlib
import hashlib
import os
import re
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from common.errors import InvalidInput, StorageFailed
from common.job import SignedJob
from common.privacy.ledger import Head
from server.checkpoint import Checkpoints, Receipt, RoundRecord
from server.database import _place as database_place

Signed = Callable[..., SignedJob]

VECTOR = bytes(range(256)) * 8


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def closed(round_: int, vector: bytes = VECTOR) -> RoundRecord:
    return RoundRecord(round_, 0.25 * round_, None, 11, 1.5, "00" * 32, digest(vector))


def replies(round_: int) -> list[Receipt]:
    return [
        Receipt("A", round_, "aa" * 32, 4, 4 * round_, 5, accepted=True),
        Receipt("B", round_, "", 0, 3 * round_, 6, accepted=False),
    ]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return url(tmp_path / "state.db")


@pytest.fixture
def job(signed: Signed) -> SignedJob:
    return signed()


@pytest.fixture
def store(database: str, job: SignedJob) -> Checkpoints:
    checkpoints = Checkpoints(database)
    checkpoints.add_job(job)
    return checkpoints


def test_everything_reads_back_from_a_second_opening(
    store: Checkpoints, database: str, job: SignedJob
) -> None:
    sha256 = job.job.sha256
    store.dispatch(sha256, 1, ["B", "A"])
    store.save_round(sha256, closed(1), VECTOR, replies(1))
    store.set_state(sha256, "finished")
    store.close()
    again = Checkpoints(database)
    row = again.job("wards")
    assert (row.sha256, row.state) == (sha256, "finished")
    assert row.signed == job
    assert again.rounds(sha256) == [closed(1)]
    assert again.receipts(sha256) == replies(1)
    assert again.dispatched(sha256) == [(1, "A"), (1, "B")]
    assert again.latest(sha256) == (1, VECTOR)


def test_rounds_of_before_bytes_down_read_back_without_them(
    store: Checkpoints, database: str, job: SignedJob
) -> None:
    sha256 = job.job.sha256
    store.save_round(sha256, closed(1), VECTOR, replies(1))
    store.close()
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as file:
        file.execute("ALTER TABLE rounds DROP COLUMN bytes_down")
        file.commit()
    again, second = Checkpoints(database), replace(closed(2), bytes_down=2**40)
    again.save_round(sha256, second, VECTOR, replies(2))
    assert again.rounds(sha256) == [closed(1), second]


def test_replies_of_before_cuts_were_noted_read_back_as_uncut_and_may_be_saved_again(
    store: Checkpoints, database: str, job: SignedJob
) -> None:
    sha256 = job.job.sha256
    store.save_round(sha256, closed(1), VECTOR, replies(1))
    store.close()
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as file:
        file.execute("ALTER TABLE receipts DROP COLUMN was_cut")
        file.commit()
    again = Checkpoints(database)
    again.save_round(sha256, closed(1), VECTOR, replies(1))
    cut = [replace(replies(2)[0], was_cut=True), replies(2)[1]]
    again.save_round(sha256, closed(2), VECTOR, cut)
    assert again.receipts(sha256) == [*replies(1), *cut]


HEAD = Head(5, "ab" * 32, "cd" * 72, "ef" * 91)


def test_the_longest_ledger_head_of_each_site_is_remembered(database: str) -> None:
    store = Checkpoints(database)
    assert store.head("A") is None
    assert store.witness("A", HEAD) == "longer"
    assert store.witness("A", replace(HEAD, signature="00")) == "same"
    assert store.witness("A", replace(HEAD, root="00" * 32)) == "forked"
    assert store.witness("A", replace(HEAD, size=4, root="00" * 32)) == "shorter"
    assert Checkpoints(database).head("A") == HEAD
    assert store.head("B") is None
    longer = Head(6, "cd" * 32, "ab" * 70, "12" * 91)
    assert store.witness("A", longer) == "longer"
    assert store.witness("B", HEAD) == "longer"
    assert (Checkpoints(database).head("A"), store.head("B")) == (longer, HEAD)


def test_a_head_of_a_key_that_the_site_has_no_certificate_for_is_not_kept(database: str) -> None:
    known = hashlib.sha256(bytes.fromhex(HEAD.public_key)).hexdigest()
    store = Checkpoints(database, lambda site, key_sha256: (site, key_sha256) == ("A", known))
    assert store.witness("A", HEAD) == "longer"
    assert store.witness("B", HEAD) == "foreign"
    assert store.witness("A", Head(6, "cd" * 32, "ab" * 70, "12" * 91)) == "foreign"
    assert (store.head("A"), store.head("B")) == (HEAD, None)


def test_a_job_is_added_once(store: Checkpoints, job: SignedJob) -> None:
    store.set_state(job.job.sha256, "running")
    assert not store.add_job(job)
    assert [row.state for row in store.jobs()] == ["running"]


def test_jobs_stand_in_order_of_submission(database: str, signed: Signed) -> None:
    store = Checkpoints(database)
    names = ["m", "b", "z", "a"]
    assert all(store.add_job(signed(name)) for name in names)
    assert [row.name for row in store.jobs()] == names


def test_a_job_is_found_by_name_or_first_characters(store: Checkpoints, job: SignedJob) -> None:
    assert store.job("wards") == store.job(job.job.sha256[:4]) == store.job(job.job.sha256)


def test_an_unknown_job_is_refused_with_the_known_ones(store: Checkpoints) -> None:
    with pytest.raises(InvalidInput, match=r"must be one of those here \(wards\), got 'ward'"):
        store.job("ward")


def test_an_ambiguous_name_is_refused_with_the_choices(store: Checkpoints, signed: Signed) -> None:
    other = signed(rounds=9)
    store.add_job(other)
    with pytest.raises(InvalidInput, match=other.job.sha256[:12]):
        store.job("wards")


def test_only_the_latest_adapter_is_kept(store: Checkpoints, job: SignedJob) -> None:
    for round_ in (1, 2, 3):
        vector = VECTOR[round_:]
        store.save_round(job.job.sha256, closed(round_, vector), vector, replies(round_))
    assert store.latest(job.job.sha256) == (3, VECTOR[3:])
    assert len(store.rounds(job.job.sha256)) == 3


def test_a_job_without_a_round_has_no_latest(store: Checkpoints, job: SignedJob) -> None:
    assert store.latest(job.job.sha256) is None


def test_the_same_round_again_changes_nothing(store: Checkpoints, job: SignedJob) -> None:
    sha256 = job.job.sha256
    store.save_round(sha256, closed(1), VECTOR, replies(1))
    store.save_round(sha256, replace(closed(1), seconds=9.0), VECTOR, replies(1)[::-1])
    assert store.rounds(sha256) == [closed(1)]


@pytest.mark.parametrize("change", ["adapter", "accuracy", "receipt", "missing receipt"])
def test_another_content_for_a_saved_round_is_refused(
    change: str, store: Checkpoints, job: SignedJob
) -> None:
    sha256 = job.job.sha256
    store.save_round(sha256, closed(1), VECTOR, replies(1))
    record, vector, receipts = closed(1), VECTOR, replies(1)
    if change == "adapter":
        vector = VECTOR[::-1]
    elif change == "accuracy":
        record = replace(record, accuracy=0.9)
    elif change == "receipt":
        receipts[1] = replace(receipts[1], charged_steps=0)
    else:
        receipts.pop()
    with pytest.raises(StorageFailed, match=r"round 1 must be saved once, got another content"):
        store.save_round(sha256, record, vector, receipts)
    assert store.latest(sha256) == (1, VECTOR)
    assert store.receipts(sha256) == replies(1)


def test_dispatching_again_adds_only_new_sites(store: Checkpoints, job: SignedJob) -> None:
    store.dispatch(job.job.sha256, 1, ["A"])
    store.dispatch(job.job.sha256, 1, ["A", "B"])
    store.dispatch(job.job.sha256, 1, ["A"])
    assert store.dispatched(job.job.sha256) == [(1, "A"), (1, "B")]


def test_a_state_must_be_a_known_one_of_a_known_job(store: Checkpoints, job: SignedJob) -> None:
    with pytest.raises(InvalidInput, match="state must be one of queued, running"):
        store.set_state(job.job.sha256, "paused")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="job must be one that was added"):
        store.set_state("00" * 32, "running")


def test_commits_are_durable_and_the_file_is_private(tmp_path: Path, store: Checkpoints) -> None:
    path = tmp_path / "state.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("delete",)
    with store._database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3  # EXTRA


def test_a_database_left_in_wal_mode_is_brought_back(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    Checkpoints(url(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_an_altered_adapter_is_noticed(tmp_path: Path, store: Checkpoints, job: SignedJob) -> None:
    store.save_round(job.job.sha256, closed(1), VECTOR, replies(1))
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
        connection.execute("UPDATE adapters SET vector = zeroblob(2048)")
    with pytest.raises(StorageFailed, match=r"adapter of round 1 must be read from .* as written"):
        store.latest(job.job.sha256)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"veiltune" * 1000)
    with pytest.raises(StorageFailed, match=r"state\.db, got: file is not a database$"):
        Checkpoints(url(tmp_path / "state.db"))


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"but the folder is missing$"):
        Checkpoints(url(tmp_path / "none" / "state.db"))


@pytest.mark.parametrize("bad", ["state.db", "nosuch://user:hunter2@host/db", ""])
def test_a_url_that_cannot_be_opened_is_refused_without_its_password(bad: str) -> None:
    with pytest.raises(InvalidInput, match="database ") as caught:
        Checkpoints(bad)
    assert "hunter2" not in str(caught.value)


def test_an_error_names_a_database_without_its_password() -> None:
    place = database_place(sa.make_url("postgresql://fl:hunter2@db.example.org/veiltune"))
    assert place == "postgresql://fl:***@db.example.org/veiltune"
    assert database_place(sa.make_url("sqlite:////srv/state.db")) == "/srv/state.db"


def test_threads_share_a_memory_database(job: SignedJob) -> None:
    store = Checkpoints("sqlite://")
    store.add_job(job)
    seen: list[int] = []

    def work(site: str) -> None:
        for round_ in range(20):
            store.dispatch(job.job.sha256, round_, [site])
            seen.append(len(store.dispatched(job.job.sha256)))

    threads = [threading.Thread(target=work, args=(site,)) for site in ("A", "B", "C")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.dispatched(job.job.sha256)) == 60
    assert max(seen) == 60


def crash_at(statement: int, database: str, job: SignedJob) -> bool:
    """Save round 2 in a child that dies before its n-th statement; whether it got through."""
    child = os.fork()
    if child == 0:
        count = 0

        def die(*_: object) -> None:
            nonlocal count
            count += 1
            if count == statement:
                os._exit(9)

        store = Checkpoints(database)
        sa.event.listen(sa.Engine, "before_cursor_execute", die)
        sa.event.listen(sa.Engine, "commit", die)
        store.save_round(job.job.sha256, closed(2), VECTOR[2:], replies(2))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_crash_before_any_statement_leaves_the_round_before(
    store: Checkpoints, database: str, job: SignedJob
) -> None:
    sha256 = job.job.sha256
    store.save_round(sha256, closed(1), VECTOR, replies(1))
    store.close()
    statement = 1
    while not crash_at(statement, database, job):
        statement += 1
        again = Checkpoints(database)
        assert again.latest(sha256) == (1, VECTOR)
        assert again.receipts(sha256) == replies(1)
        again.close()
    assert statement > 5
    again = Checkpoints(database)
    assert again.latest(sha256) == (2, VECTOR[2:])
    assert again.receipts(sha256) == replies(1) + replies(2)


def fill(store: Checkpoints, job: SignedJob) -> int:
    """Save rounds of growing size until the disk is full; the last round that was closed."""
    for round_ in range(1, 100):
        vector = VECTOR * 8 * round_
        try:
            store.save_round(job.job.sha256, closed(round_, vector), vector, replies(round_))
        except StorageFailed as error:
            complaint, last = str(error), round_ - 1
            break
    sentence = r"checkpoint must be written to .*state\.db, got: database or disk is full"
    assert re.fullmatch(sentence, complaint)
    return last


def readable(store: Checkpoints, job: SignedJob, last: int) -> bool:
    latest = store.latest(job.job.sha256)
    kept = [record.round for record in store.rounds(job.job.sha256)]
    return latest == (last, VECTOR * 8 * last) and kept == list(range(1, last + 1))


def test_a_full_database_is_one_sentence_and_earlier_rounds_stay(
    database: str, job: SignedJob
) -> None:
    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count=60")

    sa.event.listen(sa.Engine, "connect", limit)
    try:
        store = Checkpoints(database)
        store.add_job(job)
        last = fill(store, job)
        assert last > 2
        assert readable(store, job, last)
    finally:
        sa.event.remove(sa.Engine, "connect", limit)
    store.close()
    assert readable(Checkpoints(database), job, last)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_earlier_rounds_stay(
    small_disk: Path, job: SignedJob
) -> None:
    store = Checkpoints(url(small_disk / "state.db"))
    store.add_job(job)
    last = fill(store, job)
    assert last > 2
    assert readable(store, job, last)
    store.close()
    again = Checkpoints(url(small_disk / "state.db"))
    assert readable(again, job, last)
    again.close()
