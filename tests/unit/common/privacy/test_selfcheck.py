"""Sound mechanisms pass; each planted bug replaces one function and is refused by its own check.

The subject is a site's real trainer on a tiny base.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from client import rehearsal, train
from client.rehearsal import Rehearsal
from client.train import Trainer
from common import adapter as adapters
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
from common.privacy.subject import PublicRecord
from common.tasks.batches import Batch
from common.tasks.seq_cls import per_example_loss

MakeJob = Callable[..., Job]
CAP = 3
BY_PATIENT: dict[str, Any] = {"unit": "patient_id", "unit_cap": CAP}


@pytest.fixture
def subject(make_job: MakeJob) -> Callable[..., Rehearsal]:
    def make(
        *,
        keys: KeySource | None = None,
        is_seeded: bool = False,
        engine: str = "native",
        **sections: Any,  # noqa: ANN401
    ) -> Rehearsal:
        job = make_job(**sections)
        adapter = load_adapter(job, Path(job.model.base), "cpu")
        mechanism = mechanism_of(job, "A", keys)
        trainer = Trainer(job, adapter, [], mechanism, per_example_loss, rows=4, engine=engine)
        return Rehearsal(trainer, "A", is_seeded)

    return make


MakeSubject = Callable[..., Rehearsal]


@dataclass(frozen=True)
class SamplerAlone:
    """What the sampler's check looks at."""

    mechanism: Mechanism


def with_rate(rate: float, keys: KeySource = fresh_key) -> Any:  # noqa: ANN401
    return SamplerAlone(Mechanism(rate, 9.0, 0.7, 1.3, None, keys))


MORE: dict[str, Any] = {"method": "fedavg", "targets": ["query", "key", "dense"]}


@pytest.mark.parametrize(
    ("privacy", "adapter"),
    [
        (BY_PATIENT, {}),
        ({}, MORE),
        pytest.param({}, {}, marks=pytest.mark.slow),  # as at other clip norms below
        pytest.param(BY_PATIENT, MORE, marks=pytest.mark.slow),
    ],
)
def test_a_sound_mechanism_passes(
    subject: MakeSubject, privacy: dict[str, Any], adapter: dict[str, Any]
) -> None:
    assert run_checks(subject(privacy=privacy, adapter=adapter)) == tuple(CHECKS)


@pytest.mark.parametrize("rate", [0.5, 0.999, 1.0, 3e-3, 1e-4, 1e-5])
def test_a_sound_sampler_passes_at_any_rate(rate: float) -> None:
    CHECKS["sampler"](with_rate(rate))


@pytest.mark.parametrize(
    "clip_norm", [1e-4, *(pytest.param(norm, marks=pytest.mark.slow) for norm in (3.0, 90.0))]
)
def test_a_sound_mechanism_passes_at_any_clip_norm(subject: MakeSubject, clip_norm: float) -> None:
    run_checks(subject(privacy={"clip_norm": clip_norm}))


def test_keys_that_a_seed_repeats_pass_in_a_simulation_that_says_so_and_nowhere_else(
    subject: MakeSubject,
) -> None:
    run_checks(subject(keys=public_keys("seed", "A"), is_seeded=True))
    with pytest.raises(SelfCheckFailed, match="keys: those of sampling must be new each time"):
        run_checks(subject(keys=public_keys("seed", "A")))


@pytest.mark.parametrize(
    ("engine", "max_length"),
    [
        ("native", 8),
        pytest.param("opacus", 37, marks=pytest.mark.slow),
        pytest.param("native", 64, marks=pytest.mark.slow),
        pytest.param("opacus", 8, marks=pytest.mark.slow),
        pytest.param("native", 37, marks=pytest.mark.slow),
        pytest.param("opacus", 64, marks=pytest.mark.slow),
    ],
)
def test_a_sound_mechanism_passes_at_any_length(
    subject: MakeSubject, engine: str, max_length: int
) -> None:
    sound = subject(engine=engine, model={"max_length": max_length}, privacy=BY_PATIENT)
    assert sound.lengths == {8: (8,), 37: (16, 32, 37), 64: (16, 48, 64)}[max_length]
    run_checks(sound)


