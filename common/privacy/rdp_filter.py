"""A cap over a lifetime of jobs that may be chosen after looking at earlier results.

Composition of privacy loss distributions is stated for mechanisms that were fixed beforehand. Renyi
differential privacy of one fixed order adds up whatever is chosen along the way, as long as the sum
stays within a budget fixed beforehand: Feldman and Zrnic (2021), https://arxiv.org/abs/2008.11193,
Theorem 3.1; Lecuyer (2021), https://arxiv.org/abs/2103.01379. So the order is chosen once, when a
ledger is made, and stays.

Delta is a lifetime's budget as well. The filter promises (``max_epsilon``, ``delta``) for all that
it allowed, together; a job's own (epsilon, delta) is a statement about that job alone, and nothing
adds those deltas up.

Not covered: which job an event belongs to; figures to report (accounting.py, which is lower).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import dp_accounting as dpa
import numpy as np
from dp_accounting import rdp
from numpy.typing import NDArray

from common.errors import AccountingInDoubt, InvalidInput
from common.privacy.event import MOST_STEPS, GaussianSteps, merged, usable_delta

# A step's, for sums in floating point and series that end at e^-30. (Those of fractional orders are
# added up without their signs by dp-accounting: up to 2 % too high, on the safe side.)
_ROUNDING = 1e-12
# What the order is chosen for: a life of a few jobs. Others pay some per cent more noise.
_REFERENCE_RATE, _REFERENCE_STEPS = 0.01, 2000
_ORDERS = np.array([*(tenth / 10 for tenth in range(11, 110)), *range(11, 64), *range(64, 513, 32)])


@dataclass(frozen=True, slots=True)
class RdpFilter:
    """Allow what keeps the sum of Renyi divergences of one order within a budget.

    Attributes:
        order: alpha > 1.01, fixed when the ledger is made.
        max_epsilon: the lifetime's cap.
        delta: the lifetime's delta, with the noise generator's share still in it.

    Raises:
        InvalidInput: a parameter outside its range, or a cap that leaves no budget.
    """

    order: float
    max_epsilon: float
    delta: float

    def __post_init__(self) -> None:
        _require_cap(self.max_epsilon, self.delta)
        if not 1.01 < self.order <= 1024:
            raise InvalidInput(f"order must be in (1.01, 1024], got {self.order}")
        if not self.budget > 0:
            raise InvalidInput(
                f"epsilon must be more than the {self.max_epsilon - self.budget:.4g} that order "
                f"{self.order:g} takes for delta {self.delta:g}, got {self.max_epsilon}"
            )

    @classmethod
    def for_cap(cls, epsilon: float, delta: float) -> Self:
        """The filter of the order at which 2,000 steps at rate 0.01 need the least noise.

        Raises:
            InvalidInput: a parameter outside its range, or a cap that no order reaches.

        >>> RdpFilter.for_cap(3.0, 1e-5).name
        'rdp-filter order 6.6'
        """
        _require_cap(epsilon, delta)
        return cls(_best_order(epsilon, delta), epsilon, delta)

    @property
    def name(self) -> str:
        """As in the ledger and in every statement."""
        return f"rdp-filter order {self.order:g}"

    @property
    def budget(self) -> float:
        """The Renyi divergence at ``order`` that makes (``max_epsilon``, ``delta``).

        Canonne, Kamath and Steinke (2020), https://arxiv.org/abs/2004.00010, Proposition 12.
        """
        return float(_budgets(np.array([self.order]), self.max_epsilon, self.delta)[0])

    def covers(self, job_sha256: str) -> bool:
        """Whether a job may draw on this cap: any may."""
        return True

    def cost(self, event: GaussianSteps) -> float:
        """The Renyi divergence of ``event`` at ``order``: Mironov et al. (2019), 1908.10530.

        Raises:
            InvalidInput: a parameter outside its range.
            AccountingInDoubt: the series did not give a number.
        """
        return self.spent([event])

    def spent(self, events: Iterable[GaussianSteps]) -> float:
        """The Renyi divergence of all ``events`` together; infinity where a step had no noise."""
        return math.fsum(
            event.steps * _step_cost(self.order, event.sampling_rate, event.noise_multiplier)
            for event in merged(events)
        )

    def epsilon(self, events: Iterable[GaussianSteps]) -> float:
        """What ``events`` cost by this filter; at most ``max_epsilon`` exactly where allowed."""
        spent = self.spent(events)
        if spent == 0:
            return 0.0
        return max(0.0, self.max_epsilon - self.budget + spent)

    def allows(self, events: Iterable[GaussianSteps]) -> bool:
        """Whether ``events``, all of a lifetime with those to come, stay within the cap."""
        return self.spent(events) <= self.budget

    def after(self, events: Iterable[GaussianSteps]) -> Self:
        """What is left of the budget once ``events`` are paid for, as a filter of its own.

        Raises:
            InvalidInput: nothing is left.
        """
        spent = self.spent(events)
        if not spent < self.budget:
            raise InvalidInput(f"spent must be less than the cap's {self.budget:g}, got {spent:g}")
        return type(self)(self.order, self.max_epsilon - spent, self.delta)


def rdp_bound(spent: Iterable[GaussianSteps], delta: float) -> float:
    """A rough upper bound on epsilon, in milliseconds whatever the parameters.

    >>> 2.1 < rdp_bound([GaussianSteps(0.01, 1.0, 1000)], 1e-5) < 2.3
    True
    """
    orders = np.array([1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
    total = np.zeros_like(orders)
    for event in spent:
        total += event.steps * _divergences(orders, event.sampling_rate, event.noise_multiplier)
    return float(np.min(total - _budgets(orders, 0.0, delta, steps=0)))


def _require_cap(epsilon: float, delta: float) -> None:
    if not 0 < epsilon < math.inf:
        raise InvalidInput(f"epsilon must be in (0, inf), got {epsilon}")
    usable_delta(delta, MOST_STEPS)


def _budgets(
    orders: NDArray[np.float64], epsilon: float, delta: float, steps: int = MOST_STEPS
) -> NDArray[np.float64]:
    """Divergences, (orders,), that make (epsilon, delta) when the noise generator had its share."""
    log_delta = math.log(usable_delta(delta, steps))
    budgets: NDArray[np.float64] = (
        epsilon - np.log1p(-1 / orders) + (log_delta + np.log(orders)) / (orders - 1)
    )
    return budgets


@lru_cache(maxsize=1024)
def _step_cost(order: float, sampling_rate: float, noise_multiplier: float) -> float:
    cost = float(_divergences(np.array([order]), sampling_rate, noise_multiplier)[0])
    if math.isinf(cost):
        # Below order 2 the series may not converge; a divergence never falls as the order grows.
        cost = float(_divergences(np.array([math.ceil(order)]), sampling_rate, noise_multiplier)[0])
    if math.isnan(cost):
        raise AccountingInDoubt(
            f"renyi divergence of order {order:g} must be a number, got none at rate "
            f"{sampling_rate} and noise {noise_multiplier}"
        )
    return cost


def _divergences(
    orders: NDArray[np.float64], sampling_rate: float, noise_multiplier: float
) -> NDArray[np.float64]:
    """Of one step, (orders,)."""
    accountant = rdp.RdpAccountant(orders)
    accountant.compose(
        dpa.PoissonSampledDpEvent(sampling_rate, dpa.GaussianDpEvent(noise_multiplier))
    )
    divergences: NDArray[np.float64] = np.maximum(accountant.rdp, 0) + _ROUNDING
    return divergences


@lru_cache(maxsize=16)
def _best_order(epsilon: float, delta: float) -> float:
    budgets = _budgets(_ORDERS, epsilon, delta)
    orders, budgets = _ORDERS[budgets > 0], budgets[budgets > 0]
    if not orders.size:
        raise InvalidInput(f"epsilon must be reachable at delta {delta:g}, got {epsilon}")

    def left(noise_multiplier: float) -> NDArray[np.float64]:
        costs = _divergences(orders, _REFERENCE_RATE, noise_multiplier)
        return budgets - _REFERENCE_STEPS * costs

    low, high = 0.1, 1.0
    while left(high).max() < 0:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        rest = left(middle)
        if rest.max() < 0:
            low = middle
            continue
        high = middle
        # Less noise costs more at every order, so what does not fit here does not fit below.
        orders, budgets = orders[rest >= 0], budgets[rest >= 0]
    return float(orders[np.argmax(left(high))])
