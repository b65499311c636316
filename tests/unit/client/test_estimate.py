"""Estimates against what really is computed."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from client.estimate import GIB, Load, _example, measure, rulings
from client.site import make_trainer
from client.train import Trainer
from common.adapter import load_adapter
from common.job import Job

if TYPE_CHECKING:
    from client.site import Site

MakeJob = Callable[..., Job]
MakeSite = Callable[..., "Site"]


def trainer_of(job: Job, one: "Site") -> Trainer:
    adapter = load_adapter(job, Path(job.model.base), "cpu")
    return make_trainer(job, adapter, one.home)


def test_time_is_that_of_all_steps_at_the_greatest_length(
    make_job: MakeJob, site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow model makes the arithmetic visible: 40 ms a part, 15 ms a release, exactly counted."""
    training = {"rounds": 5, "local_steps": 3}
    job = make_job(training=training, privacy={"sampling_rate": 0.5})
    trainer = replace(trainer_of(job, site()), rows=4)
    seen: list[tuple[int, ...]] = []

    class Slow(Trainer):
        def bounded_sum(self, units: Any) -> torch.Tensor:  # noqa: ANN401
            seen.extend((len(unit), len(unit[0].input_ids)) for unit in units)
            time.sleep(0.04)
            return self.mechanism.zero(self.adapter.table.size, self.adapter.device)

    slow = Slow(**{name: getattr(trainer, name) for name in trainer.__dataclass_fields__})
    monkeypatch.setattr(type(trainer.mechanism), "release", lambda *_: time.sleep(0.015))
    load = measure(slow)
    assert set(seen) == {(1, 48)}
    # 36 units at rate 0.5 are 18 expected: 5 parts of 4.
    assert load.minutes * 60 == pytest.approx(15 * (5 * 0.04 + 0.015), rel=0.2)


def test_units_take_as_long_as_their_most_records(make_job: MakeJob, site: MakeSite) -> None:
    """Twenty records a unit cost about twenty times one, however few of them are timed."""
    one = site()
    single = measure(trainer_of(make_job(), one))
    privacy = {"unit": "patient_id", "unit_cap": 20}
    many = measure(trainer_of(make_job(privacy=privacy), one))
    assert 5 < many.minutes / single.minutes < 60


def test_the_estimate_agrees_with_a_whole_rounds_clock(make_job: MakeJob, site: MakeSite) -> None:
    job = make_job(training={"rounds": 1, "local_steps": 8}, privacy={"sampling_rate": 0.9})
    trainer = trainer_of(job, site())
    units = [[_example(job, seed)] for seed in range(36)]
    begun = time.perf_counter()
    replace(trainer, units=units).train_round(trainer.adapter.initial, 1)
    took = time.perf_counter() - begun
    assert took / 3 < measure(trainer).minutes * 60 < took * 3


def test_memory_is_the_peak_while_a_part_is_computed(make_job: MakeJob, site: MakeSite) -> None:
    trainer = trainer_of(make_job(), site())

    class Hungry(Trainer):
        def bounded_sum(self, units: Any) -> torch.Tensor:  # noqa: ANN401
            torch.ones(GIB // 4, dtype=torch.uint8)
            return super().bounded_sum(units)

    hungry = Hungry(**{name: getattr(trainer, name) for name in trainer.__dataclass_fields__})
    more = measure(hungry).memory_gb
    less = measure(trainer).memory_gb  # after the other: an earlier peak is no part of it
    assert 0.2 < more - less < 0.35


def test_each_limit_is_on_its_own_figure(make_job: MakeJob, site: MakeSite) -> None:
    load = Load(memory_gb=3.0, gpu_memory_gb=5.0, minutes=7.0)
    for limits, broken in (
        ({"max_memory_gb": 3, "max_gpu_memory_gb": 5, "max_minutes": 7}, []),
        ({"max_memory_gb": 2.9, "max_gpu_memory_gb": 5}, ["policy.max_memory_gb"]),
        ({"max_memory_gb": 3, "max_gpu_memory_gb": 4.9}, ["policy.max_gpu_memory_gb"]),
        ({"max_minutes": 6.9}, ["policy.max_minutes"]),
    ):
        found = rulings(load, site(policy=limits).home)
        assert [ruling.rule for ruling in found if not ruling.is_met] == broken
    assert measure(trainer_of(make_job(), site())).gpu_memory_gb == 0


def test_no_record_and_no_start_is_touched(make_job: MakeJob, site: MakeSite) -> None:
    job = make_job()
    trainer = trainer_of(job, site())

    class Nobody(list[Any]):
        def __len__(self) -> int:
            raise AssertionError("units were looked at")

        __iter__ = __getitem__ = __len__  # type: ignore[assignment]

    measure(replace(trainer, units=Nobody()))
