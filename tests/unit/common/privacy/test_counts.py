"""Noise on counts: whole numbers of the stated law, on every bin for itself."""

import math

import numpy as np
import pytest
from scipy.stats import chisquare, norm

from common.errors import SelfCheckFailed
from common.privacy.counts import noised, variance
from common.privacy.stream import Stream


def draws(deviation: float, size: int = 200_000, key: int = 7) -> np.ndarray:
    return noised(np.zeros(size, dtype=np.int64), deviation, Stream(bytes([key]) * 32))


@pytest.mark.parametrize("deviation", [0.3, 1.7, 23.4])
def test_noise_has_the_law_of_a_rounded_gaussian(deviation: float) -> None:
    drawn = draws(deviation)
    assert drawn.dtype == np.int64
    far = math.ceil(4 * deviation)
    edges = np.arange(-far, far + 2) - 0.5
    expected = np.diff(norm.cdf(edges / deviation))
    observed = np.array([(drawn == k).sum() for k in range(-far, far + 1)])
    rest = len(drawn) - observed.sum()
    tail = 1 - expected.sum()
    common = expected * len(drawn) >= 10
    found = [*observed[common], observed[~common].sum() + rest]
    wanted = [*expected[common] * len(drawn), (expected[~common].sum() + tail) * len(drawn)]
    assert chisquare(found, wanted).pvalue > 1e-6


@pytest.mark.parametrize("deviation", [0.5, 1.0, 9.0])
def test_the_variance_that_intervals_rest_on_is_that_of_the_law(deviation: float) -> None:
    ks = np.arange(-200, 201)
    law = norm.cdf((ks + 0.5) / deviation) - norm.cdf((ks - 0.5) / deviation)
    exact = float((law * ks**2).sum())
    below = (4 * deviation**2 + math.pi**-2) * math.exp(-2 * math.pi**2 * deviation**2)
    assert -1e-12 <= variance(deviation) - exact <= below + 1e-12


def test_counts_are_moved_by_noise_and_by_nothing_else() -> None:
    counts = np.array([5, 0, 1_000_000], dtype=np.int64)
    key = bytes([3]) * 32
    moved = noised(counts, 4.0, Stream(key)) - noised(counts * 0, 4.0, Stream(key))
    assert moved.tolist() == counts.tolist()


@pytest.mark.parametrize("counts", [np.zeros(3), np.zeros((2, 2), dtype=np.int64)])
def test_what_is_no_row_of_whole_numbers_gets_no_noise(counts: np.ndarray) -> None:
    with pytest.raises(SelfCheckFailed, match="int64 in one row"):
        noised(counts, 2.0, Stream(b"\1" * 32))


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan])
def test_counts_never_leave_without_noise(deviation: float) -> None:
    with pytest.raises(SelfCheckFailed, match="greater than 0"):
        noised(np.zeros(3, dtype=np.int64), deviation, Stream(b"\1" * 32))
