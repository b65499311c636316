"""The ``[metrics]`` section: what it allows, what it asks of the rest of a job, what it costs."""

from typing import Any

import pytest

from common.config import parse
from common.errors import InvalidInput
from common.histograms import bins
from common.job import Job
from common.privacy import accounting
from common.privacy.accounting import GaussianSteps

# sha256 of this job's canonical bytes by the version before there was a [metrics] section.
HASH_BEFORE = "5e35f6e1e7c40fe9945b10425d5d955517427c0e5d942d40a108b41a32b4c618"
ASKED: dict[str, Any] = {"release": ["accuracy"], "hold_out": 0.25, "share": 0.125}


def made(**sections: Any) -> Job:  # noqa: ANN401
    tables: dict[str, Any] = {
        "job": {"name": "w"},
        "model": {"base": "builtin:minilm", "sha256": "ab" * 32},
        "adapter": {"targets": ["query"]},
        "training": {"rounds": 12, "local_steps": 4, "learning_rate": 0.5},
        "privacy": {
            "sampling_rate": 0.05, "mode": "site", "epsilon": 6.0, "delta": 1e-5, "clip_norm": 0.7,
        },
        "data": {"name": "notes", "labels": ["a", "b"], "population": {"A": 400, "B": 600}},
        "evaluation": {"data": "builtin:wards"},
    }  # fmt: skip
    for name, table in sections.items():
        tables[name] = {**tables.get(name, {}), **table}
        tables[name] = {key: value for key, value in tables[name].items() if value is not None}
    return parse(Job, tables, "job.toml")


def test_a_job_without_metrics_is_the_job_that_it_was() -> None:
    job = made()
    assert job.sha256 == HASH_BEFORE
    assert b"metrics" not in job.canonical
    assert job.events == (GaussianSteps(0.05, job.noise_multiplier, 48),)
    assert job.histograms == ()
    assert job.divisor("A") == 0.05 * 400


def test_training_and_counts_together_cost_at_most_the_jobs_epsilon() -> None:
    job = made(metrics=ASKED)
    counts = job.metrics_event
    assert counts is not None
    assert accounting.epsilon([counts], 0.125 * 1e-5) <= 0.125 * 6.0
    assert 0.998 * 6.0 < accounting.epsilon(job.events, 1e-5) <= 6.0
    assert job.noise_multiplier > made().noise_multiplier
    # With the noise of a job without counts, they would have cost more than was agreed.
    plain = GaussianSteps(0.05, made().noise_multiplier, 48)
    assert accounting.epsilon([plain, counts], 1e-5) > accounting.epsilon([plain], 1e-5)


def test_units_that_are_held_out_are_not_in_the_divisor() -> None:
    assert made(metrics=ASKED).divisor("B") == pytest.approx(0.05 * 600 * 0.75)
    assert made(metrics=ASKED).weight("B") == made().weight("B")


def test_the_deviation_is_that_of_all_histograms_together() -> None:
    asked = {**ASKED, "release": ["accuracy", "classes", "loss"], "loss_edges": [0.5, 2]}
    job, alone = made(metrics=asked), made(metrics=ASKED)
    assert job.metrics_event == alone.metrics_event
    assert job.metrics_deviation == pytest.approx(3**0.5 * alone.metrics_deviation)
    assert bins(job.histograms) == 2 + 4 + 3
    of_units = made(
        metrics={**ASKED, "records_per_unit": 5}, privacy={"unit": "patient", "unit_cap": 3}
    )
    assert of_units.metrics_deviation == pytest.approx(5 * alone.metrics_deviation)


@pytest.mark.parametrize(
    ("metrics", "sections", "words"),
    [
        ({"release": []}, {}, "release"),
        ({"release": ["accuracy", "accuracy"]}, {}, "metrics.release must be distinct"),
        ({"release": ["auc"]}, {}, "release"),
        ({"hold_out": 0}, {}, "hold_out"),
        ({"hold_out": 0.75}, {}, "hold_out"),
        ({"share": 1}, {}, "share"),
        ({"noise": 1.0}, {}, "noise"),
        ({"loss_edges": [1.0]}, {}, "loss_edges must be absent without 'loss'"),
        ({"release": ["loss"]}, {}, "loss_edges must be given with 'loss'"),
        ({"release": ["loss"], "loss_edges": [2, 1]}, {}, "loss_edges must ascend"),
        ({"release": ["groups"]}, {}, "groups must be given with 'groups'"),
        ({"release": ["groups"], "groups": ["x", "x"]}, {}, "groups must be distinct"),
        ({"release": ["groups"], "groups": ["(any other)"]}, {}, "must not hold"),
        ({"entities_per_record": 2}, {}, "entities_per_record must be absent"),
        ({"release": ["entities"], "entities_per_record": 2}, {}, "not hold 'entities' with task"),
        ({"records_per_unit": 2}, {}, "records_per_unit must be absent with unit 'record'"),
        ({}, {"privacy": {"unit": "patient", "unit_cap": 3}}, "records_per_unit must be given"),
        (
            {},
            {"privacy": {"mode": "none", "epsilon": None, "delta": None, "clip_norm": None}},
            "metrics must be absent with privacy.mode 'none'",
        ),
        (
            {"release": ["classes"]},
            {"job": {"task": "token-cls"}, "data": {"labels": ["O", "B-X"]}},
            "not hold 'classes' with task 'token-cls'",
        ),
    ],
)
def test_a_section_that_does_not_fit_is_refused(
    metrics: dict[str, Any], sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        made(metrics={**ASKED, **metrics}, **sections)


def test_entities_have_a_row_for_every_kind() -> None:
    asked = {**ASKED, "release": ["entities"], "entities_per_record": 4}
    job = made(
        metrics=asked,
        job={"task": "token-cls"},
        data={"labels": ["O", "B-X", "I-X", "B-Y"]},
    )
    (histogram,) = job.histograms
    assert (histogram.rows, histogram.columns) == (("X", "Y"), ("found", "missed", "spurious"))
    assert job.metrics_deviation == pytest.approx(4 * made(metrics=ASKED).metrics_deviation)
