"""Every refusal here comes before any data is opened: the site's data file does not exist."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.config import SiteConfig, SiteHome
from client.lifetime import Life
from client.policy import admit, rulings
from common.config import parse
from common.errors import JobRefused
from common.job import Job, sign_job
from common.privacy.rdp_filter import RdpFilter

KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
SIGNER = KEY.public_key().public_bytes_raw().hex()
ROOM = Life(RdpFilter.for_cap(40.0, 1e-5))


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


def home(
    site: str = "A",
    name: str = "notes",
    mapped: dict[str, Any] | None = None,
    **policy: Any,  # noqa: ANN401
) -> SiteHome:
    config = {
        "site": site,
        "policy": {"allowed_signers": [SIGNER], "max_epsilon": 4.0, "max_delta": 1e-5} | policy,
        "data": {
            name: {"path": "/nowhere/else.csv"} | (mapped or {}),
            "secret-ward": {"path": "x.csv"},
        },
    }
    return SiteHome(Path("/nowhere"), parse(SiteConfig, config, "site.toml"))


def home_of_tasks(*tasks: str) -> SiteHome:
    """As if there were others than the one that is known."""
    made = home()
    policy = made.config.policy.model_copy(update={"allowed_tasks": tasks})
    return SiteHome(made.folder, made.config.model_copy(update={"policy": policy}))


def test_a_job_at_the_caps_is_admitted() -> None:
    assert admit(sign_job(make(), KEY), home(), ROOM) == make()


NO_PRIVACY = {"mode": "none", "epsilon": None, "delta": None, "clip_norm": None}
PATIENTS = {"unit": "patient_id", "unit_cap": 3}


@pytest.mark.parametrize(
    ("job", "here", "says"),
    [
        (make(epsilon=4.01), home(), "privacy.epsilon must be at most this site's 4, got 4.01"),
        (
            make(delta=1.1e-5),
            home(),
            "privacy.delta must be at most this site's 1e-05, got 1.1e-05",
        ),
        (make(), home(max_epsilon=3.9), "privacy.epsilon must be at most this site's 3.9, got 4"),
        (
            make(),
            home(max_job_epsilon=2.5),
            "privacy.epsilon must be at most this site's 2.5, got 4",
        ),
        (
            make(),
            home(max_job_delta=3e-6),
            "privacy.delta must be at most this site's 3e-06, got 1e-05",
        ),
        (make(), home("C"), "site must be one of A, B, got 'C'"),
        (make(), home(name="letters"), "data.name must be a data set of this site, got 'notes'"),
        (
            make(),
            home_of_tasks("token-cls", "regression"),
            "job.task must be one of token-cls, regression at this site, got 'seq-cls'",
        ),
        (
            make(),
            home(allowed_bases=["cd" * 32, "ef" * 32]),
            "model.sha256 must be one of the 2 that this site allows, got abababababababab...",
        ),
        (
            make(),
            home(allowed_releases=[]),
            "release must be one of none at this site, got 'update'",
        ),
        (
            make(**NO_PRIVACY),
            home(),
            "privacy.mode must be 'site' here (allow_no_privacy = false), got 'none'",
        ),
        (
            make(),
            home(required_unit="patient_id", mapped={"unit": "patient_id"}),
            "privacy.unit must be 'patient_id' at this site, got 'record'",
        ),
        (
            make(**NO_PRIVACY),
            home(required_unit="patient_id", allow_no_privacy=True),
            "privacy.unit must be 'patient_id' at this site, got 'record'",
        ),
        (
            make(**PATIENTS),
            home(),
            "privacy.unit must be 'record' or the unit that this site maps for the data set, "
            "got 'patient_id'",
        ),
        (
            make(**PATIENTS),
            home(mapped={"unit": "case"}),
            "privacy.unit must be 'record' or the unit that this site maps",
        ),
        (
            make(**PATIENTS),
            home(mapped={"unit": "patient_id", "unit_name": "case"}),
            "privacy.unit must be 'record' or the unit that this site maps",
        ),
        (
            make(),
            home(min_population=301),
            "data.population.A must be at least this site's 301, got 300",
        ),
    ],
)
def test_a_job_beyond_the_sites_rules_is_refused(job: Job, here: SiteHome, says: str) -> None:
    with pytest.raises(JobRefused) as caught:
        admit(sign_job(job, KEY), here, ROOM)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("job", "here"),
    [
        (make(), home_of_tasks("token-cls", "seq-cls")),
        (make(), home(allowed_tasks=["seq-cls"])),
        (make(), home(allowed_bases=["cd" * 32, "ab" * 32])),
        (make(), home(min_population=300)),
        (make(), home(max_job_epsilon=4.0, max_epsilon=9.0)),
        (make(**PATIENTS), home(mapped={"unit": "patient_id"}, required_unit="patient_id")),
        (make(**PATIENTS), home(mapped={"unit": "pat", "unit_name": "patient_id"})),
        (make(**NO_PRIVACY), home(allow_no_privacy=True, min_noise_multiplier=7.0)),
    ],
)
def test_a_job_within_the_sites_rules_is_admitted(job: Job, here: SiteHome) -> None:
    assert admit(sign_job(job, KEY), here, ROOM) == job


def test_too_little_noise_is_refused_whatever_epsilon_it_makes() -> None:
    job = make()
    noise = job.noise_multiplier
    admit(sign_job(job, KEY), home(min_noise_multiplier=noise), ROOM)
    with pytest.raises(JobRefused, match=r"noise multiplier must be at least this site's 0\.7"):
        admit(sign_job(job, KEY), home(min_noise_multiplier=noise + 1e-3), ROOM)


@pytest.mark.parametrize("signers", [[], ["ab" * 32]])
def test_a_strangers_job_is_refused_before_any_other_rule(signers: list[str]) -> None:
    with pytest.raises(JobRefused, match=f"signer must be one of the {len(signers)} allowed"):
        admit(sign_job(make(), KEY), home("C", allowed_signers=signers), ROOM)


@pytest.mark.parametrize(
    "mapped", [{}, {"unit": "secret_no"}, {"unit": "secret_no", "unit_name": "y"}]
)
def test_a_refusal_does_not_name_the_sites_other_data(mapped: dict[str, str]) -> None:
    for job, here in (
        (make(), home(name="letters")),
        (make(**PATIENTS), home(mapped=mapped)),
    ):
        with pytest.raises(JobRefused) as caught:
            admit(sign_job(job, KEY), here, ROOM)
        assert "secret" not in str(caught.value)
        assert "letters" not in str(caught.value)


def test_the_lifes_cap_comes_last_and_holds_for_private_jobs_alone() -> None:
    none_left = Life(RdpFilter.for_cap(0.5, 1e-5))
    with pytest.raises(JobRefused, match="epsilon over the life of this site's data"):
        admit(sign_job(make(), KEY), home(), none_left)
    with pytest.raises(JobRefused, match=r"privacy\.epsilon must be"):
        admit(sign_job(make(epsilon=4.5), KEY), home(), none_left)
    public = make(**NO_PRIVACY)
    assert admit(sign_job(public, KEY), home(allow_no_privacy=True), none_left) == public


def longer(job: Job, rounds: int, local_steps: int) -> Job:
    steps = {"rounds": rounds, "local_steps": local_steps}
    training = job.training.model_copy(update=steps)
    return Job.model_validate({**job.model_dump(), "training": training.model_dump()})


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (longer(make(), 100_000, 100_000), "must be at most 100000, got 10000000000"),
        (longer(make(), 4096, 4096), "must be at most 100000, got 16777216"),
        (longer(make(**NO_PRIVACY), 50_001, 2), "training.rounds"),
        (longer(make(epsilon=1e-3), 100, 1000), "privacy.epsilon must be reachable within 100000"),
        (make(delta=1e-300), "delta must be more than"),
    ],
)
def test_a_job_whose_cost_nobody_can_say_is_refused_and_not_asked_again(
    job: Job, says: str
) -> None:
    with pytest.raises(JobRefused) as caught:
        admit(sign_job(job, KEY), home(allow_no_privacy=True), ROOM)
    assert says in str(caught.value)


def test_every_rule_names_its_key_in_site_toml() -> None:
    known = {f"policy.{key}" for key in SiteConfig.model_fields["policy"].annotation.model_fields}  # type: ignore[union-attr]
    keys = [ruling.rule for ruling in rulings(make(), home())]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= known | {"site", "data", "data.unit", "data.words"}


def test_a_job_of_words_is_refused_where_the_data_set_is_of_texts_and_the_other_way_round() -> None:
    of_words = home(mapped={"words": "tokens", "tags": "tags"})
    (ruling,) = [r for r in rulings(make(), of_words) if r.rule == "data.words"]
    assert not ruling.is_met
    assert "'seq-cls'" in ruling.words
    assert [r.is_met for r in rulings(make(), home()) if r.rule == "data.words"] == [True]
    with pytest.raises(JobRefused, match="columns of the data set are mapped for, got 'seq-cls'"):
        admit(sign_job(make(), KEY), of_words, ROOM)
