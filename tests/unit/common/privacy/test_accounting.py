import doctest
import math
import warnings

import dp_accounting as dpa
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from common.errors import InvalidInput
from common.privacy import accounting
from common.privacy.accounting import GaussianSteps, calibrate, epsilon


def library_epsilon(rate: float, noise: float, steps: int, delta: float) -> float:
    """dp-accounting's own way: one event, composed with itself."""
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    event = dpa.SelfComposedDpEvent(
        dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(noise)), steps
    )
    return float(accountant.compose(event).get_epsilon(delta))


def rdp_epsilon(rate: float, noise: float, steps: int, delta: float) -> float:
    """Mironov et al. (2019): another method, and always above."""
    accountant = rdp.RdpAccountant()
    accountant.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(noise)), steps)
    return float(accountant.get_epsilon(delta))


def prv_epsilon(rate: float, noise: float, steps: int, delta: float) -> float:
    """Opacus' PRV accountant: other code, other discretisation; its bound adds eps_error 0.01."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta=delta))


def gaussian_delta(target: float, shift: float) -> float:
    """Balle and Wang (2018), https://arxiv.org/abs/1805.06530, Theorem 8: exact."""
    above = norm.cdf(shift / 2 - target / shift)
    return float(above - math.exp(target) * norm.cdf(-shift / 2 - target / shift))


@pytest.mark.parametrize(
    ("noise", "steps", "published"),
    # dp-accounting 0.6 on a ten times finer grid; q .01, delta 1e-5.
    [(0.8, 1000, 3.141), (1.0, 1000, 1.828), (1.0, 3000, 3.192), (2.0, 10000, 2.163)],
)
def test_known_figures_are_met_from_above(noise: float, steps: int, published: float) -> None:
    # The grid rounds losses up: at 10,000 steps that adds 0.007.
    found = epsilon([GaussianSteps(0.01, noise, steps)], 1e-5)
    assert published - 5e-4 <= found <= published + 1e-2


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.01, 0.8, 500, 1e-5), (0.2, 2.5, 40, 1e-6), (0.004, 1.3, 2000, 1e-7), (0.6, 4.0, 9, 1e-4)],
)
def test_three_accountants_agree(rate: float, noise: float, steps: int, delta: float) -> None:
    ours = epsilon([GaussianSteps(rate, noise, steps)], delta)
    finer = library_epsilon(rate, noise, steps, delta)
    assert finer - 1e-9 <= ours <= finer + 5e-3
    assert ours <= prv_epsilon(rate, noise, steps, delta) + 5e-3
    assert ours >= prv_epsilon(rate, noise, steps, delta) - 2.5e-2
    assert ours <= rdp_epsilon(rate, noise, steps, delta)


@pytest.mark.parametrize(("noise", "steps"), [(0.9, 1), (3.0, 1), (5.0, 16)])
def test_without_sampling_the_cost_is_the_gaussians_closed_form(noise: float, steps: int) -> None:
    shift, delta = math.sqrt(steps) / noise, 1e-5
    exact = brentq(lambda e: gaussian_delta(e, shift) - delta, 0, 50)
    assert exact <= epsilon([GaussianSteps(1.0, noise, steps)], delta) <= exact + 2e-3


def test_jobs_compose_and_their_order_does_not_matter() -> None:
    first, second = GaussianSteps(0.03, 1.4, 300), GaussianSteps(0.1, 2.2, 70)
    both = epsilon([first, second], 1e-5)
    assert both == epsilon([second, first], 1e-5)
    alone = epsilon([first], 1e-5), epsilon([second], 1e-5)
    assert max(alone) < both < sum(alone)
    split = [GaussianSteps(0.03, 1.4, 299), second, GaussianSteps(0.03, 1.4, 1)]
    assert epsilon(split, 1e-5) == both


def test_nothing_executed_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([GaussianSteps(0.1, 1.2, 0)], 1e-5) == 0
    assert epsilon([GaussianSteps(0.1, 0.0, 1), GaussianSteps(0.1, 3.0, 5)], 1e-5) == math.inf


@settings(max_examples=6, deadline=None)
@given(
    target=st.floats(0.3, 12),
    rate=st.floats(0.005, 0.5),
    steps=st.integers(1, 400),
    delta=st.sampled_from([1e-4, 1e-5, 1e-7]),
)
def test_calibrated_noise_is_enough_and_one_percent_less_is_not(
    target: float, rate: float, steps: int, delta: float
) -> None:
    noise = calibrate(epsilon=target, delta=delta, sampling_rate=rate, steps=steps)
    assert epsilon([GaussianSteps(rate, noise, steps)], delta) <= target
    assert epsilon([GaussianSteps(rate, noise / 1.01, steps)], delta) > target


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(InvalidInput, match="epsilon must be reachable"):
        calibrate(epsilon=1e-9, delta=1e-12, sampling_rate=1.0, steps=10)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [
        (0.0, 1.2, 3, 1e-5),
        (1.01, 1.2, 3, 1e-5),
        (math.nan, 1.2, 3, 1e-5),
        (0.1, -1.2, 3, 1e-5),
        (0.1, math.nan, 3, 1e-5),
        (0.1, math.inf, 3, 1e-5),
        (0.1, 1.2, -1, 1e-5),
        (0.1, 1.2, 3, 0.0),
        (0.1, 1.2, 3, 1.0),
        (0.1, 1.2, 3, math.nan),
    ],
)
def test_what_is_no_mechanism_has_no_cost(
    rate: float, noise: float, steps: int, delta: float
) -> None:
    with pytest.raises(InvalidInput, match="must be"):
        epsilon([GaussianSteps(rate, noise, steps)], delta)


@pytest.mark.parametrize("change", [{"epsilon": 0.0}, {"delta": 1.0}, {"steps": 0}])
def test_no_noise_is_calibrated_for_an_impossible_target(change: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(change))} must be"):
        calibrate(**{"epsilon": 2.0, "delta": 1e-5, "sampling_rate": 0.1, "steps": 5, **change})


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(accounting).failed == 0
