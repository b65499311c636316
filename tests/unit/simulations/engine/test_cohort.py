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
from common.adapter import LoadedAdapter, Vector, load_adapter, table_of, write_vector
from common.data.records import Record
from common.errors import InvalidInput
from common.job import Job
from common.privacy.mechanism import mechanism_of
from common.privacy.persample import trainable
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
SGD = {"learning_rate": 0.3, "momentum": 0.6}


def loaded(job: Job) -> LoadedAdapter:
    return load_adapter(job, Path(job.model.base), "cpu")


def doubled(job: Job) -> LoadedAdapter:
    found = loaded(job)
    return replace(found, model=copy.deepcopy(found.model).double())


def trainers(job: Job, rows: Rows, adapter: LoadedAdapter, unit: int = 1) -> list[Trainer]:
    """A trainer for each site; ``unit`` records make a unit."""
    found = []
    for place, (site, count) in enumerate(SITES.items()):
        records = [Record(*row) for row in rows(count, offset=40 * place)]
        examples = task_of(job).encode(adapter.tokenizer, records, job)
        units = [examples[i : i + unit] for i in range(0, count, unit)]
        mechanism = mechanism_of(job, site, public_keys("test", site))
        found.append(Trainer(job, adapter, units, mechanism, task_of(job).per_example_loss, rows=4))
    return found


def start_of(size: int, seed: int = 7) -> Vector:
    return np.random.default_rng(seed).normal(0, 0.2, size).astype(np.float32)


def lanes(made: Sequence[Trainer], start: Vector, **fields: Any) -> list[Lane]:  # noqa: ANN401
    return [Lane(one, start, **fields) for one in made]


def relative(found: Vector, expected: Vector) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("training", [SGD, ADAMW])
@pytest.mark.parametrize("method", ["ffa", "lora"])
@pytest.mark.parametrize("private", [True, False])
def test_in_float64_every_site_ends_where_it_would_by_itself(
    make_job: MakeJob,
    plain_job: MakeJob,
    rows: Rows,
    private: bool,
    method: str,
    training: dict[str, Any],
) -> None:
    make = make_job if private else plain_job
    job = make(training={**training, "local_steps": 3}, adapter={"method": method}, **POPULATION)
    made = trainers(job, rows, doubled(job))
    start = start_of(made[0].adapter.table.size)
    together = train_cohort(lanes(made, start), 2)
    for trainer, change in zip(made, together, strict=True):
        assert np.max(np.abs(change - trainer.train_round(start, 2))) <= 1e-9
        assert np.max(np.abs(change)) > 0.01


@pytest.mark.parametrize("training", [SGD, ADAMW])
def test_in_float32_every_site_ends_within_rounding(
    make_job: MakeJob, rows: Rows, training: dict[str, Any]
) -> None:
    job = make_job(training={**training, "local_steps": 5}, **POPULATION)
    made = trainers(job, rows, loaded(job))
    start = start_of(made[0].adapter.table.size)
    for trainer, change in zip(made, train_cohort(lanes(made, start), 1), strict=True):
        assert relative(change, trainer.train_round(start, 1)) <= 1e-4


def test_how_many_sites_go_together_and_how_wide_a_batch_is_change_nothing(
    make_job: MakeJob, rows: Rows
) -> None:
    job = make_job(training=ADAMW, **POPULATION)
    made = lanes(trainers(job, rows, doubled(job)), start_of(doubled(job).table.size))
    whole = train_cohort(made, 1)
    parts = [change for lane in made for change in train_cohort([lane], 1, tokens=50)]
    pairs = train_cohort(made[:2], 1) + train_cohort(made[2:], 1, tokens=1)
    assert np.max(np.abs(np.array(whole) - parts)) <= 1e-9
    assert np.max(np.abs(np.array(whole) - pairs)) <= 1e-9
    assert train_cohort([], 1) == []


@pytest.mark.parametrize("training", [SGD, ADAMW])
def test_a_site_that_has_fewer_steps_stops_where_it_would_by_itself(
    make_job: MakeJob, rows: Rows, training: dict[str, Any]
) -> None:
    job = make_job(training=training, **POPULATION)
    made = trainers(job, rows, doubled(job))
    start, steps = start_of(made[0].adapter.table.size), (2, 5, 1, 5, 3)
    together = train_cohort([Lane(t, start, s) for t, s in zip(made, steps, strict=True)], 1)
    for trainer, count, change in zip(made, steps, together, strict=True):
        alone = job.model_copy(
            update={"training": job.training.model_copy(update={"local_steps": count})}
        )
        expected = replace(trainer, job=alone).train_round(start, 1)
        assert np.max(np.abs(change - expected)) <= 1e-9


def test_a_unit_of_several_records_is_clipped_as_one(make_job: MakeJob, rows: Rows) -> None:
    privacy = {"unit": "patient", "unit_cap": 2, "clip_norm": 0.3, "sampling_rate": 0.5}
    job = make_job(privacy=privacy, **POPULATION)
    made = trainers(job, rows, doubled(job), unit=3)
    start = start_of(made[0].adapter.table.size)
    for trainer, change in zip(made, train_cohort(lanes(made, start), 1, tokens=64), strict=True):
        assert np.max(np.abs(change - trainer.train_round(start, 1))) <= 1e-9


