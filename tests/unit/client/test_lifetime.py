"""The life's cap: what jobs draw on it, what still fits, and what may not change."""

from typing import Any

import dp_accounting as dpa
import pytest
from dp_accounting import pld, rdp
from structlog.testing import capture_logs

from client.config import PolicySection
from client.lifetime import (
    Life,
    cap_of,
    fitting,
    plan,
    require_lifetime,
    require_room,
    require_unchanged,
)
from common.config import parse
from common.errors import InvalidInput, JobRefused, RoundRefused
from common.job import Job
from common.privacy.account import Charge, Submission, spent
from common.privacy.accounting import GaussianSteps, epsilon
from common.privacy.entries import Terms
from common.privacy.event import MOST_STEPS
from common.privacy.lifetime import PldSchedule
from common.privacy.rdp_filter import RdpFilter

FILTER = RdpFilter.for_cap(6.0, 1e-5)


def make(**privacy: Any) -> Job:  # noqa: ANN401
    knobs = {"epsilon": 4.0, "delta": 1e-5, "clip_norm": 0.7, "sampling_rate": 0.05} | privacy
    return parse(
        Job,
        {
            "job": {"name": "notes"},
            "model": {"base": "/nowhere", "sha256": "ab" * 32},
            "adapter": {"targets": ["query"]},
            "training": {"rounds": 4, "local_steps": 3, "learning_rate": 0.25},
            "privacy": knobs,
            "data": {"name": "notes", "labels": ["x", "y"], "population": {"A": 300, "B": 500}},
            "evaluation": {"data": "builtin:wards"},
        },
        "job.toml",
    )


def charge(sha256: str, steps: int, noise: float = 1.3, round_: int = 1) -> Charge:
    return Charge(sha256, round_, GaussianSteps(0.05, noise, steps), "", is_acknowledged=False)


def submission(
    sha256: str, state: str, steps: int | None, noise: float = 1.3, unit: str = "record"
) -> Submission:
    planned = None if steps is None else GaussianSteps(0.05, noise, steps)
    return Submission(sha256, "other", "", 1000, planned, Terms(unit=unit), state)


def by_hand(cap: RdpFilter, *events: GaussianSteps) -> float:
    """Epsilon at the filter's order, by dp-accounting itself."""
    accountant = rdp.RdpAccountant([cap.order])
    for event in events:
        gaussian = dpa.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dpa.PoissonSampledDpEvent(event.sampling_rate, gaussian), event.steps)
    return float(accountant.get_epsilon(cap.delta))


def test_the_plan_is_every_step_of_the_job_and_costs_at_most_its_epsilon() -> None:
    job = make()
    assert plan(job) == GaussianSteps(0.05, job.noise_multiplier, 12)
    accountant = pld.PLDAccountant()
    gaussian = dpa.GaussianDpEvent(job.noise_multiplier)
    accountant.compose(dpa.PoissonSampledDpEvent(0.05, gaussian), 12)
    assert accountant.get_epsilon(1e-5) <= 4.0


def test_an_open_job_holds_its_plan_and_a_closed_one_what_it_was_charged() -> None:
    submissions = [
        submission("aa" * 32, "running", 40),
        submission("bb" * 32, "stopped", 50),
        submission("cc" * 32, "running", None),
        submission("dd" * 32, "running", 60, noise=0.0),
    ]
    charges = [charge(s * 32, n) for s, n in (("aa", 3), ("bb", 5), ("cc", 7))]
    charges += [charge("aa" * 32, 3, round_=2), charge("ee" * 32, 11, noise=0.0)]
    life = Life(FILTER, submissions, charges)
    assert sorted(event.steps for event in life.drawn()) == [5, 7, 40]
    assert sorted(event.steps for event in life.drawn(but="aa" * 32)) == [5, 7]
    assert sorted(event.steps for event in life.drawn(but="bb" * 32)) == [7, 40]


def test_the_filter_alone_decides_where_jobs_may_be_chosen_along_the_way() -> None:
    job = make()
    total = by_hand(RdpFilter.for_cap(4.9, 1e-5), plan(job))
    assert total > 4.0  # the job's own promise is by PLD, which does not cover that choice
    for cap, fits in ((4.2, False), (6.0, True)):
        chosen = RdpFilter.for_cap(cap, 1e-5)
        assert (by_hand(chosen, plan(job)) <= cap) is fits
        if fits:
            require_lifetime(job, Life(chosen))
        else:
            with pytest.raises(JobRefused, match="epsilon over the life of this site's data"):
                require_lifetime(job, Life(chosen))


