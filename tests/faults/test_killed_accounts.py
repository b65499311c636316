"""The account through sudden ends, errors of the disk and races: charged is never below released.

The invariants are checked by a process that saw nothing of what happened, from the file alone.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from client.outbox import Charge, Outbox, RoundKey
from common import failpoints
from common.errors import RoundRefused, StorageFailed
from common.keys import new_key
from common.privacy.accounting import GaussianSteps
from tests.faults import account_driver

Forked = Callable[[int, Callable[[int], None]], list[int]]

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("account_driver.py")
FIRST_VERSION = ROOT / "tests" / "golden" / "account_v1.db"
JOB, STEPS = "b" * 64, 25
MOST = 120  # calls of one kind that a round may make
EVENT = GaussianSteps(0.05, 1.3, STEPS)
IMPORTED = 139  # steps that account_v1.db has charged


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the site's new key and an account of the first version."""
    (tmp_path / "site.pem").write_bytes(new_key())
    (tmp_path / "site.pem").chmod(0o600)
    put_back(FIRST_VERSION, tmp_path)
    return tmp_path


def put_back(account: Path, place: Path) -> None:
    """The folder as it was before anything happened."""
    for name in ("account.db", "account.db-journal", "account.key", "account.anchor", "wire"):
        (place / name).unlink(missing_ok=True)
    shutil.copy(account, place / "account.db")
    if account.with_suffix(".key").exists():
        shutil.copy(account.with_suffix(".key"), place / "account.key")


def drive(place: Path, *before: str) -> bool:
    """Send a round; whether that came to its end, and was not killed or turned away by the disk."""
    command = [*before, sys.executable, str(DRIVER), str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    is_expected = done.returncode in (0, -9, 137) or "storage failed" in done.stderr
    assert is_expected, done.stderr
    return done.returncode == 0


def survive(place: Path, failpoint: str, visit: int) -> bool:
    """Do everything in a process that dies at a visit of a failpoint; whether it did not.

    A fork, since starting Python for each kill takes minutes; that the environment arms a
    failpoint is tested in tests/unit/common/test_failpoints.py.
    """
    child = os.fork()
    if not child:
        try:
            failpoints._armed, failpoints._left = failpoint, visit
            account_driver.run(place)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


def left(place: Path) -> dict[int, set[str]]:
    """Round -> hashes of what went over the wire for it."""
    found: dict[int, set[str]] = {}
    wire = place / "wire"
    for line in wire.read_text().splitlines() if wire.exists() else ():
        round_, payload = line.split()
        digest = hashlib.sha256(bytes.fromhex(payload)).hexdigest()
        found.setdefault(int(round_), set()).add(digest)
    return found


def check(place: Path) -> int:
    """The invariants; all charged steps of this account."""
    box = Outbox(place / "account.db")
    box.verify()
    charges = {c.round: c for c in box.charges(JOB)}
    assert len(charges) == len(box.charges(JOB)), "a round is charged once"
    for round_, digests in left(place).items():
        assert digests == {charges[round_].payload_sha256}, "a round leaves as the same bytes"
        assert charges[round_].event.steps == STEPS
    return sum(c.event.steps for c in box.charges())


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [f for f in failpoints.registered() if f[:6] == "ledger"])
def test_a_kill_at_any_failpoint_leaves_charged_at_least_what_left(
    place: Path, failpoint: str
) -> None:
    kills = 0
    while not survive(place, failpoint, visit=kills + 1):
        kills += 1
        charged = check(place)
        account_driver.run(place)
        assert check(place) == IMPORTED + 2 * STEPS >= charged >= IMPORTED
        put_back(FIRST_VERSION, place)
    assert kills, f"{failpoint} must be reached by the driver"
    assert check(place) == IMPORTED + 2 * STEPS


