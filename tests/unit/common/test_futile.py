"""What a job's settings cannot do together; torch's own optimiser says which pulls come back."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from common.config import parse
from common.errors import InvalidInput, JobRefused
from common.job import SIGNATURE_DOMAIN, Job, load_job, parse_signed_job, verify_job
from simulations.scenario import FOLDER
from simulations.studies.poisoning import RULES, SITES

MakeJob = Callable[..., Job]
Sections = Mapping[str, Mapping[str, Any]]

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
THREE = {"population": {"A": 30, "B": 50, "C": 40}}
FUTILE: list[tuple[dict[str, dict[str, Any]], str]] = [
    (
        {
            "aggregation": {"rule": "norm-bound", "norm_bound": 5.0},
            "training": {"max_update_norm": 1.0},
        },
        "aggregation.norm_bound must be less than training.max_update_norm, 1 (longer updates are "
        "rejected before any is cut), got 5",
    ),
    (
        {"aggregation": {"quarantine_after": 1}, "training": {"quorum": 3}},
        "training.quorum must be less than the 3 sites with aggregation.quarantine_after (the "
        "first site in quarantine would end the job), got 3",
    ),
    (
        {"aggregation": {"rule": "median"}, "training": {"quorum": 2}},
        "training.quorum must be at least 3 with aggregation.rule 'median' (of two updates none is "
        "outvoted), got 2",
    ),
    (
        {"aggregation": {"rule": "geometric-median"}, "training": {"quorum": 1}},
        "training.quorum must be at least 3 with aggregation.rule 'geometric-median'",
    ),
    (
        {"adapter": {"method": "fedex"}, "model": {"dtype": "bfloat16"}},
        "model.dtype must be float32 with adapter.method 'fedex'",
    ),
    (
        {"adapter": {"method": "flora"}, "model": {"dtype": "bfloat16"}},
        "model.dtype must be float32 with adapter.method 'flora'",
    ),
    (
        {"training": {"proximal_mu": 0.5, "local_steps": 1}},
        "training.local_steps must be at least 2 with training.proximal_mu (the first step begins "
        "where it pulls to), got 1",
    ),
    (
        {"training": {"proximal_mu": 7.0, "learning_rate": 0.3}},
        "training.learning_rate x (training.proximal_mu + training.weight_decay) must be less than "
        "2 x (1 + training.momentum), 2 (each step would overshoot by more than it corrects), "
        "got 2.1",
    ),
]


@pytest.mark.parametrize(("sections", "says"), FUTILE, ids=[says[:40] for _, says in FUTILE])
def test_what_has_no_effect_or_another_is_refused_with_the_reason(
    make_job: MakeJob, sections: Sections, says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_job(data=THREE, **sections)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {
            "aggregation": {"rule": "norm-bound", "norm_bound": 0.9},
            "training": {"max_update_norm": 1.0},
        },
        {"aggregation": {"quarantine_after": 1}, "training": {"quorum": 2}},
        {"aggregation": {"rule": "median"}, "training": {"quorum": 3}},
        {"aggregation": {"rule": "geometric-median"}, "training": {"quorum": 3}},
        {"adapter": {"method": "fedex"}, "model": {"dtype": "float32"}},
        {"adapter": {"method": "fedavg"}, "model": {"dtype": "bfloat16"}},
        {"training": {"proximal_mu": 0.5, "local_steps": 2}},
        {"training": {"proximal_mu": 0.0, "local_steps": 1}},
        {"training": {"proximal_mu": 6.0, "learning_rate": 0.3}},
        {"training": {"proximal_mu": 7.0, "learning_rate": 0.3, "momentum": 0.2}},
        {"training": {"proximal_mu": 7.0, "learning_rate": 0.3, "optimizer": "adamw"}},
    ],
    ids=str,
)
def test_what_works_is_taken(make_job: MakeJob, sections: Sections) -> None:
    assert make_job(data=THREE, **sections)


def test_all_that_is_futile_is_told_at_once(make_job: MakeJob) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_job(
            data=THREE,
            model={"dtype": "bfloat16"},
            adapter={"method": "flora"},
            training={
                "local_steps": 1,
                "proximal_mu": 70.0,
                "max_update_norm": 2.0,
                "quorum": 3,
            },
            aggregation={"rule": "norm-bound", "norm_bound": 2.0, "quarantine_after": 4},
        )
    for key in (
        "model.dtype must be float32",
        "aggregation.norm_bound must be less than",
        "training.quorum must be less than",
        "training.local_steps must be at least 2",
        "training.learning_rate x (",
    ):
        assert key in str(caught.value)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(0.01, 4.0), st.floats(0.05, 8.0), st.floats(0.0, 0.95), st.sampled_from([0.0, 0.5])
)
def test_a_pull_is_refused_just_where_torchs_sgd_does_not_come_back(
    make_job: MakeJob, rate: float, mu: float, momentum: float, decay: float
) -> None:
    # The steps' linear map of (where it is, its momentum); the start of the round is at 0.
    pull = rate * (mu + decay)
    steps = np.array([[1 - pull, -rate * momentum], [mu + decay, momentum]])
    radius = float(np.abs(np.linalg.eigvals(steps)).max())
    assume(abs(radius - 1) > 0.02)
    training = {
        "learning_rate": rate,
        "proximal_mu": mu,
        "momentum": momentum,
        "weight_decay": decay,
    }
    try:
        make_job(training=training)
    except InvalidInput:
        is_refused = True
    else:
        is_refused = False
    at = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([at], lr=rate, momentum=momentum, weight_decay=decay)
    for _ in range(600):
        at.grad = mu * at.detach()
        optimizer.step()
    assert is_refused == (radius > 1) == (not abs(at.item()) < 1)


def test_a_job_signed_before_a_rule_was_known_is_still_read(make_job: MakeJob) -> None:
    """What a server, a site or an auditor keeps must not become unreadable by an update."""
    data = json.loads(make_job(training={"quorum": 2}).canonical)
    data["aggregation"] = {"rule": "median", "optimizer": "none"}
    with pytest.raises(InvalidInput, match="must be at least 3 with"):
        parse(Job, data, "job.toml")
    signed = {
        "job": data,
        "signer": KEY.public_key().public_bytes_raw().hex(),
        "signature": KEY.sign(SIGNATURE_DOMAIN + rfc8785.dumps(data)).hex(),
    }
    read = parse_signed_job(json.dumps(signed).encode())
    job = verify_job(read, (signed["signer"],))
    assert job.aggregation is not None
    assert job.aggregation.rule == "median"
    data["aggregation"] = {"rule": "krum", "byzantine": 1, "optimizer": "none"}
    with pytest.raises(JobRefused, match="must be at least 5 with"):  # it cannot be computed
        parse_signed_job(json.dumps(signed).encode())


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.toml")))
def test_no_job_that_is_shipped_is_futile(name: str) -> None:
    assert load_job(Path(FOLDER / name))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_no_rule_of_the_study_of_poisoning_is_futile(make_job: MakeJob, rule: str) -> None:
    training: dict[str, Any] = {"quorum": 8}
    sections: dict[str, dict[str, Any]] = {"training": training, "aggregation": {}}
    for key, value in RULES[rule].items():
        section, name = key.split(".")
        sections[section][name] = value
    population = {f"s{n}": 50 for n in range(SITES)}
    assert make_job(**sections, data={"population": population})