@pytest.mark.parametrize("method", ["ffa", "lora"])
def test_a_site_of_a_smaller_rank_trains_as_in_a_model_of_that_rank(
    make_job: MakeJob, rows: Rows, method: str
) -> None:
    fields = {**POPULATION, "training": ADAMW}
    large, small = (make_job(adapter={"rank": r, "method": method}, **fields) for r in (3, 2))
    models = {3: doubled(large), 2: doubled(small)}
    if method == "ffa":  # what all share comes from the larger model, cut to the site's rank
        _copy_frozen(models[3], models[2])
    starts = {rank: start_of(model.table.size, rank) for rank, model in models.items()}
    by_rank = {rank: trainers(large, rows, model) for rank, model in models.items()}
    ranks = (2, 3, 2, 3, 2)
    mixed = [
        Lane(one, starts[rank], rank=rank) for one, rank in zip(by_rank[3], ranks, strict=True)
    ]
    for place, change in enumerate(train_cohort(mixed, 1)):
        expected = by_rank[ranks[place]][place].train_round(starts[ranks[place]], 1)
        assert change.shape == expected.shape
        assert np.max(np.abs(change - expected)) <= 1e-9


def _copy_frozen(source: LoadedAdapter, target: LoadedAdapter) -> None:
    frozen = dict(source.model.named_parameters())
    with torch.no_grad():
        for name, parameter in target.model.named_parameters():
            if ".lora_A." in name:
                parameter.copy_(frozen[name][: len(parameter)])


def test_any_tensors_may_train(make_job: MakeJob, rows: Rows) -> None:
    job = make_job(adapter={"method": "lora"}, training=SGD, **POPULATION)
    adapter = doubled(job)
    write_vector(adapter.model, start_of(adapter.table.size))
    for name, parameter in adapter.model.named_parameters():  # A of one layer, B of the other
        trains = (".lora_A." in name) == (".layer.0." in name) and "lora_" in name
        parameter.requires_grad_(trains or name.endswith("default.bias"))
    adapter = replace(adapter, table=table_of(adapter.model))
    assert len(trainable(adapter.model)) == 5
    made = trainers(job, rows, adapter)
    start = start_of(adapter.table.size, 8)
    for trainer, change in zip(made, train_cohort(lanes(made, start), 1), strict=True):
        assert np.max(np.abs(change - trainer.train_round(start, 1))) <= 1e-9
        assert np.count_nonzero(change) == adapter.table.size


def test_a_step_that_nobody_is_sampled_in_releases_noise(make_job: MakeJob, rows: Rows) -> None:
    privacy = {"sampling_rate": 1e-6}
    job = make_job(privacy=privacy, training={"local_steps": 1}, **POPULATION)
    made = trainers(job, rows, loaded(job))
    start = start_of(made[0].adapter.table.size)
    for trainer, change in zip(made, train_cohort(lanes(made, start), 1), strict=True):
        assert np.array_equal(change, trainer.train_round(start, 1))
        assert np.count_nonzero(change)


def test_a_record_whose_gradient_is_not_finite_counts_as_nothing(
    make_job: MakeJob, rows: Rows
) -> None:
    job = make_job(privacy={"sampling_rate": 0.9}, **POPULATION)
    made = [replace(one, losses=_spoilt) for one in trainers(job, rows, loaded(job))]
    start = start_of(made[0].adapter.table.size)
    for trainer, change in zip(made, train_cohort(lanes(made, start), 1), strict=True):
        assert np.all(np.isfinite(change))
        assert relative(change, trainer.train_round(start, 1)) <= 1e-4


def _spoilt(model: nn.Module, batch: Batch) -> torch.Tensor:
    return per_example_loss(model, batch) * torch.where(batch.labels == 1, float("nan"), 1.0)


def test_the_model_is_left_as_it_was(make_job: MakeJob, rows: Rows) -> None:
    job = make_job(**POPULATION)
    made = trainers(job, rows, loaded(job))
    before = {name: p.clone() for name, p in made[0].adapter.model.named_parameters()}
    train_cohort(lanes(made, start_of(made[0].adapter.table.size)), 1)
    after = dict(made[0].adapter.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("forward" in vars(m) for m in made[0].adapter.model.modules())


def test_a_layer_that_cannot_be_stacked_is_refused_by_name(make_job: MakeJob, rows: Rows) -> None:
    job = make_job(**POPULATION)
    adapter = loaded(job)
    norm = adapter.model.get_submodule("base_model.model.bert.encoder.layer.0.output.LayerNorm")
    norm.weight.requires_grad_(True)
    try:
        made = trainers(job, rows, replace(adapter, table=table_of(adapter.model)))
        with pytest.raises(InvalidInput, match="LayerNorm must be a linear layer to be trained"):
            train_cohort(lanes(made, start_of(made[0].adapter.table.size)), 1)
    finally:
        norm.weight.requires_grad_(False)


def test_a_rank_beyond_the_models_and_a_start_of_another_length_are_refused(
    make_job: MakeJob, rows: Rows
) -> None:
    job = make_job(**POPULATION)
    made = trainers(job, rows, loaded(job))
    start = start_of(made[0].adapter.table.size)
    with pytest.raises(InvalidInput, match="rank must be at least 1 and at most 2, got 3"):
        train_cohort(lanes(made, start, rank=3), 1)
    with pytest.raises(InvalidInput, match="adapter vector must have shape"):
        train_cohort(lanes(made, start[:-1]), 1)