# Only the call in question stops the process: a run is a third as long.
STRACE = ("strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture
def opened(place: Path) -> Path:
    """An account that was brought up to date, so that a driver only sends."""
    folder = place / "opened"
    folder.mkdir()
    shutil.copy(FIRST_VERSION, folder / "account.db")
    Outbox(folder / "account.db")
    return folder / "account.db"


@pytest.mark.slow
@pytest.mark.timeout(900)  # a process a system call
@needs_strace
@pytest.mark.parametrize("call", ["fsync,fdatasync", "pwrite64", "unlink"])
def test_a_kill_at_any_system_call_of_a_commit_leaves_it_whole_or_undone(
    place: Path, opened: Path, call: str
) -> None:
    """As SQLite's own tests do: at the first call, the second, ..., until a run has no more."""
    for visit in range(1, MOST):
        put_back(opened, place)
        inject = f"inject={call}:signal=SIGKILL:when={visit}"
        is_done = drive(place, *STRACE, inject)
        assert IMPORTED <= check(place) <= IMPORTED + STEPS
        account_driver.send(Outbox(place / "account.db"), place / "wire", 4)
        assert check(place) == IMPORTED + STEPS
        if is_done:
            break
    assert 3 <= visit < MOST - 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # a process a system call
@needs_strace
@pytest.mark.parametrize("call", ["fsync", "fdatasync", "pwrite64", "unlink"])
def test_an_error_of_the_disk_at_any_call_hands_nothing_out_uncharged(
    place: Path, opened: Path, call: str
) -> None:
    """The commit is in doubt then: asked again, it is read back and charged once."""
    for visit in range(1, MOST):
        put_back(opened, place)
        inject = f"inject={call}:error=EIO:when={visit}"
        is_done = drive(place, *STRACE, inject)
        assert IMPORTED <= check(place) <= IMPORTED + STEPS
        account_driver.send(Outbox(place / "account.db"), place / "wire", 4)
        assert check(place) == IMPORTED + STEPS
        if is_done and visit > 12:
            break
    assert 3 < visit < MOST - 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with little room."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a tmpfs can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=False)


def test_a_full_disk_releases_nothing_and_keeps_every_charge(small_disk: Path) -> None:
    box = Outbox(small_disk / "account.db")
    box.open_job(JOB, "icu", b"{}")
    sent: list[int] = []

    def fill() -> None:
        for round_ in range(1, 1000):
            key = RoundKey(JOB, round_, f"{round_:064x}")
            box.reserve(key, EVENT, bytes(4000))
            box.store(key, os.urandom(4000))
            sent.append(round_)

    with pytest.raises(StorageFailed, match="full"):
        fill()
    assert len(sent) > 3
    after = Outbox(small_disk / "account.db")
    after.verify()
    charged = [charge.round for charge in after.charges()]
    assert charged[: len(sent)] == sent
    assert len(charged) <= len(sent) + 1
    assert [charge.is_released for charge in after.charges()][: len(sent)] == [True] * len(sent)
    with pytest.raises(StorageFailed, match="full"):
        after.reserve(RoundKey(JOB, 1000, "1" * 64), EVENT, os.urandom(200_000))
    assert [charge.round for charge in after.charges()] == charged


CAP, RACERS, TRIES = 50 * STEPS, 8, 12


def racer(place: Path, number: int) -> None:
    """Charge as often as there is room; only as many as fit may come back."""

    def within(charges: list[Charge]) -> None:
        if sum(charge.event.steps for charge in charges) > CAP:
            raise RoundRefused("steps must be within the cap, got more")

    box, job = Outbox(place / "account.db"), f"{number:064x}"
    box.open_job(job, f"job-{number}", b"{}")
    with (place / f"charged-{number}").open("w") as charged, suppress(RoundRefused):
        for round_ in range(1, 1 + TRIES):
            box.reserve(RoundKey(job, round_, f"{round_:064x}"), EVENT, b"start", within=within)
            print(round_, file=charged, flush=True)


def test_eight_processes_that_race_for_one_budget_never_pass_it(
    tmp_path: Path, forked: Forked
) -> None:
    Outbox(tmp_path / "account.db")
    assert forked(RACERS, partial(racer, tmp_path)) == [0] * RACERS
    box = Outbox(tmp_path / "account.db")
    box.verify()
    assert sum(charge.event.steps for charge in box.charges()) == CAP
    came_back = [(tmp_path / f"charged-{n}").read_text().split() for n in range(RACERS)]
    assert sum(map(len, came_back)) == CAP // STEPS
