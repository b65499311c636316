"""What a run of DP-SGD costs: epsilon from executed steps, noise from a target.

Unit: one record. Neighbours: add or remove one. Sampler: Poisson at a public rate, for which alone
the amplification holds. Accountant: privacy loss distributions, connect-the-dots discretisation
(Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380), by dp-accounting; its grid makes every
figure an upper bound.

Not covered: shuffled or fixed-size batches; noise that is not Gaussian; parameters of later steps
chosen after looking at earlier results.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting as dpa
from absl import logging as absl_logging
from dp_accounting import pld

from common.errors import InvalidInput

# The accountant warns, through absl's own handler, of numerics that a user can do nothing about.
absl_logging.set_verbosity(absl_logging.ERROR)

GRID = 1e-3
_HIGHEST_NOISE = 1e6


@dataclass(frozen=True, slots=True)
class GaussianSteps:
    """``steps`` releases of a Poisson-subsampled Gaussian mechanism."""

    sampling_rate: float
    noise_multiplier: float
    steps: int


def epsilon(events: Iterable[GaussianSteps], delta: float) -> float:
    """The epsilon of all ``events`` together at ``delta``.

    Args:
        events: what was executed; the order does not matter.
        delta: in (0, 1).

    Returns:
        An upper bound; 0 for no steps, infinity where a step had no noise.

    Raises:
        InvalidInput: a parameter outside its range.

    >>> round(epsilon([GaussianSteps(0.01, 1.0, 1000)], 1e-5), 3)
    1.829
    """
    _check("delta", delta, 0, 1)
    merged: dict[tuple[float, float], int] = {}
    for event in events:
        if event.steps < 0:
            raise InvalidInput(f"steps must be at least 0, got {event.steps}")
        key = (event.sampling_rate, event.noise_multiplier)
        merged[key] = merged.get(key, 0) + event.steps
    spent = tuple(sorted((q, s, n) for (q, s), n in merged.items() if n))
    return _epsilon(spent, delta) if spent else 0.0


@lru_cache(maxsize=256)
def _epsilon(spent: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if any(noise_multiplier == 0 for _, noise_multiplier, _ in spent):
        return math.inf
    accountant = pld.PLDAccountant(
        dpa.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=GRID
    )
    for sampling_rate, noise_multiplier, steps in spent:
        accountant.compose(_event(sampling_rate, noise_multiplier), steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=64)
def calibrate(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise multiplier whose ``steps`` cost at most ``epsilon`` at ``delta``.

    Raises:
        InvalidInput: a parameter outside its range, or a target that no noise reaches.

    >>> 1.03 < calibrate(epsilon=3.0, delta=1e-5, sampling_rate=0.01, steps=3000) < 1.04
    True
    """
    _check("epsilon", epsilon, 0, math.inf)
    _check("delta", delta, 0, 1)
    if steps < 1:
        raise InvalidInput(f"steps must be at least 1, got {steps}")

    def cost(noise_multiplier: float) -> float:
        return _epsilon(((sampling_rate, noise_multiplier, steps),), delta)

    low, high = 0.0, 1.0
    while cost(high) > epsilon:
        low, high = high, 2 * high
        if high > _HIGHEST_NOISE:
            raise InvalidInput(
                f"privacy.epsilon must be reachable within {steps} steps at rate "
                f"{sampling_rate}, got {epsilon}"
            )
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if cost(middle) > epsilon:
            low = middle
        else:
            high = middle
    return high  # the end of the bracket that keeps the promise


def _event(sampling_rate: float, noise_multiplier: float) -> dpa.DpEvent:
    if not 0 < sampling_rate <= 1:
        raise InvalidInput(f"sampling_rate must be in (0, 1], got {sampling_rate}")
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise InvalidInput(f"noise_multiplier must be positive, got {noise_multiplier}")
    return dpa.PoissonSampledDpEvent(sampling_rate, dpa.GaussianDpEvent(noise_multiplier))


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise InvalidInput(f"{name} must be in ({low}, {high}), got {value}")
