"""Sound mechanisms pass; each planted bug replaces one function and is refused by its own check.

The subject is a site's real trainer on a tiny base.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client import rehearsal, train
from client.rehearsal import Rehearsal
from client.train import Trainer
from common.adapter import Vector, load_adapter
from common.data import units
from common.data.records import Record
from common.errors import SelfCheckFailed
from common.job import Job
from common.privacy import clipping, noise, persample, sampling
from common.privacy.clipping import LATTICE
from common.privacy.mechanism import Mechanism, mechanism_of
from common.privacy.selfcheck import CHECKS, run_checks
from common.privacy.stream import KeySource, Stream, fresh_key, public_keys
from common.tasks.batches import Batch
from common.tasks.seq_cls import per_example_loss

MakeJob = Callable[..., Job]
BY_PATIENT = {"unit": "patient_id", "unit_cap": 3}


@pytest.fixture
def subject(make_job: MakeJob) -> Callable[..., Rehearsal]:
    def make(*, keys: KeySource = fresh_key, **sections: Any) -> Rehearsal:  # noqa: ANN401
        job = make_job(**sections)
        adapter = load_adapter(job, Path(job.model.base), "cpu")
        mechanism = mechanism_of(job, "A", keys)
        return Rehearsal(Trainer(job, adapter, [], mechanism, per_example_loss, rows=4), "A")

    return make


MakeSubject = Callable[..., Rehearsal]


@dataclass(frozen=True)
class SamplerAlone:
    """What the sampler's check looks at."""

    mechanism: Mechanism


def with_rate(rate: float, keys: KeySource = fresh_key) -> Any:  # noqa: ANN401
    return SamplerAlone(Mechanism(rate, 9.0, 0.7, 1.3, None, keys))


@pytest.mark.parametrize("privacy", [{}, BY_PATIENT], ids=["record", "patient"])
@pytest.mark.parametrize("adapter", [{}, {"method": "lora", "targets": ["query", "key", "dense"]}])
def test_a_sound_mechanism_passes(
    subject: MakeSubject, privacy: dict[str, Any], adapter: dict[str, Any]
) -> None:
    assert run_checks(subject(privacy=privacy, adapter=adapter)) == tuple(CHECKS)


@pytest.mark.parametrize("rate", [0.5, 0.999, 1.0, 3e-3, 1e-4, 1e-5])
def test_a_sound_sampler_passes_at_any_rate(rate: float) -> None:
    CHECKS["sampler"](with_rate(rate))


@pytest.mark.parametrize("clip_norm", [1e-4, 3.0, 90.0])
def test_a_sound_mechanism_passes_at_any_clip_norm(subject: MakeSubject, clip_norm: float) -> None:
    run_checks(subject(privacy={"clip_norm": clip_norm}))


def test_keys_that_a_seed_repeats_pass_as_they_differ_by_round_and_step(
    subject: MakeSubject,
) -> None:
    run_checks(subject(keys=public_keys("seed", "A")))


def test_a_run_without_privacy_still_has_to_train_and_sample(
    subject: MakeSubject, no_privacy: dict[str, Any]
) -> None:
    assert run_checks(subject(privacy=no_privacy)) == ("gradients", "dropout", "sampler")


Plant = Callable[[pytest.MonkeyPatch], None]
SOUND_NOISE, SOUND_SAMPLE = noise.lattice_noise, sampling.poisson_sample
SOUND_CLIP, SOUND_GROUP = clipping.clip_and_sum, units.privacy_units
SOUND_GRADIENTS = persample.flat_gradients
SOUND_SUM, SOUND_ROUND = Trainer.bounded_sum, Trainer.train_round


def plant(place: object, name: str, bug: Any) -> Plant:  # noqa: ANN401
    return lambda patch: patch.setattr(place, name, bug)


def plant_noise(draw: Callable[..., NDArray[np.int64]]) -> Plant:
    return plant(noise, "lattice_noise", draw)


def scaled_noise(factor: float) -> Callable[..., NDArray[np.int64]]:
    return lambda size, deviation, stream: SOUND_NOISE(size, deviation * factor, stream)


