"""Cohorts and what is kept below the first adapter, against sites that train one by one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.train import Trainer
from common.adapter import LoadedAdapter, Vector, load_adapter
from common.data.records import Record
from common.errors import SelfCheckFailed
from common.job import Job
from common.privacy.buffer import Buffer
from common.privacy.stream import public_keys
from common.tasks import task_of
from common.tasks.batches import Batch, Example
from simulations.engine import size
from simulations.engine.cohort import Lane
from simulations.engine.engine import Engine, checked_prefix, require_exact
from simulations.engine.prefix import States, prefix_of, states_of
from simulations.engine.site import trainer_of

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
SITES = ("A", "B", "C")
FIELDS: dict[str, Any] = {"data": {"population": dict.fromkeys(SITES, 20)}}
UPPER = {"targets": ["layer.1.attention.self.query"], "method": "fedavg"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def with_anchor(job: Job) -> Job:
    return job.model_copy(update={"training": job.training.model_copy(update={"proximal_mu": 0.5})})


def loaded(job: Job) -> LoadedAdapter:
    return load_adapter(job, Path(job.model.base), "cpu")


def trainers(job: Job, rows: Rows) -> list[Trainer]:
    found = []
    for place, site in enumerate(SITES):
        adapter = loaded(job)
        records = [Record(*row) for row in rows(15 + place, offset=30 * place)]
        units = [[e] for e in task_of(job).encode(adapter.tokenizer, records, job)]
        made = trainer_of(job, adapter, site, public_keys("test", site))
        found.append(replace(made, units=units))
    return found


def start_of(made: list[Trainer]) -> Vector:
    adapter = made[0].adapter
    draw = np.random.default_rng(4).normal(0, 0.1, adapter.table.size)
    return adapter.initial + draw.astype(np.float32)


@pytest.fixture(autouse=True)
def nothing_is_known() -> None:
    states_of.cache_clear()


@pytest.mark.parametrize("targets", [UPPER["targets"], ["query", "value"]])
def test_sites_train_as_they_would_alone_also_above_what_is_kept(
    make_job: MakeJob, rows: Rows, targets: list[str]
) -> None:
    job = make_job(adapter={**UPPER, "targets": targets}, **FIELDS)
    made = trainers(job, rows)
    assert (prefix_of(made[0].adapter.model) is not None) == (targets == UPPER["targets"])
    start, engine = start_of(made), Engine(tokens=300, at_once=2)
    for round_ in (1, 2):  # the second has all states at hand
        changes = list(engine.train([Lane(one) for one in made], start, round_))
        for trainer, change in zip(made, changes, strict=True):
            expected = trainer.train_round(start, round_)
            assert np.linalg.norm(change - expected) <= 1e-4 * np.linalg.norm(expected)


def test_what_is_kept_is_not_computed_again(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(adapter=UPPER, privacy={"sampling_rate": 0.9}, **FIELDS)
    made = trainers(job, rows)
    calls: list[int] = []
    below = made[0].adapter.model.get_submodule("base_model.model.bert.encoder.layer.0.attention")
    start, engine = start_of(made), Engine(tokens=10_000)
    list(engine.train([Lane(one) for one in made], start, 1))
    hook = below.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    list(engine.train([Lane(one) for one in made], start, 2))
    assert sum(calls) < 0.3 * sum(len(one.units) for one in made)
    calls.clear()
    list(Engine(tokens=10_000).train([Lane(one) for one in made], start, 2))  # another run
    hook.remove()
    assert sum(calls) < 10 * len(made)  # its own check, of some public rows


def test_states_are_kept_as_far_as_memory_goes(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.engine.prefix.free_bytes", lambda device: 4 * 20 * 32 * 4)
    job = make_job(adapter=UPPER, **FIELDS)
    made = trainers(job, rows)
    start = start_of(made)
    changes = list(Engine(tokens=64).train([Lane(one) for one in made], start, 1))
    for trainer, change in zip(made, changes, strict=True):
        expected = trainer.train_round(start, 1)
        assert np.linalg.norm(change - expected) <= 1e-4 * np.linalg.norm(expected)


def test_each_of_several_workers_keeps_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.engine.prefix.free_bytes", lambda device: 4 * 4000)
    for sharing, most in ((1, 10), (4, 2)):  # of a quarter of what is free, 400 bytes each
        states = States(sharing)
        examples = [Example((i,), 0, 1) for i in range(20)]
        for example in examples:
            states.keep(example, torch.zeros(100))
        assert sum(states.find([example]) is not None for example in examples) == most


def test_a_model_whose_states_cannot_be_kept_trains_without(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(adapter=UPPER, **FIELDS)
    made = trainers(job, rows)[0]
    assert checked_prefix(made) is not None
    monkeypatch.setattr("simulations.engine.prefix._pass", lambda hidden, *_, **__: hidden * 1.5)
    monkeypatch.setattr(
        "simulations.engine.prefix.Prefix._entered",
        lambda self, model, batch: torch.ones(*batch.input_ids.shape, 32),
    )
    assert checked_prefix(made) is None


def test_a_model_that_looks_across_rows_is_refused(make_job: MakeJob, rows: Rows) -> None:
    made = trainers(make_job(adapter=UPPER, **FIELDS), rows)[0]
    require_exact(made)

    def mixed(model: nn.Module, batch: Batch) -> Tensor:
        found = made.losses(model, batch)
        return found * found.sum()

    with pytest.raises(SelfCheckFailed, match=r"gradients of stacked sites must be within 0\.001"):
        require_exact(replace(made, losses=mixed))


def test_the_shape_is_measured_once_and_then_read(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainers(make_job(**FIELDS), rows)[0]
    first = size.shape_of(made)
    assert first.tokens in (1024, 2048, 4096, 8192)
    # A token's activations: some tens of numbers for each of 32, in 2 layers.
    assert 32 * 4 * 10 < first.token_bytes < 32 * 4 * 1000
    monkeypatch.setattr(size, "measure", lambda *_: pytest.fail("measured again"))
    assert size.shape_of(made) == first
    monkeypatch.setattr(size, "free_bytes", lambda device: 2000 * first.token_bytes)
    assert size.shape_of(made).tokens == 400  # a fifth of what is free
    assert size.shape_of(made, 2).tokens == 256  # of a half each, and never fewer


def test_a_tokens_activations_weigh_the_same_however_many_there_are(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's weights, and the rows' own tensors, are no token's.

    The slope of all that is kept, the weights too, against the tokens is what a token adds; it
    counts what two operations keep twice, about a tenth of it.
    """
    made = trainers(make_job(model={"max_length": 32}, **FIELDS), rows)[0]
    kept = [everything_kept(made, tokens) for tokens in (256, 2048)]
    row = 4 * made.trained(1).size / 32
    slope = (kept[1] - kept[0]) / (2048 - 256) - row
    found = size.weigh(made)
    assert 0.8 * slope < found <= slope
    for tokens in (512, 2048):
        monkeypatch.setattr(size, "_LEAST_TOKENS", tokens)
        assert size.weigh(made) == pytest.approx(found, rel=2e-3)


