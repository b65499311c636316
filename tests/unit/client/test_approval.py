"""A person's word: who waits for it, what it does, and that the ledger keeps it."""

from collections.abc import Callable
from typing import Any

import pytest

from client import approval
from client.account import life_of, open_account
from client.approval import decide, offers, require_approval
from client.config import SiteHome
from client.outbox import Outbox, RoundKey
from common.errors import InvalidInput, JobRefused, JobWaits, RoundRefused
from common.job import SignedJob
from common.privacy.accounting import GaussianSteps

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


PLAN = GaussianSteps(0.05, 1.3, 40)
ROUND = GaussianSteps(0.05, 1.3, 4)


def begin(home: SiteHome, signed: SignedJob) -> Outbox:
    """An account in which the job runs, with one round charged."""
    outbox, sha256 = open_account(home), signed.job.sha256
    outbox.open_job(sha256, signed.job.job.name, signed.to_bytes(), 0, PLAN)
    outbox.reserve(RoundKey(sha256, 1, "1" * 64), ROUND, b"start")
    outbox.store(RoundKey(sha256, 1, "1" * 64), b"bytes")
    return outbox


def test_a_refusal_ends_a_job_that_runs_and_lets_go_what_it_held(
    home: SiteHome, manifest: Manifest
) -> None:
    signed = manifest()
    outbox = begin(home, signed)
    assert life_of(outbox).drawn() == [PLAN]
    decide(home, "wards", "refuse", "Dr Ada")
    assert [row.state for row in outbox.jobs()] == ["refused"]
    assert life_of(outbox).drawn() == [ROUND]
    with pytest.raises(JobRefused, match="got a refusal"):
        consider(signed, home)
    key = RoundKey(signed.job.sha256, 1, "1" * 64)
    for act in (outbox.stored, lambda k: outbox.store(k, b"late")):
        with pytest.raises(RoundRefused, match="must belong to an open job"):
            act(key)
    outbox.verify()
    decide(home, "wards", "refuse", "Dr Bo")
    outbox.close_job(signed.job.sha256, "finished", "")
    assert [row.state for row in outbox.jobs()] == ["refused"]


def test_a_refusal_before_which_the_process_died_is_made_whole_by_the_next(
    home: SiteHome, manifest: Manifest
) -> None:
    signed = manifest()
    outbox = begin(home, signed)
    outbox.decide(signed.job.sha256, "refuse", "Dr Ada")
    assert life_of(outbox).drawn() == [PLAN]
    decide(home, "wards", "refuse", "Dr Ada")
    assert life_of(outbox).drawn() == [ROUND]
    assert len(outbox.decisions()) == 1


@pytest.mark.parametrize("state", ["refused", "finished", "stopped"])
def test_a_job_that_ended_is_not_approved_any_more(
    state: str, home: SiteHome, manifest: Manifest
) -> None:
    signed = manifest()
    begin(home, signed).close_job(signed.job.sha256, state, "")
    with pytest.raises(InvalidInput, match=f"must be open or not begun .* got one that is {state}"):
        decide(home, "wards", "approve", "Dr Ada")


def test_a_file_that_is_no_offer_is_named_and_hides_no_other(
    home: SiteHome,
    manifest: Manifest,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
) -> None:
    with pytest.raises(JobWaits):
        consider(manifest(), home)
    for name, content in (("aa.json", b"\0garbage"), ("zz.json", b"{}"), ("mm.json", b"")):
        (home.folder / "offers" / name).write_bytes(content)
    assert [offer.name for offer in offers(home, [])] == ["wards"]
    assert all(f"offers/{name}.json" in logs.text for name in ("aa", "zz", "mm"))
    assert logs.text.count("offer not readable") == 3
    assert decide(home, "wards", "approve", "Dr Ada").state == "approved"


def test_a_job_named_like_anothers_id_is_not_taken_for_it(
    home: SiteHome, manifest: Manifest
) -> None:
    good = manifest("good")
    evil = manifest(good.job.sha256[:12])
    for signed in (good, evil):
        with pytest.raises(JobWaits):
            consider(signed, home)
    with pytest.raises(InvalidInput) as caught:
        decide(home, good.job.sha256[:12], "approve", "Dr Ada")
    for signed in (good, evil):
        assert signed.job.sha256[:16] in str(caught.value)
    assert decide(home, good.job.sha256[:13], "approve", "Dr Ada").sha256 == good.job.sha256
    assert decide(home, evil.job.sha256, "refuse", "Dr Ada").sha256 == evil.job.sha256


def test_a_job_that_waits_can_be_looked_at(home: SiteHome, manifest: Manifest) -> None:
    signed = manifest()
    with pytest.raises(InvalidInput, match="none yet"):
        approval.known_job(home, "wards")
    assert not home.account_path.exists()
    with pytest.raises(JobWaits):
        consider(signed, home)
    for wanted in ("wards", signed.job.sha256[:6]):
        assert approval.known_job(home, wanted) == signed


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
