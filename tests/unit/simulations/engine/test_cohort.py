"""Sites trained together against the same sites trained one by one by ``client/train.py``."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.train import Trainer
from common.adapter import LoadedAdapter, Vector, load_adapter
from common.data.records import Record
from common.errors import InvalidInput
from common.job import Job
from common.methods import METHODS
from common.privacy.mechanism import mechanism_of
from common.privacy.stream import public_keys
from common.tasks import task_of
from common.tasks.batches import Batch
from common.tasks.seq_cls import per_example_loss
from simulations.engine.cohort import Lane, train_cohort

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
SITES = {"A": 9, "B": 31, "C": 18, "D": 26, "E": 4}  # records each
POPULATION = {"data": {"population": dict.fromkeys(SITES, 25)}, "evaluation": {"records": 20}}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.04}
METHOD: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "fedsb": {"method": "fedsb", "init": "orthonormal"},
    "flexlora": {"method": "flexlora", "ranks": {"B": 1, "E": 1}},
}
SGD = {"learning_rate": 0.3, "momentum": 0.6}


def loaded(job: Job) -> LoadedAdapter:
    return load_adapter(job, Path(job.model.base), "cpu")


def doubled(job: Job) -> LoadedAdapter:
    found = loaded(job)
    bases = {name: base.double() for name, base in found.bases.items()}
    return replace(found, model=copy.deepcopy(found.model).double(), bases=bases)


def trainers(job: Job, rows: Rows, adapter: LoadedAdapter, unit: int = 1) -> list[Trainer]:
    """A trainer for each site; ``unit`` records make a unit."""
    found = []
    for place, (site, count) in enumerate(SITES.items()):
        records = [Record(*row) for row in rows(count, offset=40 * place)]
        examples = task_of(job).encode(adapter.tokenizer, records, job)
        units = [examples[i : i + unit] for i in range(0, count, unit)]
        mechanism = mechanism_of(job, site, public_keys("test", site))
        losses = task_of(job).per_example_loss
        found.append(Trainer(job, adapter, units, mechanism, losses, rows=4, rank=job.rank(site)))
    return found


def start_of(made: Sequence[Trainer], seed: int = 7) -> Vector:
    draw = np.random.default_rng(seed)
    size = made[0].adapter.table.size
    return made[0].adapter.initial + draw.normal(0, 0.1, size).astype(np.float32)


def together(made: Sequence[Trainer], start: Vector, round_: int = 1, **more: Any) -> list[Vector]:  # noqa: ANN401
    return train_cohort([Lane(one) for one in made], start, round_, **more)


def require_same(found: Vector, expected: Vector) -> None:
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected)) <= 1e-9


def relative(found: Vector, expected: Vector) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("training", [pytest.param(SGD, marks=pytest.mark.slow), ADAMW])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_in_float64_every_site_ends_where_it_would_by_itself(
    make_job: MakeJob, rows: Rows, method: str, training: dict[str, Any]
) -> None:
    job = make_job(training={**training, "local_steps": 3}, adapter=METHOD[method], **POPULATION)
    made = trainers(job, rows, doubled(job))
    start = start_of(made)
    for round_ in range(1, len(METHODS[method].phases) + 1):
        for trainer, change in zip(made, together(made, start, round_), strict=True):
            require_same(change, trainer.train_round(start, round_))
            assert np.max(np.abs(change)) > 0.01


@pytest.mark.parametrize(
    "method",
    ["ffa", "head", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fedavg", "fedsb"))],
)
def test_so_it_does_without_privacy_and_with_fedprox(
    plain_job: MakeJob, rows: Rows, method: str
) -> None:
    training = {**SGD, "local_steps": 4, "proximal_mu": 0.7}
    job = plain_job(training=training, adapter=METHOD[method], **POPULATION)
    made = trainers(job, rows, doubled(job))
    start = start_of(made)
    for trainer, change in zip(made, together(made, start), strict=True):
        require_same(change, trainer.train_round(start, 1))
    without = job.model_copy(
        update={"training": job.training.model_copy(update={"proximal_mu": None})}
    )
    plain = together([replace(one, job=without) for one in made], start)
    assert not np.allclose(plain[1], together(made, start)[1])


def alone(made: Sequence[Trainer], start: Vector) -> list[Vector]:
    return [one.train_round(start, 1) for one in made]


@pytest.mark.parametrize("train", [together, alone])
def test_fedprox_draws_a_second_step_back_by_mu_times_the_first(
    plain_job: MakeJob, rows: Rows, train: Callable[..., list[Vector]]
) -> None:
    """In closed form: w2 = w1 - rate (g(w1) + mu (w1 - w0)), and w1 is as without mu."""
    rate, mu = 0.3, 0.7
    job = plain_job(training={"learning_rate": rate, "local_steps": 2}, **POPULATION)
    made = trainers(job, rows, doubled(job))

    def changes(**training: Any) -> list[Vector]:  # noqa: ANN401
        of = job.model_copy(update={"training": job.training.model_copy(update=training)})
        return train([replace(one, job=of) for one in made], start_of(made))

    first, plain, drawn = changes(local_steps=1), changes(), changes(proximal_mu=mu)
    for one, two, with_mu in zip(first, plain, drawn, strict=True):
        # The state travels in float32.
        assert np.abs(with_mu - (two - rate * mu * one)).max() < 1e-6
    # Which records are sampled follows from the job's hash, and so from where the base lies: of a
    # small site now and then none.
    assert max(np.abs(rate * mu * one).max() for one in first) > 1e-3


@pytest.mark.parametrize("training", [pytest.param(SGD, marks=pytest.mark.slow), ADAMW])
def test_in_float32_every_site_ends_within_rounding(
    make_job: MakeJob, rows: Rows, training: dict[str, Any]
) -> None:
    job = make_job(training={**training, "local_steps": 5}, **POPULATION)
    made = trainers(job, rows, loaded(job))
    start = start_of(made)
    for trainer, change in zip(made, together(made, start), strict=True):
        assert relative(change, trainer.train_round(start, 1)) <= 1e-4


def test_how_many_sites_go_together_and_how_wide_a_batch_is_change_nothing(
    make_job: MakeJob, rows: Rows
) -> None:
    job = make_job(training=ADAMW, **POPULATION)
    made = trainers(job, rows, doubled(job))
    start = start_of(made)
    whole = together(made, start)
    parts = [change for one in made for change in together([one], start, tokens=50)]
    pairs = together(made[:2], start) + together(made[2:], start, tokens=1)
    for one, other, third in zip(whole, parts, pairs, strict=True):
        require_same(one, other)
        require_same(one, third)
    assert together([], start) == []


@pytest.mark.parametrize("training", [SGD, ADAMW])
def test_a_site_that_has_fewer_steps_stops_where_it_would_by_itself(
    make_job: MakeJob, rows: Rows, training: dict[str, Any]
) -> None:
    job = make_job(training=training, **POPULATION)
    made = trainers(job, rows, doubled(job))
    start, steps = start_of(made), (2, 5, 1, 5, 3)
    lanes = [Lane(one, count) for one, count in zip(made, steps, strict=True)]
    changes = train_cohort(lanes, start, 1)
    for trainer, count, change in zip(made, steps, changes, strict=True):
        shorter = job.training.model_copy(update={"local_steps": count})
        alone = replace(trainer, job=job.model_copy(update={"training": shorter}))
        require_same(change, alone.train_round(start, 1))


@pytest.mark.slow
def test_a_unit_of_several_records_is_clipped_as_one(make_job: MakeJob, rows: Rows) -> None:
    privacy = {"unit": "patient", "unit_cap": 2, "clip_norm": 0.3, "sampling_rate": 0.5}
    job = make_job(privacy=privacy, **POPULATION)
    made = trainers(job, rows, doubled(job), unit=3)
    start = start_of(made)
    for trainer, change in zip(made, together(made, start, tokens=64), strict=True):
        require_same(change, trainer.train_round(start, 1))


def test_what_a_site_of_a_lower_rank_has_not_gets_no_noise(make_job: MakeJob, rows: Rows) -> None:
    adapter = {"method": "flexlora", "rank": 3, "ranks": {"A": 1, "C": 2}}
    job = make_job(adapter=adapter, **POPULATION)
    made = trainers(job, rows, doubled(job))
    start = start_of(made)
    changes = together(made, start)
    assert {change.size for change in changes} == {one.trained(1).size for one in made}
    assert changes[0].size < changes[2].size < changes[1].size
    for trainer, change in zip(made, changes, strict=True):
        require_same(change, trainer.train_round(start, 1))


def test_a_step_that_nobody_is_sampled_in_releases_noise(make_job: MakeJob, rows: Rows) -> None:
    privacy = {"sampling_rate": 1e-6}
    job = make_job(privacy=privacy, training={"local_steps": 1}, **POPULATION)
    made = trainers(job, rows, loaded(job))
    start = start_of(made)
    for trainer, change in zip(made, together(made, start), strict=True):
        assert np.array_equal(change, trainer.train_round(start, 1))
        assert np.count_nonzero(change)


def test_a_record_whose_gradient_is_not_finite_counts_as_nothing(
    make_job: MakeJob, rows: Rows
) -> None:
    job = make_job(privacy={"sampling_rate": 0.9}, **POPULATION)
    made = [replace(one, losses=_spoilt) for one in trainers(job, rows, loaded(job))]
    start = start_of(made)
    for trainer, change in zip(made, together(made, start), strict=True):
        assert np.all(np.isfinite(change))
        assert relative(change, trainer.train_round(start, 1)) <= 1e-4


def _spoilt(model: nn.Module, batch: Batch) -> torch.Tensor:
    return per_example_loss(model, batch) * torch.where(batch.labels == 1, float("nan"), 1.0)


def test_the_model_is_left_at_the_start_with_its_own_layers(make_job: MakeJob, rows: Rows) -> None:
    job = make_job(**POPULATION)
    made = trainers(job, rows, loaded(job))
    start, adapter = start_of(made), made[0].adapter
    adapter.write(start)
    before = {name: p.clone() for name, p in adapter.model.named_parameters()}
    together(made, start)
    after = dict(adapter.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("forward" in vars(module) for module in adapter.model.modules())


def test_a_layer_that_cannot_be_stacked_is_refused_by_name(make_job: MakeJob, rows: Rows) -> None:
    job = make_job(**POPULATION)
    adapter = doubled(job)
    norm = adapter.model.get_submodule("base_model.model.bert.encoder.layer.0.output.LayerNorm")
    norm.requires_grad_(True)
    made = trainers(job, rows, adapter)
    with pytest.raises(InvalidInput, match="LayerNorm must be a linear layer to be trained"):
        together(made, start_of(made))
