"""Sound mechanisms pass; each planted bug replaces one function and is refused by its check."""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import SelfCheckFailed
from common.privacy import clipping, noise, sampling
from common.privacy.mechanism import Mechanism
from common.privacy.selfcheck import CHECKS, Subject, run_checks
from common.privacy.stream import Stream, fresh_key, public_keys

SOUND = Mechanism(
    sampling_rate=0.06, divisor=9.0, clip_norm=0.7, noise_multiplier=1.3, keys=fresh_key
)


def gradients(size: int) -> Callable[[Tensor], Tensor]:
    """Two examples whose gradients are nearly parallel, as those of one label are."""
    rows = np.random.Generator(np.random.PCG64(5)).normal(3.0, 1.0, (2, size))

    def weighted(weights: Tensor) -> Tensor:
        return torch.from_numpy(rows[: len(weights)]).float() * weights[:, None]

    return weighted


def subject(mechanism: Mechanism = SOUND, size: int = 300) -> Subject:
    return Subject(mechanism, size, gradients(size))


@pytest.mark.parametrize("size", [8, 300, 60_000])
@pytest.mark.parametrize("rate", [0.06, 0.5, 0.999, 1.0])
def test_a_sound_mechanism_passes(size: int, rate: float) -> None:
    assert run_checks(subject(replace(SOUND, sampling_rate=rate), size)) == tuple(CHECKS)


@pytest.mark.parametrize("rate", [3e-3, 1e-4, 1e-5])
def test_a_sound_sampler_passes_at_rates_of_large_populations(rate: float) -> None:
    CHECKS["sampler"](subject(replace(SOUND, sampling_rate=rate)))


@pytest.mark.parametrize("clip_norm", [1e-4, 0.7, 3.0, 1e5])
def test_a_sound_mechanism_passes_at_any_clip_norm(clip_norm: float) -> None:
    run_checks(subject(replace(SOUND, clip_norm=clip_norm)))


def test_keys_that_a_seed_repeats_pass_as_they_differ_by_round_and_step() -> None:
    run_checks(subject(replace(SOUND, keys=public_keys("seed", "A"))))


Plant = Callable[[pytest.MonkeyPatch], None]
SOUND_NOISE, SOUND_SAMPLE = noise.gaussian_noise, sampling.poisson_sample
SOUND_CLIP = clipping.clip_and_sum


def plant_noise(draw: Callable[..., NDArray[np.float64]]) -> Plant:
    return lambda patch: patch.setattr(noise, "gaussian_noise", draw)


def plant_clip(clip: Callable[[Tensor, float], Tensor]) -> Plant:
    return lambda patch: patch.setattr(clipping, "clip_and_sum", clip)


def plant_sampler(sample: Callable[[int, float, Stream], NDArray[np.int64]]) -> Plant:
    return lambda patch: patch.setattr(sampling, "poisson_sample", sample)


def scaled_noise(factor: float) -> Callable[..., NDArray[np.float64]]:
    return lambda size, **known: SOUND_NOISE(size, **known) * factor


def noise_without_c(size: int, **known: Any) -> NDArray[np.float64]:  # noqa: ANN401
    return SOUND_NOISE(size, **{**known, "clip_norm": 1.0})


def reused_noise(period: int) -> Callable[..., NDArray[np.float64]]:
    keys = cycle([os.urandom(32) for _ in range(period)])
    return lambda size, **known: SOUND_NOISE(size, **{**known, "stream": Stream(next(keys))})


def one_number_for_all(size: int, **known: Any) -> NDArray[np.float64]:  # noqa: ANN401
    return np.full(size, SOUND_NOISE(1, **known)[0])


