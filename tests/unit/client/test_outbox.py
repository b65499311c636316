"""The account's promise: what is charged never falls short of what may have left."""

import hashlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from client.journal import Journal
from client.outbox import Charge, Outbox, RoundKey, Submission, Terms, spent
from common.errors import InvalidInput, JobRefused, LedgerBroken, RoundRefused, StorageFailed
from common.privacy import accounting
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import Closed, Decided, Reserved
from common.privacy.ledger import Head

EVENT = GaussianSteps(0.05, 1.3, 4)
JOB, OTHER = "ab" * 32, "cd" * 32


def key(round_: int = 1, input_sha256: str = "11" * 32, job: str = JOB) -> RoundKey:
    return RoundKey(job, round_, input_sha256)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "account.db"


@pytest.fixture
def outbox(path: Path) -> Outbox:
    made = Outbox(path)
    made.open_job(JOB, "first", b"{}")
    made.open_job(OTHER, "second", b"{}")
    return made


def test_a_round_is_charged_before_it_is_trained(outbox: Outbox, path: Path) -> None:
    outbox.reserve(key(), EVENT, b"start")
    (charge,) = Outbox(path).charges()
    assert charge.event == EVENT
    assert not charge.is_released
    assert outbox.stored(key()) is None


def test_the_account_and_its_journal_are_their_owners_alone(path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Outbox(path).journal.writing("decide") as writer:
            writer.append(Decided, job_sha256=JOB, decision="approve", who="Ada", note="")
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    names = ("account.db", "account.db-journal", "account.key", "account.anchor")
    assert modes == dict.fromkeys(names, 0o600)


def test_bytes_stored_first_are_the_ones_sent_ever_after(outbox: Outbox, path: Path) -> None:
    outbox.reserve(key(), EVENT, b"start")
    assert outbox.store(key(), b"first") == b"first"
    assert outbox.store(key(), b"second") == b"first"
    assert Outbox(path).stored(key()) == b"first"
    (charge,) = outbox.charges()
    assert charge.payload_sha256 == hashlib.sha256(b"first").hexdigest()


def test_a_reservation_without_bytes_is_used_again_at_no_charge(outbox: Outbox) -> None:
    outbox.reserve(key(), EVENT, b"start")
    outbox.reserve(key(), EVENT, b"start")
    assert [c.event.steps for c in outbox.charges()] == [4]


def test_another_input_for_a_reserved_round_is_refused(outbox: Outbox) -> None:
    outbox.reserve(key(), EVENT, b"start")
    other = key(input_sha256="22" * 32)
    says = "must start from the adapter it was reserved for"
    with pytest.raises(RoundRefused, match=says):
        outbox.reserve(other, EVENT, b"other")
    with pytest.raises(RoundRefused, match=says):
        outbox.store(other, b"bytes")
    with pytest.raises(RoundRefused, match=says):
        outbox.stored(other)
    assert len(outbox.charges()) == 1


def test_an_earlier_round_is_refused_and_a_later_one_passes(outbox: Outbox) -> None:
    outbox.reserve(key(5), EVENT, b"start")
    with pytest.raises(RoundRefused, match="round must be after 5"):
        outbox.reserve(key(4), EVENT, b"start")
    outbox.reserve(key(9), EVENT, b"next")
    assert outbox.latest_input(JOB) == (9, b"next")
    assert sum(c.event.steps for c in outbox.charges()) == 8


def test_nothing_is_stored_that_was_not_reserved(outbox: Outbox) -> None:
    with pytest.raises(RoundRefused, match="must be reserved before its release"):
        outbox.store(key(), b"bytes")
    assert outbox.stored(key()) is None


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_a_closed_job_takes_no_round_and_keeps_its_charges(outbox: Outbox, state: str) -> None:
    outbox.reserve(key(1), EVENT, b"start")
    outbox.store(key(1), b"bytes")
    outbox.reserve(key(2), EVENT, b"start")
    outbox.close_job(JOB, state, "")
    outbox.open_job(JOB, "first", b"{}")  # the offer comes again
    with pytest.raises(RoundRefused, match="closed one"):
        outbox.stored(key(1))
    for round_ in (2, 3):
        with pytest.raises(RoundRefused, match=f"an open job, got one that is {state}"):
            outbox.reserve(key(round_), EVENT, b"start")
    assert sum(c.event.steps for c in outbox.charges()) == 8
    outbox.reserve(key(1, job=OTHER), EVENT, b"start")


@pytest.mark.parametrize("state", ["running", "", "queued", "\x1b[2J"])
def test_a_job_ends_in_one_of_a_closed_set_of_words(outbox: Outbox, state: str) -> None:
    with pytest.raises(InvalidInput, match="state must be one of finished, failed, stopped"):
        outbox.close_job(JOB, state, "")
    assert outbox.jobs()[0].state == "running"


def test_a_job_ends_once_and_nothing_more_is_written_of_it(outbox: Outbox) -> None:
    outbox.reserve(key(1), EVENT, b"start")
    outbox.close_job(JOB, "stopped", "")
    entries = len(outbox.journal.rows())
    for state in ("finished", "stopped", "failed", "refused"):
        outbox.close_job(JOB, state, "ab" * 32)
    with pytest.raises(RoundRefused, match="an open job, got one that is stopped"):
        outbox.store(key(1), b"made while the job ended")
    assert len(outbox.journal.rows()) == entries
    assert next((row.state, row.final_sha256) for row in outbox.jobs()) == ("stopped", "")
    outbox.verify()


def write_old_end(box: Outbox, state: str) -> None:
    """A job's end as it was written before it was final."""
    with box.journal.writing("close-job") as writer:
        writer.append(Closed, job_sha256=JOB, state=state, final_sha256="", is_imported=False)
        writer.db.execute("DELETE FROM content WHERE job_sha256 = ?", (JOB,))


def test_an_old_ledger_whose_job_was_opened_again_replays_and_charges_it_no_more(
    outbox: Outbox, path: Path
) -> None:
    outbox.reserve(key(1), EVENT, b"start")
    outbox.store(key(1), b"bytes")
    for state in ("stopped", "running"):
        write_old_end(outbox, state)
    with outbox.journal.writing("reserve") as writer:  # which was possible
        writer.append(
            Reserved,
            job_sha256=JOB,
            round=2,
            input_sha256="2" * 64,
            start_sha256="",
            charge={"sampling_rate": 0.05, "noise_multiplier": 1.3, "steps": 4},
            terms=Terms(),
            code_sha256="",
            accountant="",
        )
    again = Outbox(path)
    again.verify()
    assert [c.round for c in again.charges()] == [1, 2]
    with pytest.raises(RoundRefused, match="an open job, got one that is closed"):
        again.reserve(key(3), EVENT, b"start")
    again.close_job(JOB, "finished", "")
    assert [s.is_open for s in again.submissions()] == [False, True]


def test_what_follows_a_final_end_could_not_have_been_written(outbox: Outbox) -> None:
    outbox.reserve(key(1), EVENT, b"start")
    outbox.close_job(JOB, "stopped", "")
    with pytest.raises(LedgerBroken, match="must end an open job"):
        write_old_end(outbox, "running")


def test_a_job_for_which_there_is_no_room_is_not_recorded(outbox: Outbox) -> None:
    seen: list[tuple[int, int]] = []

    def within(jobs: list[Submission], charges: list[Charge]) -> None:
        seen.append((len(jobs), len(charges)))
        raise JobRefused("epsilon must stay within its limit, got more")

    outbox.reserve(key(1), EVENT, b"start")
    with pytest.raises(JobRefused):
        outbox.open_job("ef" * 32, "third", b"{}", within=within)
    outbox.open_job(JOB, "first", b"{}", within=within)  # accepted before
    assert seen == [(2, 1)]
    assert [row.sha256 for row in outbox.jobs()] == [JOB, OTHER]


def test_a_job_that_was_never_accepted_takes_no_round(outbox: Outbox) -> None:
    with pytest.raises(RoundRefused, match="unknown"):
        outbox.reserve(key(job="ef" * 32), EVENT, b"start")


def test_a_receipt_for_other_bytes_changes_nothing(outbox: Outbox) -> None:
    outbox.reserve(key(), EVENT, b"start")
    outbox.store(key(), b"bytes")
    outbox.acknowledge(JOB, 1, "00" * 32, accepted=True)
    assert not outbox.charges()[0].is_acknowledged
    outbox.acknowledge(JOB, 1, hashlib.sha256(b"bytes").hexdigest(), accepted=False)
    assert outbox.charges()[0].is_acknowledged
    assert outbox.charges()[0].event.steps == 4


def test_a_receipt_for_a_round_that_released_nothing_changes_nothing(outbox: Outbox) -> None:
    outbox.acknowledge(JOB, 1, "", accepted=True)
    outbox.reserve(key(), EVENT, b"start")
    outbox.acknowledge(JOB, 1, "", accepted=True)  # as empty as the bytes that are not there yet
    assert [c.is_acknowledged for c in outbox.charges()] == [False]


def test_a_message_cap_is_that_of_the_accepted_job_and_of_no_other(path: Path) -> None:
    outbox = Outbox(path)
    outbox.open_job(JOB, "first", b"{}", 700)
    outbox.open_job(OTHER, "second", b"{}")
    assert [outbox.cap(job) for job in (JOB, OTHER, "ef" * 32)] == [700, None, None]


def test_a_rule_about_charges_is_shown_the_one_that_it_decides_on(outbox: Outbox) -> None:
    outbox.reserve(key(), EVENT, b"start")
    outbox.store(key(), b"bytes")
    shown: list[Charge] = []
    outbox.reserve(key(2), EVENT, b"start", within=shown.extend)
    before, new = shown
    assert (before.round, before.is_released) == (1, True)
    assert new == Charge(JOB, 2, EVENT, payload_sha256="", is_acknowledged=False)


def test_who_comes_second_to_an_account_writes_no_other_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outbox(path, site="A")
    # As it was when the second process looked, before the first had written.
    monkeypatch.setattr(Journal, "_has_ledger", lambda self: False)
    second = Outbox(path, site="B")
    assert (second.created().site, len(second.journal.rows())) == ("A", 1)


def test_entries_carry_the_time_of_greenwich(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX+7")
    time.tzset()
    try:
        written = Outbox(path).created().at
    finally:
        monkeypatch.undo()
        time.tzset()
    age = datetime.now(UTC) - datetime.fromisoformat(written)
    assert timedelta(0) <= age < timedelta(minutes=10)


def test_epsilon_is_that_of_all_charges_over_all_jobs(outbox: Outbox) -> None:
    outbox.reserve(key(1), EVENT, b"")
    outbox.reserve(key(2), EVENT, b"")
    outbox.reserve(key(1, job=OTHER), GaussianSteps(0.2, 2.0, 3), b"")
    outbox.reserve(key(2, job=OTHER), GaussianSteps(0.2, 0.0, 3), b"")  # a run without privacy
    expected = accounting.epsilon(
        [GaussianSteps(0.05, 1.3, 8), GaussianSteps(0.2, 2.0, 3)], delta=1e-5
    )
    assert spent(outbox.charges(), 1e-5) == expected


@settings(max_examples=15, stateful_step_count=20)
class Account(RuleBasedStateMachine):
    """Any order of calls, with the process ending anywhere between two of them."""

    @initialize()
    def begin(self) -> None:
        self.path = Path(os.environ["ACCOUNTS"]) / f"{os.urandom(8).hex()}.db"
        self.box = Outbox(self.path)
        self.box.open_job(JOB, "first", b"{}")
        self.left: dict[int, set[bytes]] = {}
        self.head: Head | None = None
        self.charged = 0

    @rule()
    def crash(self) -> None:
        self.box = Outbox(self.path)
        self.box.verify()

    @rule()
    def witness(self) -> None:
        self.box.require_witnessed(self.head)
        self.head = self.box.head()

    @rule(round_=st.integers(1, 4), accepted=st.booleans())
    def acknowledge(self, round_: int, accepted: bool) -> None:
        for payload in self.left.get(round_, ()):
            digest = hashlib.sha256(payload).hexdigest()
            self.box.acknowledge(JOB, round_, digest, accepted=accepted)

    @rule(round_=st.integers(1, 4), start=st.sampled_from(["11", "22"]))
    def reserve(self, round_: int, start: str) -> None:
        with _refusals():
            self.box.reserve(key(round_, start * 32), EVENT, start.encode())

    @rule(round_=st.integers(1, 4), start=st.sampled_from(["11", "22"]))
    def release(self, round_: int, start: str) -> None:
        with _refusals():
            sent = self.box.store(key(round_, start * 32), os.urandom(9))
            self.left.setdefault(round_, set()).add(sent)

    @rule(round_=st.integers(1, 4), start=st.sampled_from(["11", "22"]))
    def resend(self, round_: int, start: str) -> None:
        with _refusals():
            if (found := self.box.stored(key(round_, start * 32))) is not None:
                self.left.setdefault(round_, set()).add(found)

    @rule()
    def close(self) -> None:
        self.box.close_job(JOB, "finished", "")

    @invariant()
    def every_round_that_left_is_charged_once_and_left_once(self) -> None:
        charges = {c.round: c for c in self.box.charges()}
        assert len(charges) == len(self.box.charges())
        for round_, payloads in self.left.items():
            assert len(payloads) == 1
            (sent,) = payloads
            assert charges[round_].payload_sha256 == hashlib.sha256(sent).hexdigest()
        steps = sum(c.event.steps for c in charges.values())
        assert steps >= self.charged
        self.charged = steps


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RoundRefused:
        return


def test_no_order_of_calls_and_crashes_releases_a_round_twice_or_uncharged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCOUNTS", str(tmp_path))
    run_state_machine_as_test(Account)


@contextmanager
def full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every new connection may add no page to the file."""
    connect = sqlite3.connect

    def limited(*args: object, **known: object) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **known)  # type: ignore[call-overload]
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count={pages}")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", limited)
        yield


def test_a_full_disk_hands_nothing_out_and_leaves_the_account_readable(
    outbox: Outbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.reserve(key(1), EVENT, b"start")
    with full_disk(path, monkeypatch):
        with pytest.raises(StorageFailed, match="full"):
            outbox.store(key(1), os.urandom(100_000))
        assert outbox.stored(key(1)) is None
        with pytest.raises(StorageFailed, match="full"):
            outbox.reserve(key(2), EVENT, os.urandom(100_000))
    assert [(c.round, c.is_released) for c in outbox.charges()] == [(1, False)]
    assert outbox.store(key(1), b"later") == b"later"


def test_an_account_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database, and long enough to be taken for one" * 40)
    with pytest.raises(StorageFailed, match="not a database"):
        Outbox(path)


def test_a_read_only_account_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"account.db.*the folder is missing"):
        Outbox(tmp_path / "missing" / "account.db")


def test_threads_that_race_for_a_round_all_send_the_same_bytes(outbox: Outbox) -> None:
    sent: list[bytes] = []

    def answer(n: int) -> None:
        outbox.reserve(key(), EVENT, b"start")
        sent.append(outbox.store(key(), bytes([n]) * 50))

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 8
    assert len(set(sent)) == 1
    assert len(outbox.charges()) == 1


def process(act: Callable[[Callable[[bytes], None]], None]) -> tuple[int, IO[bytes]]:
    """A process of its own that does ``act``, then waits to be killed; what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            act(lambda said: void(os.write(writer, said + b"\n")))
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(writer)
    return child, os.fdopen(reader, "rb")


def void(_: object) -> None:
    return


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_processes_that_race_for_a_round_all_send_the_same_bytes(
    outbox: Outbox, path: Path
) -> None:
    def act(say: Callable[[bytes], None]) -> None:
        box = Outbox(path)
        box.reserve(key(), EVENT, b"start")
        say(box.store(key(), os.urandom(9)).hex().encode())

    racing = [process(act) for _ in range(4)]
    sent = {said.readline() for _, said in racing}
    for child, said in racing:
        kill(child)
        said.close()
    stored = outbox.stored(key())
    assert stored is not None
    assert sent == {stored.hex().encode() + b"\n"}
    assert len(outbox.charges()) == 1


def run_until(path: Path, stop: str) -> str:
    """Kill a site's process at a point of a round; what it said last."""

    def act(say: Callable[[bytes], None]) -> None:
        def point(name: str) -> None:
            if name == stop:
                say(name.encode())
                time.sleep(600)

        box = Outbox(path)
        box.open_job(JOB, "first", b"{}")
        point("before the reservation")
        box.reserve(key(), EVENT, b"start")
        point("after the reservation")
        noised = os.urandom(5000)
        point("after training")
        sent = box.store(key(), noised)
        point("after storing")
        say(b"sent " + sent.hex().encode())

    child, said = process(act)
    with said:
        line = said.readline()
        kill(child)
    return line.decode().strip()


@pytest.mark.parametrize(
    ("stop", "charged", "kept"),
    [
        ("before the reservation", 0, False),
        ("after the reservation", 4, False),
        ("after training", 4, False),
        ("after storing", 4, True),
        ("after sending", 4, True),
    ],
)
def test_a_kill_at_any_point_leaves_charged_at_least_what_was_released(
    path: Path, stop: str, charged: int, kept: bool
) -> None:
    run_until(path, stop)
    after = Outbox(path)
    assert sum(c.event.steps for c in after.charges()) == charged
    assert (after.stored(key()) is not None) == kept
    again = run_until(path, "after sending").split()  # the same round in a new process
    assert sum(c.event.steps for c in Outbox(path).charges()) == 4
    stored = Outbox(path).stored(key())
    assert stored is not None
    assert again == ["sent", stored.hex()]
    if kept:
        assert after.stored(key()) == stored


def test_a_kill_within_a_commit_is_rolled_back_or_whole(path: Path) -> None:
    Outbox(path).open_job(JOB, "first", b"{}")

    def act(say: Callable[[bytes], None]) -> None:
        box = Outbox(path)
        for round_ in range(1, 10**6):
            box.reserve(key(round_), EVENT, bytes(60_000))
            box.store(key(round_), bytes(60_000))
            say(str(round_).encode())

    child, said = process(act)
    with said:
        lines = [said.readline() for _ in range(12)]
        kill(child)
        lines += said.readlines()
    sent = max(int(line) for line in lines)
    charges = Outbox(path).charges()
    assert len(charges) in (sent, sent + 1)
    assert all(c.is_released for c in charges[:sent])
