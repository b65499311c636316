"""Gaussian differential privacy: one number, mu, for a whole trade-off curve.

A mechanism is mu-GDP when telling two neighbours apart by it is at least as hard as telling N(0, 1)
from N(mu, 1). Source: Dong, Roth and Su (2019), https://arxiv.org/abs/1905.02383, Corollary 2.13.

Not covered: mechanisms that no single Gaussian describes; for those of DP-SGD it is a close one.
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import beta

from common.errors import InvalidInput

_MOST_MU = 1e3
_LEAST_MU = 1e-9


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The delta of a mu-GDP mechanism at ``epsilon``.

    >>> round(gaussian_delta(4.38, 1.0), 7)
    1e-05
    """
    if mu <= 0:
        return 0.0
    far = math.exp(min(0.0, epsilon + float(log_ndtr(-epsilon / mu - mu / 2))))
    return max(0.0, float(ndtr(-epsilon / mu + mu / 2)) - far)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of a mu-GDP mechanism at ``delta``; 0 for mu <= 0.

    Raises:
        InvalidInput: delta outside (0, 1).
    """
    _require_delta(delta)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = mu * mu / 2 + 40.0 * mu + 1.0
    return float(brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, high, xtol=1e-9))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose GDP costs exactly ``epsilon`` at ``delta``.

    Raises:
        InvalidInput: delta outside (0, 1), or a negative epsilon.
    """
    _require_delta(delta)
    if epsilon < 0:
        raise InvalidInput(f"epsilon must be at least 0, got {epsilon}")
    return float(
        brentq(lambda mu: gaussian_delta(epsilon, mu) - delta, _LEAST_MU, _MOST_MU, xtol=1e-9)
    )


def least_mu(false_positives: float, false_negatives: float) -> float:
    """The mu below which no test has both error rates; minus infinity where one is 1.

    >>> round(least_mu(0.3, 0.3), 4)
    1.0488
    """
    return float(ndtri(1 - false_positives) - ndtri(false_negatives))


def most(successes: int, trials: int, level: float) -> float:
    """Clopper and Pearson's (1934) upper bound of a probability, wrong in ``level`` of the cases.

    >>> round(most(0, 100, 0.05), 4)
    0.0295
    """
    return 1.0 if successes >= trials else float(beta.isf(level, successes + 1, trials - successes))


def interval(successes: int, trials: int, level: float = 0.05) -> tuple[float, float]:
    """Clopper and Pearson's interval of a probability, wrong in ``level`` of the cases.

    >>> [round(end, 4) for end in interval(3, 10)]
    [0.0667, 0.6525]
    """
    return 1 - most(trials - successes, trials, level / 2), most(successes, trials, level / 2)


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InvalidInput(f"delta must be in (0, 1), got {delta}")