def noise_but_for_the_head(size: int, **known: Any) -> NDArray[np.float64]:  # noqa: ANN401
    drawn = SOUND_NOISE(size, **known)
    drawn[-size // 50 :] = 0
    return drawn


def no_clip(rows: Tensor, clip_norm: float) -> Tensor:
    return rows.double().sum(dim=0)


def clip_each_coordinate(rows: Tensor, clip_norm: float) -> Tensor:
    return rows.double().clamp(-clip_norm, clip_norm).sum(dim=0)


def clip_the_sum(rows: Tensor, clip_norm: float) -> Tensor:
    total = rows.double().sum(dim=0)
    scaled: Tensor = total * (clip_norm / torch.linalg.vector_norm(total).clamp_min(clip_norm))
    return scaled


def clip_to_twice(rows: Tensor, clip_norm: float) -> Tensor:
    return SOUND_CLIP(rows, 2 * clip_norm)


def shuffled_batches() -> Callable[[int, float, Stream], NDArray[np.int64]]:
    """What a DataLoader does: epochs over a permutation, batches of one size."""
    left: list[int] = []

    def sample(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
        size = round(units * rate)
        if len(left) < size:
            left[:] = np.random.default_rng().permutation(units).tolist()
        return np.array([left.pop() for _ in range(size)])

    return sample


def fixed_size_draws(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    return np.random.default_rng().choice(units, round(units * rate), replace=False)


def at_rate(factor: float) -> Callable[[int, float, Stream], NDArray[np.int64]]:
    return lambda units, rate, stream: SOUND_SAMPLE(units, rate * factor, stream)


def same_batch_each_time() -> Callable[[int, float, Stream], NDArray[np.int64]]:
    key = os.urandom(32)
    return lambda units, rate, _: SOUND_SAMPLE(units, rate, Stream(key))


def all_or_nobody(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
    return np.arange(units) if stream.uniforms(1)[0] < rate else np.arange(0)


PLANTED: dict[str, tuple[Plant, str]] = {
    "half the noise": (plant_noise(scaled_noise(0.5)), "noise: variance"),
    "a tenth less noise": (plant_noise(scaled_noise(0.9)), "noise: variance"),
    "no noise": (plant_noise(scaled_noise(0.0)), "noise: every coordinate"),
    "noise not scaled by C": (plant_noise(noise_without_c), "noise: variance"),
    "noise used again": (plant_noise(reused_noise(1)), "noise: every draw must be fresh"),
    "noise used again later": (plant_noise(reused_noise(9)), "noise: every draw must be fresh"),
    "one draw for all": (plant_noise(one_number_for_all), "noise: "),
    "no noise on the head": (plant_noise(noise_but_for_the_head), "noise: every coordinate"),
    "no clip": (plant_clip(no_clip), "sensitivity: one record"),
    "clip by coordinate": (plant_clip(clip_each_coordinate), "sensitivity: one record"),
    "clip of the sum": (plant_clip(clip_the_sum), "sensitivity: one record"),
    "clip to 2 C": (plant_clip(clip_to_twice), "sensitivity: one record"),
    "shuffled batches": (plant_sampler(shuffled_batches()), "sampler: spread of batch sizes"),
    "fixed-size batches": (plant_sampler(fixed_size_draws), "sampler: spread of batch sizes"),
    "half the rate": (plant_sampler(at_rate(0.5)), "sampler: inclusion rate"),
    "a rate 5 % too high": (plant_sampler(at_rate(1.05)), "sampler: inclusion rate"),
    "one batch for ever": (plant_sampler(same_batch_each_time()), "sampler: "),
    "all or nobody": (plant_sampler(all_or_nobody), "sampler: "),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_refused_by_name(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, says = PLANTED[bug]
    plant(monkeypatch)
    with pytest.raises(SelfCheckFailed, match=says):
        run_checks(subject())


def by_step_only(purpose: str, round_: int, step: int) -> bytes:
    """A key that comes back in the next round."""
    return public_keys("job")(purpose, 0, step)


def by_round_only(purpose: str, round_: int, step: int) -> bytes:
    return public_keys("job")(purpose, round_, 0)


@pytest.mark.parametrize("keys", [by_step_only, by_round_only])
@pytest.mark.parametrize("size", [300, 60_000])
def test_keys_that_come_back_are_refused(keys: Callable[[str, int, int], bytes], size: int) -> None:
    with pytest.raises(SelfCheckFailed, match="noise: every draw must be fresh"):
        run_checks(subject(replace(SOUND, keys=keys), size))
    with pytest.raises(SelfCheckFailed, match="sampler: "):
        CHECKS["sampler"](subject(replace(SOUND, keys=keys)))


def test_a_record_whose_gradient_vanishes_proves_nothing() -> None:
    still = Subject(SOUND, 300, lambda weights: torch.zeros(len(weights), 300))
    with pytest.raises(SelfCheckFailed, match="must be positive in norm"):
        run_checks(still)


def test_gradients_that_ignore_the_loss_weight_prove_nothing() -> None:
    deaf = Subject(SOUND, 300, lambda weights: torch.ones(len(weights), 300))
    with pytest.raises(SelfCheckFailed, match="adversarial gradient must reach"):
        run_checks(deaf)