def test_a_greater_rank_adds_its_own_activations_to_a_token_and_nothing_else(
    make_job: MakeJob, rows: Rows
) -> None:
    """(n, positions, R) float32 of each of 4 matrices; A and B of 12 more ranks are a row's."""
    adapters = ({"rank": rank, "method": "fedavg"} for rank in (2, 14))
    jobs = [make_job(adapter=adapter, **FIELDS) for adapter in adapters]
    weighed = [size.weigh(trainers(job, rows)[0]) for job in jobs]
    assert weighed[1] - weighed[0] == pytest.approx(12 * 4 * 4, abs=4)


def everything_kept(made: Trainer, tokens: int) -> int:
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        size._probe(made, 32)(tokens)
    return kept


def test_a_batch_has_the_rows_that_memory_allows(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row takes its gradient and its site's tensors, 8 bytes a number; a worker has its part."""
    made = trainers(make_job(privacy={"sampling_rate": 0.9}, **FIELDS), rows)
    numbers, opened = made[0].adapter.layout.largest, []
    open_ = Buffer.open

    def opening(self: Buffer, samples: int) -> None:
        opened.append(samples)
        open_(self, samples)

    monkeypatch.setattr(size, "free_bytes", lambda device: 5 * 8 * numbers * 6)
    monkeypatch.setattr(Buffer, "open", opening)
    start = start_of(made)
    for sharing, most in ((1, 6), (3, 2)):
        engine = Engine(tokens=10_000, at_once=3, sharing=sharing)
        list(engine.train([Lane(one) for one in made], start, 1))
        opened.clear()
        changes = list(engine.train([Lane(one) for one in made], start, 1))
        assert max(opened) == most
        for trainer, change in zip(made, changes, strict=True):
            expected = trainer.train_round(start, 1)
            assert np.linalg.norm(change - expected) <= 1e-4 * np.linalg.norm(expected)


def test_a_damaged_cache_is_written_anew(make_job: MakeJob, rows: Rows) -> None:
    made = trainers(make_job(**FIELDS), rows)[0]
    size.cache_path().parent.mkdir(parents=True)
    size.cache_path().write_bytes(b"{")
    assert size.shape_of(made) == size.shape_of(made)


def test_more_sites_go_together_where_there_is_memory_and_steps_are_small(
    make_job: MakeJob, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainers(make_job(**FIELDS), rows) * 40
    monkeypatch.setattr(size, "free_bytes", lambda device: 1 << 40)
    small = size.Shape(tokens=256, token_bytes=1)
    tokens = np.mean([size._expected_tokens(one) for one in made])
    assert size.sites_at_once(made, small, 1) == int(np.ceil(16 * 256 / tokens)) < 120
    assert size.sites_at_once(made, size.Shape(1 << 20, 1), 1) == 120
    numbers = made[0].trained(1).size
    monkeypatch.setattr(size, "free_bytes", lambda device: 5 * numbers * 16 * 21)
    assert size.sites_at_once(made, small, 1) == 21  # of 16 bytes a number, without momentum
    assert size.sites_at_once(made, small, 1, 3) == 7  # three workers share the memory
    anchored = [replace(one, job=with_anchor(one.job)) for one in made]
    assert size.sites_at_once(anchored, small, 1) == 21 * 16 // 20  # and where the round began
    monkeypatch.setattr(size, "free_bytes", lambda device: 1)
    assert size.sites_at_once(made, small, 1) == 1
