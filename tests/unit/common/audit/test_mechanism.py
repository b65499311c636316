"""The bound on scores that are drawn from known Gaussians."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from common.audit.gaussian import gaussian_epsilon
from common.audit.mechanism import RELEASES, tell_apart

DELTA = 1e-5


def bounds(sigma: float, level: float, releases: int, runs: int) -> list[float]:
    rng = np.random.default_rng(7)
    found = []
    for _ in range(runs):
        without, with_it = rng.normal(0, sigma, releases), rng.normal(1, sigma, releases)
        found.append(tell_apart(without, with_it, level, 1.0).mu)
    return found


def test_at_sigma_one_the_bound_reaches_nine_tenths_of_epsilon() -> None:
    found = [gaussian_epsilon(mu, DELTA) for mu in bounds(1.0, 9e-4, RELEASES, 40)]
    assert min(found) >= 0.9 * gaussian_epsilon(1.0, DELTA)
    assert max(found) <= gaussian_epsilon(1.0, DELTA)


def test_a_sound_step_is_refuted_no_more_often_than_it_says() -> None:
    refuted = np.mean(np.array(bounds(1.5, 0.2, 400, 150)) > 1 / 1.5)
    assert refuted <= 0.2


def test_half_the_noise_of_a_claim_is_refuted() -> None:
    assert min(bounds(1.0, 1e-3, 4000, 10)) > 1 / 2.0


def test_the_bound_is_what_the_errors_at_the_threshold_say() -> None:
    """Scipy's exact interval, and for the mean of both rates its exact test: p is the level."""
    rng = np.random.default_rng(11)
    without, with_it = rng.normal(0, 1, 800), rng.normal(1, 1, 800)
    told = tell_apart(without, with_it, 0.04, 1.0)
    kept = np.arange(800) % 8 != 0
    alarms = int((without[kept] >= told.threshold).sum())
    misses = int((with_it[kept] < told.threshold).sum())
    for found, errors in ((told.false_positives, alarms), (told.false_negatives, misses)):
        one = binomtest(errors, 700, alternative="less").proportion_ci(0.99, "exact")
        assert found == pytest.approx(one.high)
    assert binomtest(alarms + misses, 1400, told.errors, "less").pvalue == pytest.approx(0.02)
    alone = norm.isf(told.false_positives) - norm.ppf(told.false_negatives)
    assert told.mu == pytest.approx(max(alone, -2 * norm.ppf(told.errors)))


def test_what_shows_in_a_tail_alone_is_told_by_each_rate() -> None:
    """One release in seven gives the adversary away: both rates together say next to nothing."""
    rng = np.random.default_rng(2)
    with_it = rng.normal(size=40_000)
    with_it[::7] += 50.0
    told = tell_apart(rng.normal(size=40_000), with_it, 1e-3, 1.0)
    assert told.mu > 1.5 > -2 * norm.ppf(told.errors)


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_what_is_not_higher_is_not_told(shift: float) -> None:
    rng = np.random.default_rng(1)
    told = tell_apart(rng.normal(size=1000), rng.normal(shift, 1, 1000), 1e-3, 1.0)
    assert told.mu <= 0
