"""A person's word: who waits for it, what it does, and that the ledger keeps it."""

from collections.abc import Callable
from typing import Any

import pytest

from client import approval
from client.account import open_account
from client.approval import decide, offers, require_approval
from client.config import SiteHome
from common.errors import InvalidInput, JobRefused, JobWaits
from common.job import SignedJob

Manifest = Callable[..., SignedJob]


@pytest.fixture
def home(homes: Any) -> SiteHome:  # noqa: ANN401
    rules = {"approval": "person", "max_epsilon": 7.0, "max_delta": 1e-4}
    found: SiteHome = homes.load(policy=rules)
    return found


def consider(signed: SignedJob, home: SiteHome) -> None:
    require_approval(signed, home, open_account(home).decisions())


def test_a_job_waits_until_a_person_approves_it(home: SiteHome, manifest: Manifest) -> None:
    signed = manifest()
    for _ in range(2):
        with pytest.raises(JobWaits):
            consider(signed, home)
    (offer,) = offers(home, [])
    assert (offer.name, offer.sha256, offer.state) == (
        "wards",
        signed.job.sha256,
        "waiting for approval",
    )
    assert decide(home, "wards", "approve", "Dr Ada").state == "approved"
    consider(signed, home)
    (said,) = open_account(home).decisions()
    assert (said.job_sha256, said.decision, said.who) == (signed.job.sha256, "approve", "Dr Ada")
    assert said.at.endswith("Z")


def test_one_jobs_approval_is_no_other_jobs(home: SiteHome, manifest: Manifest) -> None:
    first, second = manifest("wards"), manifest("letters")
    for signed in (first, second):
        with pytest.raises(JobWaits):
            consider(signed, home)
    decide(home, first.job.sha256[:8], "approve", "Dr Ada")
    consider(first, home)
    with pytest.raises(JobWaits):
        consider(second, home)
    assert {o.name: o.state for o in offers(home, open_account(home).decisions())} == {
        "wards": "approved",
        "letters": "waiting for approval",
    }


def test_the_latest_word_holds(home: SiteHome, manifest: Manifest) -> None:
    signed = manifest()
    with pytest.raises(JobWaits):
        consider(signed, home)
    decide(home, "wards", "approve", "Dr Ada")
    decide(home, "wards", "refuse", "Dr Bo")
    with pytest.raises(JobRefused, match="approved by a person at this site, got a refusal"):
        consider(signed, home)
    decide(home, "wards", "approve", "Dr Ada")
    consider(signed, home)
    said = [(one.decision, one.who) for one in open_account(home).decisions()]
    assert said == [("approve", "Dr Ada"), ("refuse", "Dr Bo"), ("approve", "Dr Ada")]


def test_the_same_word_twice_is_one_entry(home: SiteHome, manifest: Manifest) -> None:
    with pytest.raises(JobWaits):
        consider(manifest(), home)
    for who in ("Dr Ada", "Dr Bo"):
        decide(home, "wards", "refuse", who)
    assert [one.who for one in open_account(home).decisions()] == ["Dr Ada"]


def test_a_job_that_runs_without_asking_can_still_be_refused(
    homes: Any,  # noqa: ANN401
    manifest: Manifest,
) -> None:
    home, signed = homes.load(), manifest()
    outbox = open_account(home)
    consider(signed, home)
    outbox.open_job(signed.job.sha256, "wards", signed.to_bytes())
    decide(home, "wards", "refuse", "Dr Ada")
    with pytest.raises(JobRefused, match="got a refusal"):
        consider(signed, home)


def test_a_job_that_was_never_offered_cannot_be_decided_on(home: SiteHome) -> None:
    with pytest.raises(InvalidInput, match=r"job must be one of those here \(none yet\)"):
        decide(home, "wards", "approve", "Dr Ada")


@pytest.mark.parametrize("who", ["", "x" * 201, "Dr\nAda"])
def test_a_decision_has_somebody_who_made_it(who: str, home: SiteHome, manifest: Manifest) -> None:
    with pytest.raises(JobWaits):
        consider(manifest(), home)
    with pytest.raises(InvalidInput, match="who must be 1 to 200 printable characters"):
        decide(home, "wards", "approve", who)
    assert open_account(home).decisions() == []


def test_without_a_login_name_it_has_to_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    with pytest.raises(InvalidInput, match="who must be given with --by"):
        approval.login_name()
