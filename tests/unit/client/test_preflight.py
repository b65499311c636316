"""What a preflight says is what the site then does, and nothing is left behind by it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dp_accounting as dpa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import pld, rdp

from client.config import SiteHome
from client.lifetime import plan
from client.preflight import Spent, preflight, read_job, show
from common.errors import InvalidInput, JobRefused, JobWaits
from common.job import Job, sign_job
from common.privacy.accounting import GaussianSteps
from common.privacy.rdp_filter import RdpFilter

if TYPE_CHECKING:
    from client.site import Site

MakeJob = Callable[..., Job]
MakeSite = Callable[..., "Site"]
Capture = pytest.CaptureFixture[str]


def event(steps: GaussianSteps) -> dpa.DpEvent:
    gaussian = dpa.GaussianDpEvent(steps.noise_multiplier)
    sampled = dpa.PoissonSampledDpEvent(steps.sampling_rate, gaussian)
    return dpa.SelfComposedDpEvent(sampled, steps.steps)


@pytest.mark.slow
def test_epsilon_after_the_job_is_dp_accountings_by_both(
    make_job: MakeJob, site: MakeSite, operator: Ed25519PrivateKey
) -> None:
    first = make_job(job={"name": "first"}, privacy={"epsilon": 3.0})
    second = make_job(job={"name": "second"}, privacy={"sampling_rate": 0.15})
    one = site(policy={"max_epsilon": 13.0})
    one.consider(sign_job(first, operator))
    budget = preflight(one.home, second).budget
    assert budget is not None
    by_pld, order = pld.PLDAccountant(), RdpFilter.for_cap(13.0, 1e-4).order
    by_rdp = rdp.RdpAccountant([order])
    for job, epsilons in ((first, budget.before), (second, budget.after)):
        by_pld.compose(event(plan(job)))
        by_rdp.compose(event(plan(job)))
        assert epsilons.pld == pytest.approx(by_pld.get_epsilon(1e-4), abs=0.01)
        assert epsilons.rdp_filter == pytest.approx(by_rdp.get_epsilon(1e-4), abs=0.05)
    assert budget.lifetime == RdpFilter.for_cap(13.0, 1e-4).name
    assert budget.fit is None


@pytest.mark.parametrize(
    ("policy", "broken"),
    [
        ({}, []),
        ({"max_job_epsilon": 5.0, "min_population": 37}, ["min_population", "max_job_epsilon"]),
        ({"max_epsilon": 6.0, "max_delta": 1e-5}, ["max_epsilon"]),
        ({"lifetime": "pld-schedule", "schedule": ["ab" * 32]}, ["schedule"]),
        ({"max_memory_gb": 1e-3, "max_minutes": 1e-7}, ["max_memory_gb", "max_minutes"]),
    ],
)
def test_every_rule_is_judged_as_the_site_judges_it(
    policy: dict[str, Any],
    broken: list[str],
    make_job: MakeJob,
    site: MakeSite,
    operator: Ed25519PrivateKey,
) -> None:
    job, one = make_job(), site(policy=policy)
    found = preflight(one.home, job)
    assert [r.rule for r in found.rulings if not r.is_met] == [f"policy.{key}" for key in broken]
    if broken:
        with pytest.raises(JobRefused):
            found.require_admitted()
        with pytest.raises(JobRefused):
            one.consider(sign_job(job, operator))
    else:
        found.require_admitted()
        one.consider(sign_job(job, operator))


def test_nothing_is_charged_sent_or_read(make_job: MakeJob, site: MakeSite, tmp_path: Path) -> None:
    one = site(data={"notes": {"path": "not-there.csv"}})
    before = (len(one.outbox.charges()), one.outbox.head().size)
    preflight(one.home, make_job())
    assert (len(one.outbox.charges()), one.outbox.head().size) == before
    one.home.account_path.unlink()
    one.home.account_path.with_suffix(".anchor").unlink()
    left = sorted(one.home.folder.iterdir())
    preflight(one.home, make_job())
    assert sorted(one.home.folder.iterdir()) == left


def test_a_job_that_does_not_fit_is_told_what_would(
    make_job: MakeJob, site: MakeSite, capsys: Capture
) -> None:
    one = site(policy={"max_epsilon": 6.0, "max_delta": 1e-5})
    found = preflight(one.home, make_job())
    assert found.budget is not None
    assert found.budget.fit is not None
    show(found)
    out = capsys.readouterr().out
    assert f"would fit       privacy.epsilon {found.budget.fit.epsilon:g}" in out
    assert "refused" in out
    smaller = make_job(privacy={"epsilon": found.budget.fit.epsilon})
    preflight(one.home, smaller).require_admitted()


def test_a_job_without_privacy_has_no_epsilon(
    make_job: MakeJob, site: MakeSite, no_privacy: dict[str, Any], capsys: Capture
) -> None:
    one = site(policy={"allow_no_privacy": True, "approval": "person"})
    found = preflight(one.home, make_job(privacy=no_privacy))
    assert found.budget is None
    assert found.to_json()["epsilon"] is None
    show(found)
    out = capsys.readouterr().out
    assert "none: without privacy" in out
    assert "a person at this site has to approve it" in out


def test_a_job_for_other_sites_is_judged_all_the_same(make_job: MakeJob, site: MakeSite) -> None:
    found = preflight(site("C").home, make_job())
    assert [r.rule for r in found.rulings if not r.is_met] == ["site", "policy.min_population"]
    assert found.load is None
    assert found.traffic is not None


def test_an_epsilon_without_bound_is_null_in_json(make_job: MakeJob, site: MakeSite) -> None:
    found = preflight(site().home, make_job())
    assert found.budget is not None
    endless = replace(found.budget, after=Spent(float("inf"), None))
    told = replace(found, budget=endless).to_json()
    assert told["epsilon"]["after"] == {"pld": None, "rdp_filter": None}
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_units_of_job_and_account_are_judged_and_said(
    make_job: MakeJob, site: MakeSite, operator: Ed25519PrivateKey, capsys: Capture
) -> None:
    one = site(data={"notes": {"path": "notes.csv", "unit": "label", "unit_name": "patient_id"}})
    one.consider(sign_job(make_job(), operator))
    other = make_job(privacy={"unit": "patient_id", "unit_cap": 3})
    found = preflight(one.home, other)
    assert [r.rule for r in found.rulings if not r.is_met] == ["the ledger"]
    assert found.to_json()["epsilon"]["unit"] == "patient_id"
    show(found)
    assert "patient_id: every figure is about one such unit" in capsys.readouterr().out
    with pytest.raises(JobRefused, match="the unit of this site's account, got 'patient_id'"):
        one.consider(sign_job(other, operator))
    assert len(one.outbox.jobs()) == 1


def test_an_offer_that_waits_is_judged_by_its_name_or_id(
    make_job: MakeJob, site: MakeSite, operator: Ed25519PrivateKey, tmp_path: Path
) -> None:
    one, job = site(policy={"approval": "person"}), make_job()
    with pytest.raises(JobWaits):
        one.consider(sign_job(job, operator))
    for wanted in ("wards", job.sha256[:8], job.sha256):
        assert read_job(one.home, wanted) == job
    with pytest.raises(InvalidInput, match="job must be one of those here"):
        read_job(one.home, "letters")
    with pytest.raises(InvalidInput, match="must be a readable file"):
        read_job(one.home, str(tmp_path / "none.toml"))
    rules = one.home.config.policy.model_copy(update={"allowed_signers": ("ab" * 32,)})
    stranger = SiteHome(one.home.folder, one.home.config.model_copy(update={"policy": rules}))
    with pytest.raises(JobRefused, match="signer must be one of"):
        read_job(stranger, "wards")
