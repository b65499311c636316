"""Oracles: dp-accounting's Gaussian, scipy's binomial test, the definition of a trade-off curve."""

import numpy as np
import pytest
from dp_accounting import get_sigma_gaussian
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from common.audit import gaussian
from common.errors import InvalidInput

DELTAS = st.sampled_from([1e-9, 1e-6, 1e-5, 1e-3])


@given(epsilon=st.floats(0.05, 20.0), delta=DELTAS)
def test_mu_is_the_inverse_deviation_that_dp_accounting_finds(epsilon: float, delta: float) -> None:
    assert gaussian.gaussian_mu(epsilon, delta) == pytest.approx(
        1 / get_sigma_gaussian(epsilon, delta), rel=1e-3
    )


@given(mu=st.floats(0.02, 8.0), delta=DELTAS)
def test_epsilon_and_mu_are_each_others_inverse(mu: float, delta: float) -> None:
    epsilon = gaussian.gaussian_epsilon(mu, delta)
    if epsilon > 0:
        assert gaussian.gaussian_mu(epsilon, delta) == pytest.approx(mu, rel=1e-5)


def test_the_reference_epsilon_at_sigma_one() -> None:
    assert gaussian.gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=1e-3)
    assert gaussian.gaussian_epsilon(0.5, 1e-5) == pytest.approx(1.99, abs=0.01)


@given(successes=st.integers(0, 60), more=st.integers(0, 60), level=st.floats(1e-4, 0.2))
def test_an_interval_is_scipys_exact_one(successes: int, more: int, level: float) -> None:
    trials = successes + more
    if trials:
        exact = binomtest(successes, trials).proportion_ci(1 - level, "exact")
        assert gaussian.interval(successes, trials, level) == pytest.approx(tuple(exact))


@pytest.mark.parametrize("p", [0.001, 0.2, 0.93])
def test_an_upper_bound_is_too_low_no_more_often_than_it_says(p: float) -> None:
    level, trials = 0.03, 400
    bounds = np.array([gaussian.most(k, trials, level) for k in range(trials + 1)])
    assert binom.pmf(np.arange(trials + 1), trials, p)[bounds < p].sum() <= level


@given(mu=st.floats(0.1, 6.0), threshold=st.floats(-3.0, 3.0))
def test_error_rates_of_a_gaussian_shift_give_its_mu(mu: float, threshold: float) -> None:
    found = gaussian.least_mu(norm.sf(threshold), norm.cdf(threshold - mu))
    assert found == pytest.approx(mu, abs=1e-6)


def test_a_delta_that_is_no_probability_is_refused() -> None:
    with pytest.raises(InvalidInput, match="delta must be in"):
        gaussian.gaussian_epsilon(1.0, 1.0)
    with pytest.raises(InvalidInput, match="epsilon must be at least 0"):
        gaussian.gaussian_mu(-1.0, 1e-5)