def test_the_records_of_a_rehearsal_use_all_words_that_texts_have(subject: MakeSubject) -> None:
    made, seen = subject(), set[int]()

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        seen.update(batch.input_ids[batch.attention_mask.bool()].tolist())
        return per_example_loss(model, batch)

    watched = replace(made, trainer=replace(made.trainer, losses=losses))
    watched.unit_gradients([[PublicRecord(i, length=48)] for i in range(64)])
    special = set(made.trainer.adapter.tokenizer.all_special_ids)
    assert seen - {0} == set(range(357)) - special  # rows that nobody fills hold padding, id 0


def test_a_run_without_privacy_still_has_to_train_and_sample(
    subject: MakeSubject, no_privacy: dict[str, Any]
) -> None:
    assert run_checks(subject(privacy=no_privacy)) == ("gradients", "dropout", "sampler")


Plant = Callable[[pytest.MonkeyPatch], None]
SOUND_NOISE, SOUND_SAMPLE = noise.lattice_noise, sampling.poisson_sample
SOUND_CLIP, SOUND_GROUP = clipping.clip_and_sum, units.privacy_units
SOUND_GRADIENTS = persample.flat_gradients
SOUND_SUM, SOUND_ROUND = Trainer.bounded_sum, Trainer.train_round
SOUND_RECORDS = Trainer._record_gradients
SOUND_DRAW, SOUND_RELEASE = Mechanism.sample, Mechanism.release


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