def noise_without_c(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
    """Noise of the multiplier alone: too little for a clip norm above 1, too much below."""
    return SOUND_NOISE(size, deviation / 0.7, stream)


def reused_noise(period: int) -> Callable[..., NDArray[np.int64]]:
    keys = cycle([os.urandom(32) for _ in range(period)])
    return lambda size, deviation, _: SOUND_NOISE(size, deviation, Stream(next(keys)))


def one_number_for_all(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
    return np.full(size, SOUND_NOISE(1, deviation, stream)[0])


def noise_but_for_the_head(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
    drawn = SOUND_NOISE(size, deviation, stream)
    drawn[-size // 50 :] = 0
    return drawn


def in_lattice(rows: Tensor, clip_norm: float) -> Tensor:
    return (rows * (LATTICE / clip_norm)).round().long().sum(dim=0)


def no_clip(rows: Tensor, clip_norm: float) -> Tensor:
    return in_lattice(rows.double().nan_to_num(0), clip_norm)


def clip_each_coordinate(rows: Tensor, clip_norm: float) -> Tensor:
    return in_lattice(rows.double().clamp(-clip_norm, clip_norm), clip_norm)


def clip_the_sum(rows: Tensor, clip_norm: float) -> Tensor:
    return SOUND_CLIP(rows.double().sum(dim=0, keepdim=True), clip_norm)


def clip_to_twice(rows: Tensor, clip_norm: float) -> Tensor:
    return 2 * SOUND_CLIP(rows, 2 * clip_norm)


def nan_poisons(rows: Tensor, clip_norm: float) -> Tensor:
    return SOUND_CLIP(rows if rows.isfinite().all() else torch.zeros_like(rows), clip_norm)


def nan_becomes_c(rows: Tensor, clip_norm: float) -> Tensor:
    return SOUND_CLIP(rows.nan_to_num(clip_norm), clip_norm)


def shuffled_batches() -> Callable[[int, float, Stream], NDArray[np.int64]]:
    """What a DataLoader does: epochs over a permutation, batches of one size."""
    left: list[int] = []

    def sample(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
        size = round(units * rate)
        if len(left) < size or max(left, default=0) >= units:
            left[:] = np.random.default_rng().permutation(units).tolist()
        return np.array([left.pop() for _ in range(size)], dtype=np.int64)

    return sample


def fixed_size_draws(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    return np.random.default_rng().choice(units, round(units * rate), replace=False)


def at_rate(factor: float) -> Callable[[int, float, Stream], NDArray[np.int64]]:
    # Rate 1 stays: the checks that are not of the sampler use it.
    return lambda units, rate, stream: SOUND_SAMPLE(
        units, rate if rate == 1 else rate * factor, stream
    )


def same_batch_each_time() -> Callable[[int, float, Stream], NDArray[np.int64]]:
    key = os.urandom(32)
    return lambda units, rate, _: SOUND_SAMPLE(units, rate, Stream(key))


def all_or_nobody(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    return np.arange(units) if stream.uniforms(1)[0] < rate else np.arange(0)


def batch_mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Each record's share of a mean over all tokens of the batch."""
    shared: Tensor = per_example_loss(model, batch) / batch.attention_mask.sum()
    return shared


def realised_divisor(self: Trainer, round_: int, step: int) -> Tensor:
    chosen = self.mechanism.sample(self.units, round_, step)
    realised = replace(self.mechanism, divisor=max(1.0, len(chosen)))
    return realised.release(self.bounded_sum(chosen), round_, step)


def skip_empty(self: Trainer, round_: int, step: int) -> Tensor:
    chosen = self.mechanism.sample(self.units, round_, step)
    if not chosen:
        return torch.zeros(self.adapter.table.size)
    return self.mechanism.release(self.bounded_sum(chosen), round_, step)


def truncated(self: Trainer, units: Sequence[Any]) -> Tensor:
    return SOUND_SUM(self, units[: 2 * self.rows])


def weighted_by_count(self: Trainer, start: Vector, round_: int) -> Vector:
    return SOUND_ROUND(self, start, round_) * np.float32(len(self.units) / 36)


def frozen(*known: Any, **options: Any) -> Tensor:  # noqa: ANN401
    return torch.zeros_like(SOUND_GRADIENTS(*known, **options))


def one_tensor_still(*known: Any, **options: Any) -> Tensor:  # noqa: ANN401
    rows = SOUND_GRADIENTS(*known, **options).clone()
    rows[:, -96:] = 0  # the head's weight
    return rows


def each_record_a_unit(records: Sequence[Record], unit: str) -> list[list[Record]]:
    return [[record] for record in records]


def unit_split(self: Trainer, units: Sequence[Sequence[Any]]) -> Tensor:
    """Each record of a unit clipped by itself."""
    return SOUND_SUM(self, [[record] for unit in units for record in unit])


def first_of_each_text(records: Sequence[Record], unit: str) -> list[list[Record]]:
    kept = {record.text: record for record in reversed(records)}
    return SOUND_GROUP(list(reversed(kept.values())), unit)


def no_cap(records: int, cap: int | None, stream: Stream) -> NDArray[np.int64]:
    return np.arange(records)


def first_records(records: int, cap: int | None, stream: Stream) -> NDArray[np.int64]:
    return np.arange(records)[:cap]


PLANTED: dict[str, tuple[Plant, str]] = {
    "half the noise": (plant_noise(scaled_noise(0.5)), "noise: variance"),
    "a tenth less noise": (plant_noise(scaled_noise(0.9)), "noise: variance"),
    "no noise": (plant_noise(scaled_noise(0.0)), "noise: every coordinate"),
    "noise not scaled by C": (plant_noise(noise_without_c), "noise: variance"),
    "reused noise": (plant_noise(reused_noise(1)), "noise: every draw must be fresh"),
    "noise used again later": (plant_noise(reused_noise(9)), "noise: every draw must be fresh"),
    "one draw for all": (plant_noise(one_number_for_all), "noise: "),
    "no noise on the head": (plant_noise(noise_but_for_the_head), "noise: every coordinate"),
    "no clip": (plant(clipping, "clip_and_sum", no_clip), "sensitivity: one record must"),
    "per-coordinate clip": (
        plant(clipping, "clip_and_sum", clip_each_coordinate),
        "sensitivity: one record must",
    ),
    "batch-level clip": (plant(clipping, "clip_and_sum", clip_the_sum), "neighbours: "),
    "clip to 2 C": (plant(clipping, "clip_and_sum", clip_to_twice), "sensitivity: one record must"),
    "NaN gradient spoils the batch": (plant(clipping, "clip_and_sum", nan_poisons), "finite: "),
    "NaN gradient counted as C": (plant(clipping, "clip_and_sum", nan_becomes_c), "finite: "),
    "shuffled batches": (
        plant(sampling, "poisson_sample", shuffled_batches()),
        "sampler: spread of batch sizes",
    ),
    "fixed-size batches": (
        plant(sampling, "poisson_sample", fixed_size_draws),
        "sampler: spread of batch sizes",
    ),
    "half the rate": (plant(sampling, "poisson_sample", at_rate(0.5)), "sampler: inclusion rate"),
    "a rate 5 % too high": (
        plant(sampling, "poisson_sample", at_rate(1.05)),
        "sampler: inclusion rate",
    ),
    "one batch for ever": (plant(sampling, "poisson_sample", same_batch_each_time()), "sampler: "),
    "all or nobody": (plant(sampling, "poisson_sample", all_or_nobody), "sampler: "),
    "realised-batch divisor": (plant(Trainer, "release", realised_divisor), "divisor: "),
    "frozen adapter": (plant(train, "flat_gradients", frozen), "gradients: "),
    "a tensor that never moves": (plant(train, "flat_gradients", one_tensor_still), "gradients: "),
    "skipped empty batch": (plant(Trainer, "release", skip_empty), "empty batch: "),
    "truncated Poisson batch": (plant(Trainer, "bounded_sum", truncated), "whole batch: "),
    "private record count as weight": (
        plant(Trainer, "train_round", weighted_by_count),
        "weight: ",
    ),
    "deduplication across units": (
        plant(rehearsal, "privacy_units", first_of_each_text),
        "duplicates: ",
    ),
}
OF_PATIENTS: dict[str, tuple[Plant, str]] = {
    "unit split in two": (plant(Trainer, "bounded_sum", unit_split), "unit: one unit must"),
    "rows of a patient as units": (plant(rehearsal, "privacy_units", each_record_a_unit), "unit: "),
    "no cap": (plant(sampling, "choose_records", no_cap), "cap: a unit must give 3"),
    "always the first records": (
        plant(sampling, "choose_records", first_records),
        "cap: a unit's records must be chosen anew",
    ),
    "deduplication across patients": PLANTED["deduplication across units"],
}


def refused(subject: Rehearsal, bug: tuple[Plant, str], patch: pytest.MonkeyPatch) -> None:
    bug[0](patch)
    with pytest.raises(SelfCheckFailed, match=bug[1]):
        run_checks(subject)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_refused_by_its_own_check(
    bug: str, subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(subject(), PLANTED[bug], monkeypatch)


@pytest.mark.parametrize("bug", OF_PATIENTS)
def test_a_planted_bug_of_units_is_refused_by_its_own_check(
    bug: str, subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(subject(privacy=BY_PATIENT), OF_PATIENTS[bug], monkeypatch)


def test_a_loss_that_mixes_records_is_refused(subject: MakeSubject) -> None:
    sound = subject()
    with pytest.raises(SelfCheckFailed, match="neighbours: removing a unit"):
        run_checks(replace(sound, trainer=replace(sound.trainer, losses=batch_mean_loss)))


def test_dropout_is_refused(subject: MakeSubject) -> None:
    sound = subject()
    (dropouts, *_) = [
        module
        for name, module in sound.trainer.adapter.model.named_modules()
        if name.endswith("lora_dropout") and isinstance(module, nn.ModuleDict)
    ]
    before, dropouts["default"] = dropouts["default"], nn.Dropout(0.1)
    try:
        with pytest.raises(SelfCheckFailed, match="dropout: "):
            run_checks(sound)
    finally:
        dropouts["default"] = before


def by_step_only(purpose: str, round_: int, step: int) -> bytes:
    """A key that comes back in the next round."""
    return public_keys("job")(purpose, 0, step)


def by_round_only(purpose: str, round_: int, step: int) -> bytes:
    return public_keys("job")(purpose, round_, 0)


@pytest.mark.parametrize("keys", [by_step_only, by_round_only])
def test_keys_that_come_back_are_refused(
    subject: MakeSubject, keys: Callable[[str, int, int], bytes]
) -> None:
    with pytest.raises(SelfCheckFailed, match="noise: every draw must be fresh"):
        run_checks(subject(keys=keys))
    with pytest.raises(SelfCheckFailed, match="sampler: "):
        CHECKS["sampler"](with_rate(0.06, keys))
