"""The bound on scores that are drawn from known Gaussians."""

import numpy as np
import pytest

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
    found = [gaussian_epsilon(mu, DELTA) for mu in bounds(1.0, 9e-4, RELEASES, 15)]
    assert np.median(found) >= 0.9 * gaussian_epsilon(1.0, DELTA)
    assert max(found) <= gaussian_epsilon(1.0, DELTA)


def test_a_sound_step_is_refuted_no_more_often_than_it_says() -> None:
    refuted = np.mean(np.array(bounds(1.5, 0.2, 400, 150)) > 1 / 1.5)
    assert refuted <= 0.2


def test_half_the_noise_of_a_claim_is_refuted() -> None:
    assert min(bounds(1.0, 1e-3, 4000, 10)) > 1 / 2.0


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_what_is_not_higher_is_not_told(shift: float) -> None:
    rng = np.random.default_rng(1)
    told = tell_apart(rng.normal(size=1000), rng.normal(shift, 1, 1000), 1e-3, 1.0)
    assert told.mu <= 0
