"""Every refusal here comes before any data is opened: the site's data file does not exist."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from client.config import SiteConfig, SiteHome
from client.outbox import Charge
from client.policy import admit, plan
from common.config import parse
from common.errors import JobRefused
from common.job import Job, sign_job
from common.privacy.accounting import GaussianSteps, epsilon

KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
SIGNER = KEY.public_key().public_bytes_raw().hex()


def make(**privacy: Any) -> Job:  # noqa: ANN401
    knobs = {"epsilon": 4.0, "delta": 1e-5, "clip_norm": 0.7, "sampling_rate": 0.05} | privacy
    return parse(
        Job,
        {
            "job": {"name": knobs.pop("name", "notes")},
            "model": {"base": "/nowhere", "sha256": "ab" * 32},
            "adapter": {"targets": ["query"]},
            "training": {"rounds": 4, "local_steps": 3, "learning_rate": 0.25},
            "privacy": knobs,
            "data": {
                "name": "notes",
                "labels": ["x", "y"],
                "population": {"A": 300, "B": 500},
            },
            "evaluation": {"data": "builtin:wards"},
        },
        "job.toml",
    )


def home(site: str = "A", name: str = "notes", **policy: Any) -> SiteHome:  # noqa: ANN401
    config = {
        "site": site,
        "policy": {"allowed_signers": [SIGNER], "max_epsilon": 4.0, "max_delta": 1e-5} | policy,
        "data": {name: {"path": "/nowhere/else.csv"}, "secret-ward": {"path": "x.csv"}},
    }
    return SiteHome(Path("/nowhere"), parse(SiteConfig, config, "site.toml"))


def charge(job: Job, steps: int, *, other: bool = True) -> Charge:
    event = GaussianSteps(job.privacy.sampling_rate, job.noise_multiplier, steps)
    return Charge("cd" * 32 if other else job.sha256, 1, event, "", is_acknowledged=False)


def test_a_job_at_the_caps_is_admitted() -> None:
    assert admit(sign_job(make(), KEY), home(), []) == make()


def test_the_plan_is_every_step_of_the_job_and_costs_at_most_its_epsilon() -> None:
    job = make()
    assert plan(job) == GaussianSteps(0.05, job.noise_multiplier, 12)
    assert epsilon([plan(job)], 1e-5) <= 4.0


@pytest.mark.parametrize(
    ("job", "here", "says"),
    [
        (make(epsilon=4.01), home(), "privacy.epsilon must be at most this site's 4, got 4.01"),
        (make(delta=1.1e-5), home(), "privacy.delta must be at most this site's 1e-05"),
        (make(), home(max_epsilon=3.9), "privacy.epsilon must be at most"),
        (make(), home("C"), "site must be one of A, B, got 'C'"),
        (make(), home(name="letters"), "data.name must be a data set of this site, got 'notes'"),
        (make(), home(allowed_signers=[]), "signer must be one of the 0 allowed"),
        (make(), home(allowed_signers=["ab" * 32]), "signer must be one of the 1 allowed"),
    ],
)
def test_a_job_beyond_the_sites_rules_is_refused(job: Job, here: SiteHome, says: str) -> None:
    with pytest.raises(JobRefused) as caught:
        admit(sign_job(job, KEY), here, [])
    assert says in str(caught.value)


def test_a_refusal_does_not_name_the_sites_other_data() -> None:
    with pytest.raises(JobRefused) as caught:
        admit(sign_job(make(), KEY), home(name="letters"), [])
    assert "secret" not in str(caught.value)
    assert "letters" not in str(caught.value)


def test_a_job_without_privacy_needs_the_owners_word() -> None:
    none = make(mode="none", epsilon=None, delta=None, clip_norm=None)
    with pytest.raises(JobRefused, match="allow_no_privacy = false"):
        admit(sign_job(none, KEY), home(), [])
    assert admit(sign_job(none, KEY), home(allow_no_privacy=True), []) == none


def test_jobs_that_each_fit_are_refused_where_together_they_do_not() -> None:
    job = make()
    with pytest.raises(JobRefused, match="epsilon over the life of this site's data"):
        admit(sign_job(job, KEY), home(), [charge(job, 3)])
    with pytest.raises(JobRefused, match="epsilon over the life"):
        admit(sign_job(job, KEY), home(max_epsilon=4.1), [charge(job, 12)])
    # Twice the steps cost less than twice the epsilon.
    admit(sign_job(job, KEY), home(max_epsilon=7.0), [charge(job, 12)])


def test_the_life_of_the_data_is_measured_by_the_accountant_over_all_events() -> None:
    job = make()
    earlier = [charge(job, 12), charge(make(sampling_rate=0.2), 7)]
    total = epsilon([c.event for c in earlier] + [plan(job)], 1e-5)
    admit(sign_job(job, KEY), home(max_epsilon=total + 1e-6), earlier)
    with pytest.raises(JobRefused, match="epsilon over the life"):
        admit(sign_job(job, KEY), home(max_epsilon=total - 1e-3), earlier)


def test_what_the_site_spent_on_other_jobs_stays_in_its_own_log() -> None:
    job = make()
    earlier = [charge(job, 12), charge(make(sampling_rate=0.2), 7)]
    with capture_logs() as events, pytest.raises(JobRefused) as caught:
        admit(sign_job(job, KEY), home(), earlier)
    assert str(caught.value) == (
        "epsilon over the life of this site's data must stay within its limit of 4, "
        "got more with this job"
    )
    (event,) = events
    assert event["log_level"] == "warning"
    assert event["epsilon"] == epsilon([c.event for c in earlier] + [plan(job)], 1e-5)


def test_a_jobs_own_charges_are_part_of_its_plan() -> None:
    job = make()
    admit(sign_job(job, KEY), home(), [charge(job, 12, other=False)])


def test_steps_that_were_charged_count_whether_or_not_their_bytes_left() -> None:
    job = make()
    unreleased = charge(job, 12)
    assert not unreleased.is_released
    with pytest.raises(JobRefused, match="epsilon over the life"):
        admit(sign_job(job, KEY), home(), [unreleased])
