import os

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from common.privacy.noise import gaussian_noise
from common.privacy.stream import Stream


def draw(
    size: int, noise_multiplier: float, clip_norm: float, key: bytes = b""
) -> NDArray[np.float64]:
    return gaussian_noise(
        size,
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        stream=Stream(key or os.urandom(32)),
    )


@pytest.mark.parametrize(
    ("noise_multiplier", "clip_norm"), [(0.6, 0.05), (3.0, 0.7), (1.7, 40.0), (1e-3, 1e3)]
)
def test_noise_is_normal_with_deviation_multiplier_times_c(
    noise_multiplier: float, clip_norm: float
) -> None:
    noise = draw(100_000, noise_multiplier, clip_norm)
    assert stats.kstest(noise, "norm", (0, noise_multiplier * clip_norm)).pvalue > 1e-9
    assert np.std(noise) == pytest.approx(noise_multiplier * clip_norm, rel=0.015)


def test_every_coordinate_gets_noise_of_its_own() -> None:
    noise = draw(5001, 1.3, 0.7)
    assert np.unique(noise).size == noise.size
    assert np.all(noise != 0)


def test_two_draws_share_nothing() -> None:
    first, second = draw(50_000, 1.3, 0.7), draw(50_000, 1.3, 0.7)
    assert abs(stats.pearsonr(first, second).statistic) < 6 / np.sqrt(50_000)
