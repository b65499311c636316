"""Bounds on chance, against closed forms, eigenvalues and simulation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2, norm

from common.errors import SelfCheckFailed
from common.privacy import chance
from common.privacy.chance import (
    least_bound,
    overlap_bound,
    overlap_log_mgf,
    require_coins,
    require_few,
    require_normal,
    require_rate,
    require_variance,
)

FACTORS = np.array([0.01, 0.1, 0.3, 0.49])


def test_a_normal_s_bound_is_the_closed_form() -> None:
    found = least_bound(lambda factors: 7000 * factors**2 / 2, 1e-9)
    assert found == pytest.approx(math.sqrt(2 * 7000 * math.log(1e9)), rel=1e-3)


@pytest.mark.parametrize("size", [5, 9, 12, 15])
def test_no_shift_in_a_circle_has_a_greater_moment_generating_function(size: int) -> None:
    """The quadratic form's eigenvalues, by numpy; the shift by a third attains the bound."""
    reached = []
    for shift in range(1, (size + 1) // 2):
        moved = np.roll(np.eye(size), shift, axis=1)
        eigenvalues = np.linalg.eigvalsh((moved + moved.T) / 2)
        exact = -0.5 * np.log(1 - 2 * FACTORS[:, None] * eigenvalues).sum(axis=1)
        assert (exact <= overlap_log_mgf(size, FACTORS) * (1 + 1e-12)).all()
        reached.append(np.allclose(exact, overlap_log_mgf(size, FACTORS)))
    assert any(reached) == (size % 3 == 0)


def test_independent_vectors_have_a_smaller_one() -> None:
    assert (-0.5 * 11 * np.log(1 - FACTORS**2) < overlap_log_mgf(11, FACTORS)).all()


def test_an_overlap_that_chance_gives_is_within_its_bound_and_the_bound_is_no_wider_than_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chance, "FALSE_ALARM", 1e-2)
    rng, size = np.random.default_rng(5), 400
    overlaps = [
        abs(float(rng.standard_normal(size) @ rng.standard_normal(size))) for _ in range(3000)
    ]
    bound = overlap_bound(size, 1)
    assert np.mean(np.array(overlaps) > bound) < 0.01
    assert np.quantile(overlaps, 0.99) > bound / 2
    assert overlap_bound(size, 50) > bound


def coins(count: int, trials: int, rate: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).binomial(trials, rate, count)


@pytest.mark.parametrize(("trials", "rate"), [(300, 0.2), (4000, 1e-4), (65, 0.97)])
def test_coins_spread_within_the_bounds_and_others_do_not(trials: int, rate: float) -> None:
    for seed in range(20):
        require_coins("spread", coins(900, trials, rate, seed), trials, rate)
    mean = np.full(900, round(trials * rate))
    if trials * rate > 5:
        with pytest.raises(SelfCheckFailed, match="spread must be in"):
            require_coins("spread", mean, trials, rate)
    twice = 2 * coins(900, trials, rate / 2, 1)
    with pytest.raises(SelfCheckFailed, match="spread must be in"):
        require_coins(
            "spread", np.concatenate([twice, twice + (trials * rate > 5) * 9]), trials, rate
        )


Check = Callable[[], None]


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (
            lambda: require_variance("v", chi2.isf(3e-9, 40), 40),
            lambda: require_variance("v", chi2.isf(2e-9, 40), 40),
        ),
        (
            lambda: require_variance("v", np.array([40.0, chi2.ppf(3e-10, 40)]), 40, 10),
            lambda: require_variance("v", np.array([40.0, chi2.ppf(2e-10, 40)]), 40, 10),
        ),
        (
            lambda: require_normal("m", np.array([0.0, -norm.isf(2e-9)])),
            lambda: require_normal("m", np.array([0.0, -norm.isf(1e-9)])),
        ),
        (lambda: require_few("z", 14, 1000, 2e-3), lambda: require_few("z", 15, 1000, 2e-3)),
        (
            lambda: require_rate("r", 200, 1000, 0.2, 3),
            lambda: require_rate("r", 280, 1000, 0.2, 3),
        ),
        (
            lambda: require_rate("r", 130, 1000, 0.2),
            lambda: require_rate("r", 129, 1000, 0.2),
        ),
        (
            lambda: require_variance("v", 40.0, 40),
            lambda: require_variance("v", math.nan, 40),
        ),
        (
            lambda: require_normal("m", np.zeros(2)),
            lambda: require_normal("m", np.array([0.0, math.nan])),
        ),
    ],
)
def test_what_lies_outside_is_refused(inside: Check, outside: Check) -> None:
    inside()
    with pytest.raises(SelfCheckFailed):
        outside()
