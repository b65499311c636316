"""Bounds from guesses: published numbers, an independent library's, and ideal simulated canaries.

``JAX_PRIVACY`` holds what ``jax_privacy.auditing`` 2.0.0 (``_epsilon_one_run`` and
``_epsilon_one_run_fdp``, significance 0.05, delta 1e-5) answers.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from common.audit import onerun
from common.errors import InvalidInput
from common.privacy.accounting import calibrate
from common.privacy.event import GaussianSteps

DELTA, LEVEL = 1e-5, 0.05
JAX_PRIVACY = [
    # canaries, guesses, right, Steinke et al., Mahloujifar et al.
    (1000, 1000, 600, 0.29723, 0.58354),
    (1000, 200, 150, 0.81997, 1.29692),
    (1000, 100, 100, 3.46538, 5.54903),
    (1000, 1000, 1000, 5.78228, 12.33457),
    (4000, 400, 350, 1.68709, 2.42279),
    (250, 50, 35, 0.30624, 0.45545),
    (250, 250, 160, 0.35137, 0.75213),
    (100, 100, 95, 2.17171, 4.80343),
]


@pytest.mark.parametrize(("canaries", "guesses", "right", "general", "gaussian"), JAX_PRIVACY)
def test_both_bounds_are_those_of_an_independent_library(
    canaries: int, guesses: int, right: int, general: float, gaussian: float
) -> None:
    numbers = (canaries, guesses, right, DELTA, LEVEL)
    assert onerun.general_bound(*numbers) == pytest.approx(general, abs=2e-5)
    assert onerun.gaussian_bound(*numbers) == pytest.approx(gaussian, abs=5e-5)


def test_without_delta_it_is_a_binomial_test() -> None:
    epsilon = 1.3
    accuracy = 1 / (1 + math.exp(-epsilon))
    found = onerun.chance_of(900, 80, 70, epsilon, 0.0)
    assert found == pytest.approx(binom.sf(69, 80, accuracy))


def by_paper(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The listing of Steinke et al., appendix D, line by line."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    beta = binom.sf(right - 1, guesses, accuracy)
    alpha = total = 0.0
    for i in range(1, right + 1):
        total += binom.pmf(right - i, guesses, accuracy)
        if total > i * alpha:
            alpha = total / i
    return float(min(beta + alpha * delta * 2 * canaries, 1))


@given(
    guesses=st.integers(1, 80), more=st.integers(0, 200), epsilon=st.floats(0, 6), data=st.data()
)
def test_the_chance_is_that_of_the_papers_listing(
    guesses: int, more: int, epsilon: float, data: st.DataObject
) -> None:
    right = data.draw(st.integers(0, guesses))
    numbers = (guesses + more, guesses, right, epsilon, 1e-4)
    assert onerun.chance_of(*numbers) == pytest.approx(by_paper(*numbers), rel=1e-9, abs=1e-12)


def simulated(event: GaussianSteps, canaries: int, guesses: int, seed: int) -> int:
    """Right guesses about ideal canaries, drawn and not computed."""
    rng = np.random.default_rng(seed)
    coins = rng.random(canaries) < 0.5
    scores = rng.normal(0, event.noise_multiplier * math.sqrt(event.steps), canaries)
    scores += coins * rng.binomial(event.steps, event.sampling_rate, canaries)
    order = np.argsort(scores)
    half = guesses // 2
    return int(coins[order[-half:]].sum() + (~coins[order[:half]]).sum())


# Medians of five runs in the research that this was built from: m = 1,000, q = 0.05, 400 steps.
@pytest.mark.parametrize(
    ("epsilon", "general", "gaussian"),
    [(3.36, 0.87, 1.32), pytest.param(6.70, 1.40, 2.75, marks=pytest.mark.slow)],
)
def test_ideal_canaries_show_what_they_showed_before(
    epsilon: float, general: float, gaussian: float
) -> None:
    noise = calibrate(epsilon=epsilon, delta=DELTA, sampling_rate=0.05, steps=400)
    event = GaussianSteps(0.05, noise, 400)
    guesses = onerun.best_guesses(1000, event, DELTA, LEVEL)
    right = int(np.median([simulated(event, 1000, guesses, seed) for seed in range(25)]))
    numbers = (1000, guesses, right, DELTA, LEVEL)
    assert onerun.general_bound(*numbers) == pytest.approx(general, rel=0.25)
    assert onerun.gaussian_bound(*numbers) == pytest.approx(gaussian, rel=0.15)
    assert onerun.gaussian_bound(*numbers) < epsilon


@pytest.mark.parametrize("guesses", [60, 200, 700])
def test_the_ideal_number_of_right_guesses_is_the_mean_of_simulations(guesses: int) -> None:
    event = GaussianSteps(0.05, 1.5, 400)
    found = np.array([simulated(event, 1000, guesses, seed) for seed in range(60)])
    error = found.std() / math.sqrt(60)
    assert onerun.ideal_right(1000, guesses, event) == pytest.approx(
        found.mean(), abs=4 * error + 1
    )


def test_a_hundred_right_guesses_about_a_thousand_canaries_show_no_more_than_five_and_a_half() -> (
    None
):
    assert onerun.ceiling(1000, 100, DELTA, LEVEL) == pytest.approx(5.55, abs=0.01)
    assert onerun.ceiling(250, 24, DELTA, LEVEL) < 3.6


def test_a_sound_mechanism_is_refuted_no_more_often_than_it_says() -> None:
    event = GaussianSteps(1.0, 4.0, 1)  # mu = 1/4, where the bounds are tightest
    claim = 0.93
    bounds = [
        onerun.gaussian_bound(400, 80, simulated(event, 400, 80, seed), DELTA, LEVEL)
        for seed in range(60)
    ]
    assert np.mean(np.array(bounds) > claim) <= LEVEL


def test_guesses_leave_room_for_the_claim_where_any_number_of_them_does() -> None:
    event = GaussianSteps(0.04, 0.594, 54)
    few = onerun.best_guesses(1000, event, DELTA, LEVEL)
    able = onerun.best_guesses(1000, event, DELTA, LEVEL, claim=8.0)
    assert onerun.ceiling(1000, few, DELTA, LEVEL) < 8.0 < onerun.ceiling(1000, able, DELTA, LEVEL)


def test_counts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInput, match="0 <= right <= guesses <= canaries"):
        onerun.general_bound(10, 5, 6, DELTA, LEVEL)
    with pytest.raises(InvalidInput, match="0 <= right <= guesses <= canaries"):
        onerun.gaussian_bound(10, 20, 6, DELTA, LEVEL)
