import doctest
import math
import time
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


def library_epsilon(
    rate: float, noise: float, steps: int, delta: float, grid: float = 1e-4
) -> float:
    """dp-accounting's own way: one event, composed with itself."""
    accountant = pld.PLDAccountant(value_discretization_interval=grid)
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
    found = epsilon([GaussianSteps(0.01, noise, steps)], 1e-5)
    assert published - 5e-4 <= found <= published + 1.5e-3


@pytest.mark.slow
def test_the_grid_is_refined_where_rounding_adds_up() -> None:
    # 1.960 on a grid of 1e-3, 1.862 on one of 1e-4 and PRV, less its 0.01, at 1.861.
    found = epsilon([GaussianSteps(0.001, 1.0, 100_000)], 1e-6)
    assert 1.861 <= found <= 1.862


@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [
        pytest.param(0.04, 0.594, 54, marks=pytest.mark.slow),
        (0.01, 2.0, 10_000),
        (0.002, 1.1, 12_000),
    ],
)
def test_another_refinement_changes_less_than_the_tolerance(
    rate: float, noise: float, steps: int
) -> None:
    found = epsilon([GaussianSteps(rate, noise, steps)], 1e-5)
    finer = library_epsilon(rate, noise, steps, 1e-5, grid=1e-4)
    assert finer - 1e-6 <= found <= finer + 2e-3


def test_what_a_refinement_could_not_make_meaningful_is_not_refined() -> None:
    event = GaussianSteps(0.3, 0.6, 250)
    start = time.process_time()
    found = epsilon([event], 1e-5)
    assert found > 100
    assert found == pytest.approx(library_epsilon(0.3, 0.6, 250, 1e-5, grid=1e-2), abs=1e-3)
    assert epsilon([GaussianSteps(0.5, 0.1, 1000)], 1e-5) == math.inf  # gigabytes, if computed
    assert time.process_time() - start < 2


def test_the_noise_generators_share_is_taken_from_delta() -> None:
    events = [GaussianSteps(0.3, 2.1, 2**10)]
    # A delta of twice the share is one of half of it to the mechanism.
    halved = epsilon(events, 2.0**-53)
    assert halved == pytest.approx(library_epsilon(0.3, 2.1, 2**10, 2.0**-54), abs=2e-3)
    with pytest.raises(InvalidInput, match="delta must be more than"):
        epsilon(events, 2.0**-54)


@settings(max_examples=4)
@given(
    rate=st.sampled_from([0.01, 0.2, 1.0]),
    noise=st.floats(1.0, 5),
    steps=st.integers(1, 150),
    more=st.integers(1, 50),
)
def test_more_steps_less_noise_and_a_smaller_delta_never_cost_less(
    rate: float, noise: float, steps: int, more: int
) -> None:
    found = epsilon([GaussianSteps(rate, noise, steps)], 1e-5)
    assert epsilon([GaussianSteps(rate, noise, steps + more)], 1e-5) >= found - 2e-3
    assert epsilon([GaussianSteps(rate, noise * 0.9, steps)], 1e-5) >= found - 2e-3
    assert epsilon([GaussianSteps(rate, noise, steps)], 1e-7) >= found - 2e-3
    assert epsilon([GaussianSteps(rate, noise, steps), GaussianSteps(0.1, 3.5, more)], 1e-5) > found


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


@settings(max_examples=3)
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


@pytest.mark.slow
def test_bisection_tries_the_same_numbers_on_every_machine() -> None:
    for target, rate, steps in ((8.0, 0.04, 54), (1.0, 0.25, 3), (3.0, 0.01, 1000)):
        found = calibrate(epsilon=target, delta=1e-5, sampling_rate=rate, steps=steps)
        # A power of two, halved ten times at most within its bracket.
        assert (math.frexp(found)[0] * 2**12).is_integer(), found


@pytest.mark.slow
def test_a_target_far_beyond_any_guess_is_calibrated_all_the_same() -> None:
    found = calibrate(epsilon=1e6, delta=1e-5, sampling_rate=0.5, steps=2)
    assert epsilon([GaussianSteps(0.5, found, 2)], 1e-5) < math.inf


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(InvalidInput, match="epsilon must be reachable"):
        calibrate(epsilon=1e-9, delta=1e-12, sampling_rate=1.0, steps=10)


def test_a_hopeless_target_is_refused_before_many_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def figure(_: object, __: float, grid: float) -> float:
        asked.append(grid)
        return 0.1

    monkeypatch.setattr(accounting, "_on_grid", figure)
    with pytest.raises(InvalidInput, match=r"privacy\.epsilon must be reachable"):
        calibrate(epsilon=1e-9, delta=1e-5, sampling_rate=1.0, steps=9_999_999)
    assert 0 < len(asked) < 4


@pytest.mark.slow
def test_a_target_is_met_when_reached_exactly_and_missed_by_a_hair() -> None:
    target = {"delta": 1e-5, "sampling_rate": 0.02, "steps": 150}
    noise = calibrate(epsilon=1.0, delta=1e-5, sampling_rate=0.02, steps=150)
    cost = epsilon([GaussianSteps(0.02, noise, 150)], 1e-5)
    assert calibrate(epsilon=cost, **target) == noise
    # Within the last refinement's gain of the target, and still above it.
    less = cost - 1e-6
    more = calibrate(epsilon=less, **target)
    assert epsilon([GaussianSteps(0.02, more, 150)], 1e-5) <= less


@pytest.mark.slow
def test_a_target_is_calibrated_on_as_fine_a_grid_as_it_is_reported() -> None:
    # On a grid of 1e-3 this noise costs more than 1.96, and no noise so low would do.
    noise = calibrate(epsilon=1.9, delta=1e-6, sampling_rate=0.001, steps=100_000)
    assert noise < 1.0
    assert 1.885 < epsilon([GaussianSteps(0.001, noise, 100_000)], 1e-6) <= 1.9


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
