"""What a run of DP-SGD costs: epsilon from executed steps, noise from a target.

Accountant: privacy loss distributions, connect-the-dots discretisation (Doroshenko et al. 2022,
https://arxiv.org/abs/2207.04380), by dp-accounting. Every grid gives an upper bound, and the grid
is refined until the figure stands still, so what is reported is never too low and rarely 0.002 too
high. Delta is shared with the noise generator, which takes its part first (``noise_slack``).

Early stopping never lowers a report: whoever asks passes what was executed or charged, and a plan
that was cut short is counted to where it was cut.

Not covered: shuffled or fixed-size batches; noise that is not Gaussian; jobs chosen after looking
at earlier results, which need a lifetime cap (rdp_filter.py, lifetime.py).
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

from absl import logging as absl_logging
from dp_accounting import pld
from scipy.optimize import brentq
from scipy.stats import norm

from common.errors import InvalidInput
from common.privacy.event import GaussianSteps, merged, noise_slack, usable_delta
from common.privacy.rdp_filter import RdpFilter, rdp_bound

__all__ = ["GaussianSteps", "calibrate", "epsilon", "noise_slack"]

# The accountant warns, through absl's own handler, of numerics that a user can do nothing about.
absl_logging.set_verbosity(absl_logging.ERROR)

GRID = 1e-3  # the coarsest that is reported
_COARSE = 1e-2  # a cheap first look, useless when rounding adds up over many steps
_COARSE_STEPS = 10_000
_FEW_STEPS = 1000  # for which it is nearly exact
_HALVINGS = 7
CONVERGED = 0.002
# Above these a figure protects nobody, and costs seconds to refine or gigabytes to compute.
_NOT_REFINED = 100.0
_NOT_COMPUTED = 1000.0
_HIGHEST_NOISE = 2.0**19
_LOG_MU = (math.log(1e-12), math.log(1e3))


def epsilon(events: Iterable[GaussianSteps], delta: float) -> float:
    """The epsilon of all ``events`` together at ``delta``.

    Args:
        events: what was executed; the order does not matter.
        delta: in (0, 1).

    Returns:
        An upper bound on the finest grid reached; 0 for no steps, infinity where a step had no
        noise or Renyi accounting bounds the whole by more than 1000.

    Raises:
        InvalidInput: a parameter outside its range.

    >>> round(epsilon([GaussianSteps(0.01, 1.0, 1000)], 1e-5), 3)
    1.828
    """
    spent = merged(events)
    return _epsilon(spent, usable_delta(delta, _total(spent))) if spent else 0.0


@lru_cache(maxsize=512)
def _epsilon(spent: tuple[GaussianSteps, ...], delta: float) -> float:
    *_, finest = _figures(spent, delta)
    return finest


def _figures(spent: tuple[GaussianSteps, ...], delta: float) -> Iterator[float]:
    """Upper bounds on finer and finer grids, never rising, until they stand still."""
    if rdp_bound(spent, delta) > _NOT_COMPUTED:
        yield math.inf
        return
    figure = math.inf
    for grid in _grids(_total(spent)):
        before, figure = figure, min(figure, _on_grid(spent, delta, grid))
        yield figure
        if before - figure < CONVERGED or figure > _NOT_REFINED:
            return


def _grids(steps: int) -> Iterator[float]:
    if steps <= _COARSE_STEPS:
        yield _COARSE
    yield from (GRID / 2**halvings for halvings in range(_HALVINGS + 1))


def _on_grid(spent: tuple[GaussianSteps, ...], delta: float, grid: float) -> float:
    with warnings.catch_warnings():  # of exponentials that overflow to infinity, as they should
        warnings.simplefilter("ignore", RuntimeWarning)
        first, *others = (
            _one_step(event.sampling_rate, event.noise_multiplier, grid).self_compose(event.steps)
            for event in spent
        )
        for other in others:
            first = first.compose(other)
        return float(first.get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _one_step(
    sampling_rate: float, noise_multiplier: float, grid: float
) -> pld.privacy_loss_distribution.PrivacyLossDistribution:
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=grid, sampling_prob=sampling_rate
    )


@lru_cache(maxsize=512)
def calibrate(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    rdp_filter: RdpFilter | None = None,
    beside: tuple[GaussianSteps, ...] = (),
) -> float:
    """The least noise multiplier whose ``steps`` cost at most ``epsilon`` at ``delta``.

    Args:
        epsilon: the target by ``epsilon``, the figure that is reported.
        delta: in (0, 1), with the noise generator's share still in it.
        sampling_rate: in (0, 1].
        steps: of the whole job.
        rdp_filter: what is left of a lifetime's budget (``RdpFilter.after``), which the job must
            fit as well; Renyi accounting is 8 to 18 % above, so near the cap this asks for more.
        beside: what is released beside the steps and paid from the same target.

    Returns:
        A multiplier that keeps the promise, at most 0.1 % above the least.

    Raises:
        InvalidInput: a parameter outside its range, or a target that no noise reaches.

    >>> 1.03 < calibrate(epsilon=3.0, delta=1e-5, sampling_rate=0.01, steps=3000) < 1.04
    True
    """
    if not 0 < epsilon < math.inf:
        raise InvalidInput(f"epsilon must be in (0, inf), got {epsilon}")
    if steps < 1:
        raise InvalidInput(f"steps must be at least 1, got {steps}")
    usable = usable_delta(delta, steps + _total(beside))

    def keeps_promise(noise_multiplier: float, *, is_glance: bool = False) -> bool:
        spent = merged([GaussianSteps(sampling_rate, noise_multiplier, steps), *beside])
        if rdp_filter is not None and not rdp_filter.allows(spent):
            return False
        if is_glance:
            return next(_figures(spent, usable)) <= epsilon
        return _costs_at_most(epsilon, spent, usable)

    keeps, glance = _monotone(keeps_promise), partial(keeps_promise, is_glance=True)
    high = min(_HIGHEST_NOISE, _power_near(epsilon, usable, sampling_rate, steps))
    while not keeps(high):
        high = 2 * high
        if high > _HIGHEST_NOISE:
            raise InvalidInput(
                f"privacy.epsilon must be reachable within {steps} steps at rate "
                f"{sampling_rate}, got {epsilon}"
            )
    if steps <= _FEW_STEPS and glance(high):
        for end in reversed(_bracket(glance, high)):
            keeps(end)  # most often all that is to be asked
    return _bracket(keeps, high)[1]


def _monotone(holds: Callable[[float], bool]) -> Callable[[float], bool]:
    """``holds``, not asked what follows from its answers: more noise keeps what less does."""
    too_little, enough = 0.0, math.inf

    def answer(noise_multiplier: float) -> bool:
        nonlocal too_little, enough
        if too_little < noise_multiplier < enough:
            if holds(noise_multiplier):
                enough = noise_multiplier
            else:
                too_little = noise_multiplier
        return noise_multiplier >= enough

    return answer


def _bracket(holds: Callable[[float], bool], high: float) -> tuple[float, float]:
    """Two numbers, 0.1 % apart at most, the higher of which ``holds``: by bisection."""
    while holds(high / 2):
        high = high / 2
    low = high / 2
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high


def _power_near(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The power of two above a first guess at the noise.

    From a power of two, bisection tries the same numbers on every machine, however the guess is
    rounded. The guess takes all steps for one Gaussian mechanism, by the central limit theorem of
    Bu et al. (2020), https://arxiv.org/abs/1911.11607; a wrong one costs time alone.
    """

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        far = float(norm.logcdf(-epsilon / mu - mu / 2))
        return float(norm.cdf(-epsilon / mu + mu / 2)) - math.exp(min(0.0, epsilon + far)) - delta

    mu = math.exp(brentq(excess, *_LOG_MU)) if excess(_LOG_MU[1]) > 0 > excess(_LOG_MU[0]) else 1.0
    guess = 1 / math.sqrt(math.log1p((mu / sampling_rate) ** 2 / steps))
    return float(2.0 ** math.ceil(math.log2(guess)))


def _costs_at_most(target: float, spent: tuple[GaussianSteps, ...], delta: float) -> bool:
    """Whether ``target`` is kept, on no finer a grid than that takes."""
    before = math.inf
    for figure in _figures(spent, delta):
        if figure <= target:
            return True
        # A refinement gains less than the one before it, so this can not be made up for any more.
        if figure - (before - figure) > target:
            return False
        before = figure
    return False


def _total(spent: Iterable[GaussianSteps]) -> int:
    return sum(event.steps for event in spent)