def test_jobs_that_each_fit_are_refused_where_together_they_do_not() -> None:
    job = make()
    held = submission("aa" * 32, "running", 300)
    require_lifetime(job, Life(FILTER))
    require_lifetime(job, Life(FILTER, [submission("aa" * 32, "stopped", 300)]))
    for life in (Life(FILTER, [held]), Life(FILTER, (), [charge("bb" * 32, 300)])):
        with pytest.raises(JobRefused) as caught:
            require_lifetime(job, life)
        assert str(caught.value) == (
            "epsilon over the life of this site's data must stay within its limit of 6, "
            "got more with this job"
        )


def test_a_jobs_own_charges_are_part_of_its_plan() -> None:
    job = make()
    require_lifetime(job, Life(FILTER, (), [charge(job.sha256, 300)]))


@pytest.mark.slow
def test_a_schedule_admits_its_own_jobs_by_plain_composition() -> None:
    job, other = make(), make(sampling_rate=0.1)
    schedule = PldSchedule((job.sha256,), 4.0, 1e-5)
    require_lifetime(job, Life(schedule))
    with pytest.raises(JobRefused, match="job must be one of this site's schedule, got another"):
        require_lifetime(other, Life(schedule))
    both = PldSchedule((job.sha256, other.sha256), 4.0, 1e-5)
    require_lifetime(other, Life(both))
    with pytest.raises(JobRefused, match="over the life"):
        require_lifetime(other, Life(both, (), [charge(job.sha256, 12, job.noise_multiplier)]))


def test_figures_and_what_would_fit_stay_in_the_sites_own_log() -> None:
    job, cap = make(), RdpFilter.for_cap(4.0, 1e-5)
    earlier = GaussianSteps(0.05, 1.3, 7)
    life = Life(cap, (), [charge("bb" * 32, 7)])
    with capture_logs() as logs, pytest.raises(JobRefused):
        require_lifetime(job, life)
    (event,) = logs
    assert event["log_level"] == "warning"
    assert event["lifetime"] == cap.name
    # The filter keeps a little of delta for the noise generator.
    assert event["epsilon"] == pytest.approx(by_hand(cap, earlier, plan(job)), abs=0.01)
    assert event["epsilon_by_pld"] == round(epsilon([earlier, plan(job)], 1e-5), 3)
    fit = fitting(job, life)
    assert fit is not None
    assert event["would_fit"].startswith(f"privacy.epsilon {fit.epsilon:g} ")


@pytest.mark.parametrize(
    ("cap", "rate", "earlier"),
    [
        (1.7, 0.05, 0),
        pytest.param(3.0, 0.2, 20, marks=pytest.mark.slow),
        pytest.param(8.0, 0.02, 60, marks=pytest.mark.slow),
    ],
)
def test_a_job_that_asks_for_what_would_fit_fits(cap: float, rate: float, earlier: int) -> None:
    life = Life(RdpFilter.for_cap(cap, 1e-5), (), [charge("bb" * 32, earlier)] if earlier else [])
    fit = fitting(make(sampling_rate=rate, epsilon=20.0), life)
    assert fit is not None
    asked = make(sampling_rate=rate, epsilon=fit.epsilon)
    require_lifetime(asked, life)
    less_noise = GaussianSteps(rate, fit.noise_multiplier * 0.99, 12)
    assert not life.cap.allows([*life.drawn(), less_noise])


def test_nothing_fits_where_all_is_spent() -> None:
    assert fitting(make(), Life(FILTER, (), [charge("bb" * 32, 100_000)])) is None


def test_a_round_beyond_the_cap_is_refused_whatever_was_admitted() -> None:
    require_room([charge("aa" * 32, 30), charge("bb" * 32, 9, noise=0.0)], FILTER)
    with pytest.raises(RoundRefused, match="must stay within its limit"):
        require_room([charge("aa" * 32, 30), charge("bb" * 32, 3000)], FILTER)


PATIENTS = {"unit": "patient_id", "unit_cap": 3}


def test_the_first_job_that_draws_on_the_cap_fixes_its_unit() -> None:
    patients = submission("aa" * 32, "running", 40, unit="patient_id")
    life = Life(FILTER, [patients])
    assert life.units() == ("patient_id",)
    require_lifetime(make(**PATIENTS), life)
    with pytest.raises(JobRefused) as caught:
        require_lifetime(make(), life)
    assert str(caught.value) == (
        "privacy.unit must be 'patient_id', the unit of this site's account, got 'record'"
    )
    # Charges fix it too, once the job has ended; a job that drew nothing does not.
    ended = submission("aa" * 32, "stopped", 40, unit="patient_id")
    assert Life(FILTER, [ended], [charge("aa" * 32, 3)]).units() == ("patient_id",)
    bare = submission("bb" * 32, "running", 40, noise=0.0, unit="case")
    assert Life(FILTER, [ended, bare], [charge("bb" * 32, 3, noise=0.0)]).units() == ()


