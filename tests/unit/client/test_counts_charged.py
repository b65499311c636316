"""A job's counts in the account: one charge of their own, within the budget, after all rounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.lifetime import Life, require_lifetime
from client.outbox import Outbox, RoundKey
from client.spending import _job
from common.audit.ledger import check_ledger
from common.errors import InvalidInput, JobRefused, LedgerBroken, RoundRefused
from common.job import Job
from common.privacy import accounting
from common.privacy.account import Account
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import (
    Created,
    Purpose,
    Reserved,
    Submitted,
    Terms,
    read_entry,
    write_entry,
)
from common.privacy.extract import write_extract
from common.privacy.lifetime import cap_to_dict
from common.privacy.rdp_filter import RdpFilter

JOB = "ab" * 32
STEP, PLAN = GaussianSteps(0.05, 1.3, 4), GaussianSteps(0.05, 1.3, 8)
COUNTS = GaussianSteps(1.0, 7.5, 1)
CAP = RdpFilter.for_cap(20.0, 1e-5)


def key(round_: int, source: str = "11" * 32) -> RoundKey:
    return RoundKey(JOB, round_, source)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    made = Outbox(tmp_path / "account.db", site="A", cap=cap_to_dict(CAP))
    made.open_job(JOB, "wards", b"{}", 0, PLAN, Terms(delta=1e-5), metrics=COUNTS)
    return made


def test_counts_are_one_charge_beside_the_rounds(outbox: Outbox, tmp_path: Path) -> None:
    outbox.reserve(key(1), STEP, b"start")
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    again = Outbox(tmp_path / "account.db")
    assert [(c.round, c.event, c.purpose) for c in again.charges()] == [
        (1, STEP, "update"),
        (3, COUNTS, "metrics"),
    ]
    (job,) = again.submissions()
    assert (job.plan, job.metrics, job.budget) == (PLAN, COUNTS, (PLAN, COUNTS))
    assert len(job.salt) == 32


def test_counts_are_stored_once_and_given_again(outbox: Outbox) -> None:
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    assert outbox.stored(key(3)) is None
    assert outbox.store(key(3), b"first") == b"first"
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    assert outbox.store(key(3), b"second") == b"first"
    assert outbox.stored(key(3)) == b"first"
    assert len(outbox.charges()) == 1
    with pytest.raises(RoundRefused, match="must start from the adapter it was reserved for"):
        outbox.stored(key(3, "22" * 32))


@pytest.mark.parametrize(
    ("round_", "event", "purpose", "words"),
    [
        (4, COUNTS, "metrics", "metrics must be those that the job was accepted with, once"),
        (4, STEP, "update", "must be within the 8 steps"),
        (2, STEP, "update", "round must be after 3"),
    ],
)
def test_nothing_follows_a_jobs_counts(
    outbox: Outbox, round_: int, event: GaussianSteps, purpose: Purpose, words: str
) -> None:
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    with pytest.raises(RoundRefused, match=words):
        outbox.reserve(key(round_), event, b"x", purpose=purpose)


@pytest.mark.parametrize("event", [STEP, GaussianSteps(1.0, 7.0, 1), GaussianSteps(1.0, 7.5, 2)])
def test_counts_are_those_of_the_job_or_none(outbox: Outbox, event: GaussianSteps) -> None:
    with pytest.raises(RoundRefused, match="metrics must be those"):
        outbox.reserve(key(3), event, b"x", purpose="metrics")
    outbox.open_job("cd" * 32, "plain", b"{}", 0, PLAN, Terms(delta=1e-5))
    with pytest.raises(RoundRefused, match="metrics must be those"):
        outbox.reserve(RoundKey("cd" * 32, 3, "11" * 32), COUNTS, b"x", purpose="metrics")
    # Nor do counts pass for a round of training.
    with pytest.raises(RoundRefused, match="steps that the job was accepted with"):
        outbox.reserve(key(1), COUNTS, b"x")


def test_an_open_job_holds_its_counts_in_the_lifetimes_budget(outbox: Outbox) -> None:
    life = Life(CAP, outbox.submissions(), outbox.charges())
    assert life.drawn() == [PLAN, COUNTS]
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    outbox.close_job(JOB, "finished", "")
    life = Life(CAP, outbox.submissions(), outbox.charges())
    assert life.drawn() == [COUNTS]


def test_the_auditor_counts_them_in_the_jobs_epsilon(outbox: Outbox, tmp_path: Path) -> None:
    outbox.reserve(key(1), STEP, b"start")
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(write_extract(outbox.journal.rows(), outbox.head()))
    report = check_ledger(path)
    (job,) = report.jobs
    assert (job.rounds, job.steps, job.counts, job.planned_steps) == (1, 4, 1, 8)
    assert job.epsilon == accounting.epsilon([STEP, COUNTS], 1e-5)
    assert job.epsilon > accounting.epsilon([STEP], 1e-5)
    assert report.epsilon == CAP.epsilon([STEP, COUNTS])


COMMON = {"at": "2026-03-04T05:06:07Z", "salt": "5a" * 16}
VERSIONS = {"terms": Terms(), "code_sha256": "", "accountant": "none"}


def replayed(*steps: tuple[Any, dict[str, Any]]) -> Account:
    account = Account()
    for seq, (model, fields) in enumerate(steps):
        account.apply(read_entry(write_entry(model, seq=seq, **COMMON, **fields), seq))
    return account


def as_steps(event: GaussianSteps) -> dict[str, float]:
    return {
        "sampling_rate": event.sampling_rate,
        "noise_multiplier": event.noise_multiplier,
        "steps": event.steps,
    }


CREATED = (
    Created,
    {"site": "A", "unit": "", "cap": {}, "public_key": "ab", "is_ephemeral": False},
)
SUBMITTED = (
    Submitted,
    {
        "job_sha256": JOB, "name": "wards", "manifest_sha256": "01" * 32, "message_cap_bytes": 9,
        "plan": as_steps(PLAN), "metrics": as_steps(COUNTS), **VERSIONS,
    },
)  # fmt: skip


def reserved(round_: int, event: GaussianSteps, purpose: str) -> tuple[Any, dict[str, Any]]:
    fields = {
        "job_sha256": JOB, "round": round_, "input_sha256": "02" * 32, "start_sha256": "",
        "charge": as_steps(event), "purpose": purpose, **VERSIONS,
    }  # fmt: skip
    return Reserved, fields


def test_the_replay_takes_what_a_site_may_write() -> None:
    account = replayed(CREATED, SUBMITTED, reserved(1, STEP, "update"),
                       reserved(3, COUNTS, "metrics"))  # fmt: skip
    assert account.charged_steps(JOB) == 4
    assert [c.event for c in account.charges()] == [STEP, COUNTS]


@pytest.mark.parametrize(
    "forged",
    [
        [reserved(3, GaussianSteps(1.0, 15.0, 1), "metrics")],  # half of what was agreed
        [reserved(3, COUNTS, "update")],
        [reserved(3, STEP, "metrics")],
        [reserved(3, COUNTS, "metrics"), reserved(4, COUNTS, "metrics")],
        [reserved(3, COUNTS, "metrics"), reserved(4, STEP, "update")],
    ],
)
def test_the_replay_refuses_other_counts(forged: list[tuple[Any, dict[str, Any]]]) -> None:
    with pytest.raises(LedgerBroken, match="stay within the job's budget"):
        replayed(CREATED, SUBMITTED, *forged)


def test_a_purpose_is_one_of_the_closed_set() -> None:
    with pytest.raises(InvalidInput, match="schema"):
        write_entry(Reserved, seq=1, **COMMON, **reserved(3, COUNTS, "audit")[1])


def test_entries_of_before_are_rounds_of_updates() -> None:
    body = write_entry(Reserved, seq=1, **COMMON, **reserved(1, STEP, "update")[1])
    old = body.replace(b'"purpose":"update",', b"")
    assert old != body
    entry = read_entry(old, 1)
    assert isinstance(entry, Reserved)
    assert entry.purpose == "update"


def test_a_job_whose_counts_do_not_fit_the_life_is_refused(make_job: Callable[..., Job]) -> None:
    asked = {"release": ["accuracy"], "hold_out": 0.25, "share": 0.5}
    job = make_job(metrics=asked)
    training, counts = job.events
    # A cap that training alone would fit.
    epsilon = RdpFilter(4.0, 30.0, 1e-5).epsilon
    cap = RdpFilter(4.0, epsilon([training]) + 0.01, 1e-5)
    assert cap.allows([training])
    assert not cap.allows([training, counts])
    with pytest.raises(JobRefused, match="over the life of this site's data"):
        require_lifetime(job, Life(cap))


def test_what_a_site_is_shown_has_them(outbox: Outbox) -> None:
    outbox.reserve(key(1), STEP, b"start")
    outbox.reserve(key(3), COUNTS, b"kept", purpose="metrics")
    shown = _job(outbox.submissions()[0], outbox.charges(), 1e-5)
    assert (shown.rounds, shown.steps, shown.counts) == (1, 4, 1)
    assert shown.epsilon == accounting.epsilon([STEP, COUNTS], 1e-5)