def half_noise_on(part: slice) -> Callable[..., NDArray[np.int64]]:
    def draw(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
        drawn = SOUND_NOISE(size, deviation, stream)
        drawn[part] = SOUND_NOISE(size, deviation / 2, stream)[part]
        return drawn

    return draw


def half_noise_on_the_last_part(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
    return half_noise_on(slice(-size * 9 // 100, None))(size, deviation, stream)


def little_noise_at_times() -> Callable[..., NDArray[np.int64]]:
    factors = cycle([1.0] * 159 + [0.1])  # one of the draws that are looked at
    return lambda size, deviation, stream: SOUND_NOISE(size, deviation * next(factors), stream)


def repeats_its_first_half(sign: int) -> Callable[..., NDArray[np.int64]]:
    def draw(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
        drawn = SOUND_NOISE(size, deviation, stream)
        drawn[size // 2 : size // 2 * 2] = sign * drawn[: size // 2]
        return drawn

    return draw


def a_number_always_alike(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
    drawn = SOUND_NOISE(size, deviation, stream)
    drawn[5] = round(deviation)
    return drawn


def minus_the_step_before() -> Callable[..., Tensor]:
    """Each odd step's noise takes back what the step before it added."""
    kept: dict[tuple[int, int], bytes] = {}

    def release(self: Mechanism, total: Tensor, round_: int, step: int) -> Tensor:
        before = kept.pop((round_, step - 1), None) if step % 2 else None
        key = before or os.urandom(32)
        kept[round_, step] = key
        sound = SOUND_RELEASE(
            replace(self, keys=lambda *_: key), torch.zeros_like(total), round_, step
        )
        still = SOUND_RELEASE(replace(self, noise_multiplier=0.0), total, round_, step)
        return still - sound if before else still + sound

    return release


def seeded_noise(self: Mechanism, total: Tensor, round_: int, step: int) -> Tensor:
    return SOUND_RELEASE(replace(self, keys=public_keys("x")), total, round_, step)


def seeded_coins(self: Mechanism, units: Any, round_: int, step: int) -> Any:  # noqa: ANN401
    return SOUND_DRAW(replace(self, keys=public_keys("x")), units, round_, step)


def cut_above_the_mean(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    return SOUND_SAMPLE(units, rate, stream)[: int(1.5 * rate * units) + 1]


def cut_at_120(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    return SOUND_SAMPLE(units, rate, stream)[:120]


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


def cut_release(self: Trainer, round_: int, step: int) -> Tensor:
    chosen = self.mechanism.sample(self.units, round_, step)[: 3 * self.rows]
    return self.mechanism.release(self.bounded_sum(chosen), round_, step)


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


def split_at_the_cap(records: Sequence[Record], unit: str) -> list[list[Record]]:
    return [
        whole[i : i + CAP]
        for whole in SOUND_GROUP(records, unit)
        for i in range(0, len(whole), CAP)
    ]


def neighbouring_rows_only(records: Sequence[Record], unit: str) -> list[list[Record]]:
    """What itertools.groupby does to a file that is not sorted."""
    return [list(rows) for _, rows in groupby(records, lambda record: record.unit)]


def split_in_pairs(self: Trainer, units: Sequence[Sequence[Any]]) -> Tensor:
    return SOUND_SUM(self, [unit[i : i + 2] for unit in units for i in range(0, len(unit), 2)])


def nan_record_left_out(self: Trainer, records: Any) -> Iterator[tuple[Tensor, Any]]:  # noqa: ANN401
    """The rest of its unit goes on without it."""
    for gradients, held in SOUND_RECORDS(self, records):
        finite = gradients.isfinite().all(dim=1, keepdim=True)
        yield gradients.where(finite, torch.zeros(())), held


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
    "half the noise on one tensor": (
        plant_noise(half_noise_on(slice(-99, -96))),
        "noise: variance of base_model.model.classifier.modules_to_save.default.bias's noise",
    ),
    "half the noise on the last 9 %": (
        plant_noise(half_noise_on_the_last_part),
        "noise: variance over",
    ),
    "half the noise on one number": (
        plant_noise(half_noise_on(slice(7, 8))),
        "noise: variance of one number",
    ),
    "little noise at times": (plant_noise(little_noise_at_times()), "noise: variance of a step"),
    "a number whose noise is always alike": (
        plant_noise(a_number_always_alike),
        "noise: its mean at every number",
    ),
    "noise taken back by the next step": (
        plant(Mechanism, "release", minus_the_step_before()),
        "noise: two steps' noise must overlap",
    ),
    "noise that repeats its first half": (
        plant_noise(repeats_its_first_half(1)),
        "noise: it must overlap with itself elsewhere",
    ),
    "noise that takes its first half back": (
        plant_noise(repeats_its_first_half(-1)),
        "noise: it must overlap with itself elsewhere",
    ),
    "noise from a seed": (
        plant(Mechanism, "release", seeded_noise),
        "noise: every draw must be fresh",
    ),
    "sampling from a seed": (plant(Mechanism, "sample", seeded_coins), "keys: a step must sample"),
    "a sampler that cuts above the mean": (
        plant(sampling, "poisson_sample", cut_above_the_mean),
        "whole batch: share of steps with ",
    ),
    "a sampler that cuts at 120 units": (
        plant(sampling, "poisson_sample", cut_at_120),
        "whole batch: every unit must be sampled",
    ),
    "a release that cuts what was sampled": (
        plant(Trainer, "release", cut_release),
        "whole batch: every sampled unit must be added",
    ),
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
    "unit split in pairs": (plant(Trainer, "bounded_sum", split_in_pairs), "unit: one unit must"),
    "unit split at the cap": (
        plant(rehearsal, "privacy_units", split_at_the_cap),
        "unit: 5 records of one",
    ),
    "units of neighbouring rows only": (
        plant(rehearsal, "privacy_units", neighbouring_rows_only),
        "unit: 5 records of one",
    ),
    "a unit without its record of NaN": (
        plant(Trainer, "_record_gradients", nan_record_left_out),
        "finite: ",
    ),
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


# Each is found by a check that finds a lesser bug, or one much like it, among the others.
LESSER = {
    "half the noise",
    "no noise",
    "noise not scaled by C",
    "noise used again later",
    "noise from a seed",
    "noise that takes its first half back",
    "one draw for all",
    "half the rate",
    "fixed-size batches",
    "a sampler that cuts at 120 units",
    "frozen adapter",
    "unit split in pairs",
    "rows of a patient as units",
    "deduplication across patients",
}


def in_their_sets(bugs: Iterable[str]) -> list[Any]:
    return [pytest.param(bug, marks=pytest.mark.slow if bug in LESSER else ()) for bug in bugs]


@pytest.mark.parametrize("bug", in_their_sets(PLANTED))
def test_a_planted_bug_is_refused_by_its_own_check(
    bug: str, subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(subject(), PLANTED[bug], monkeypatch)


@pytest.mark.parametrize("bug", in_their_sets(OF_PATIENTS))
def test_a_planted_bug_of_units_is_refused_by_its_own_check(
    bug: str, subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(subject(privacy=BY_PATIENT), OF_PATIENTS[bug], monkeypatch)


@contextmanager
def frozen_by_flag(model: PeftModel, part: str = "lora_B") -> Iterator[None]:
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.requires_grad_(False)
    yield


def one_frozen(model: PeftModel) -> AbstractContextManager[None]:
    return frozen_by_flag(model, "layer.1.attention.self.value.lora_B")


@contextmanager
def merged(model: PeftModel) -> Iterator[None]:
    model.merge_adapter()
    yield


@contextmanager
def thawed(model: PeftModel) -> Iterator[None]:
    """Something is trained that the job's flat vector does not hold."""
    for name, parameter in model.named_parameters():
        if name.endswith("pooler.dense.bias"):
            parameter.requires_grad_(True)
    yield


CHANGED: dict[str, tuple[Callable[[PeftModel], AbstractContextManager[Any]], str]] = {
    "frozen by flag": (frozen_by_flag, "lora_B.default.weight must be trainable, got it frozen"),
    "one tensor frozen by flag": (one_frozen, "value.lora_B.default.weight must be trainable"),
    "adapters disabled": (lambda model: model.disable_adapter(), "must be trainable, got it froz"),
    "adapters merged": (merged, "per-sample gradient of .*lora_B.default.weight must have one row"),
    "another parameter trained": (thawed, "pooler.dense.bias must be frozen, got it trainable"),
}


@pytest.mark.parametrize("engine", ["native", "opacus"])
@pytest.mark.parametrize("change", CHANGED)
def test_an_adapter_that_is_not_as_it_was_loaded_is_refused(
    change: str, engine: str, subject: MakeSubject
) -> None:
    made = subject(engine=engine)
    enter, says = CHANGED[change]
    try:
        with (
            enter(made.trainer.adapter.model),
            pytest.raises(SelfCheckFailed, match=f"gradients: .*{says}"),
        ):
            run_checks(made)
    finally:
        adapters._load_adapter.cache_clear()


def mixed(loss: Callable[[nn.Module, Batch], Tensor], length: int, share: float) -> Any:  # noqa: ANN401
    """A record counts for more beside records of great losses, in batches of one padded length."""

    def losses(model: nn.Module, batch: Batch) -> Tensor:
        found = loss(model, batch)
        at_length = batch.input_ids.shape[1] == length
        return found * (1 + share * found.detach().sum()) if at_length else found

    return losses


@pytest.mark.parametrize("length", [16, 32, 48])
def test_a_loss_that_mixes_records_at_some_length_is_refused(
    subject: MakeSubject, length: int
) -> None:
    sound = subject()
    # The lattice would hide it: 1e-5 of a gradient far below C.
    losses = mixed(per_example_loss, length, 1e-5)
    with pytest.raises(SelfCheckFailed, match=rf"neighbours: .* at {length} tokens .*batch = 1"):
        run_checks(replace(sound, trainer=replace(sound.trainer, losses=losses)))


@pytest.mark.slow
def test_a_loss_that_mixes_records_has_nothing_to_mix_in_rows_of_one(subject: MakeSubject) -> None:
    sound = subject()
    run_checks(replace(sound, trainer=replace(sound.trainer, losses=batch_mean_loss, rows=1)))


def test_a_loss_that_shares_a_mean_is_refused(subject: MakeSubject) -> None:
    sound = subject()
    with pytest.raises(SelfCheckFailed, match="neighbours: a unit's gradient must be the same"):
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
        CHECKS["noise"](subject(keys=keys, is_seeded=True))
    with pytest.raises(SelfCheckFailed, match="sampler: "):
        CHECKS["sampler"](with_rate(0.06, keys))