def test_the_unit_that_a_ledger_was_made_with_stays() -> None:
    life = Life(FILTER, fixed_unit="patient_id")
    require_lifetime(make(**PATIENTS), life)
    with pytest.raises(JobRefused, match=r"privacy\.unit must be 'patient_id'"):
        require_lifetime(make(), life)
    job = make()
    own = Life(FILTER, [submission(job.sha256, "running", 12)])
    require_lifetime(job, own)  # its own unit is not another's


def test_an_old_ledger_of_several_units_takes_no_new_job() -> None:
    mixed = [
        submission("aa" * 32, "running", 4, unit="patient_id"),
        submission("bb" * 32, "running", 4),
    ]
    life = Life(FILTER, mixed)
    assert life.unit == "patient_id and record"
    for job in (make(), make(**PATIENTS)):
        with pytest.raises(JobRefused, match=r"which has several \(patient_id, record\)"):
            require_lifetime(job, life)


def test_more_steps_than_an_account_may_have_are_refused_in_words() -> None:
    most = MOST_STEPS
    full = Life(FILTER, [submission("aa" * 32, "running", most, noise=1e6)])
    with pytest.raises(JobRefused, match=f"steps over the life .* at most {most}, got more"):
        require_lifetime(make(), full)
    with pytest.raises(RoundRefused, match="must stay within its limit"):
        require_room([charge("aa" * 32, most, noise=1e6), charge("bb" * 32, 1)], FILTER)
    over = Life(FILTER, (), [charge("aa" * 32, most, noise=1e6), charge("bb" * 32, 1)])
    assert over.cost(over.drawn()) == over.pld(over.charged()) == float("inf")
    assert spent(over.charges, 1e-5) == float("inf")
    assert not over.allows(over.drawn())


def policy(**keys: Any) -> PolicySection:  # noqa: ANN401
    return parse(PolicySection, {"max_epsilon": 6.0, "max_delta": 1e-5} | keys, "site.toml")


def test_site_toml_says_which_cap_a_new_ledger_gets() -> None:
    assert cap_of(policy()) == FILTER
    jobs = ["ab" * 32, "cd" * 32]
    scheduled = policy(lifetime="pld-schedule", schedule=jobs)
    assert cap_of(scheduled) == PldSchedule(tuple(jobs), 6.0, 1e-5)


@pytest.mark.parametrize(
    ("edited", "says"),
    [
        (
            {"max_epsilon": 6.5},
            "policy.max_epsilon must be the ledger's 6.0 (fixed when it was made)",
        ),
        ({"max_epsilon": 5.5}, "policy.max_epsilon must be the ledger's 6.0"),
        ({"max_delta": 2e-5}, "policy.max_delta must be the ledger's 1e-05"),
        (
            {"lifetime": "pld-schedule", "schedule": ["ef" * 32], "max_delta": 2e-5},
            "policy.lifetime must be the ledger's 'rdp-filter' (fixed when it was made), "
            "got 'pld-schedule'; policy.schedule must be the ledger's [] (fixed when it was made), "
            "got [efefefefefef]; policy.max_delta must be the ledger's 1e-05",
        ),
    ],
)
def test_what_the_ledger_was_made_with_stays(edited: dict[str, Any], says: str) -> None:
    require_unchanged(policy(), FILTER)
    with pytest.raises(InvalidInput) as caught:
        require_unchanged(policy(**edited), FILTER)
    assert says in str(caught.value)


def test_the_unit_is_fixed_where_the_ledger_was_made_with_one() -> None:
    patients = policy(required_unit="patient_id")
    require_unchanged(patients, FILTER, "patient_id")
    require_unchanged(patients, FILTER)  # required later on
    for edited in (policy(), policy(required_unit="case")):
        with pytest.raises(InvalidInput, match=r"policy\.required_unit must be the ledger's 'pat"):
            require_unchanged(edited, FILTER, "patient_id")


def test_a_schedule_stays_as_it_was() -> None:
    jobs = ["ab" * 32, "cd" * 32]
    fixed = cap_of(policy(lifetime="pld-schedule", schedule=jobs))
    require_unchanged(policy(lifetime="pld-schedule", schedule=jobs), fixed)
    with pytest.raises(InvalidInput, match=r"policy\.schedule must be the ledger's \[abab"):
        require_unchanged(policy(lifetime="pld-schedule", schedule=[*jobs, "ef" * 32]), fixed)


@pytest.mark.parametrize("cap", [7.0, 30.0, 50.0, 1000.0])
def test_a_wider_cap_still_has_room_for_a_small_job(cap: float) -> None:
    """The series of low fractional orders, which wide caps choose, does not always converge."""
    require_lifetime(make(epsilon=3.0, sampling_rate=0.25), Life(RdpFilter.for_cap(cap, 1e-4)))
