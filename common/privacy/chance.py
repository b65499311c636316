"""How far a sound mechanism's statistics may stray, and what has strayed further.

Every test is exact or bounded from above by Chernoff's inequality, for any number of draws: none
relies on a normal approximation. A test refuses what is sound with probability ``FALSE_ALARM`` at
most, shared by all comparisons that it makes (Bonferroni). A self-check makes fewer than sixteen
tests, so that sound mechanisms are refused less than once in ten million runs.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom, chi2, norm

from common.errors import SelfCheckFailed

FALSE_ALARM = 5e-9

Floats = NDArray[np.float64]

_STEPS = 200  # of the grid on which a Chernoff bound is minimised; a coarse one is only looser


def require_variance(
    what: str, squares: Floats | float, degrees: float, comparisons: int = 1
) -> None:
    """Sums of ``degrees`` squares of standard normals are as a chi-square of them is.

    Raises:
        SelfCheckFailed: one of ``squares`` is not, as one of ``comparisons``.
    """
    level = FALSE_ALARM / comparisons / 2
    low, high = chi2.ppf(level, degrees), chi2.isf(level, degrees)
    least, most = float(np.min(squares)), float(np.max(squares))
    if not low <= least <= most <= high:
        found = least if not low <= least else most
        raise SelfCheckFailed(
            f"{what} must be in [{low / degrees:.3f}, {high / degrees:.3f}], "
            f"got {found / degrees:.3f}"
        )


def require_normal(what: str, values: Floats) -> None:
    """Standard normal ``values`` are no larger than as many of them get.

    Raises:
        SelfCheckFailed: one is.
    """
    most, found = norm.isf(FALSE_ALARM / values.size / 2), float(np.abs(values).max())
    if not found <= most:
        raise SelfCheckFailed(f"{what} must be at most {most:.1f} deviations, got {found:.1f}")


def require_few(what: str, found: int, trials: int, chance: float) -> None:
    """No more than binomial coins of at most ``chance`` give.

    Raises:
        SelfCheckFailed: more were found.
    """
    if found > binom.isf(FALSE_ALARM, trials, chance):
        raise SelfCheckFailed(f"{what}, got {found} without")


def require_rate(what: str, found: int, trials: int, rate: float, comparisons: int = 1) -> None:
    """``found`` of ``trials`` is what coins of ``rate`` give.

    Raises:
        SelfCheckFailed: it is not.
    """
    level = FALSE_ALARM / comparisons / 2
    low, high = binom.ppf(level, trials, rate), binom.isf(level, trials, rate)
    if not low <= found <= high:
        raise SelfCheckFailed(f"{what} must be {rate:g}, got {found / trials:g}")


def require_coins(what: str, counts: NDArray[np.int64], trials: int, rate: float) -> None:
    """Independent ``counts`` of ``trials`` coins spread about their mean as such counts do.

    Raises:
        SelfCheckFailed: they spread more, or less.
    """
    # Larger counts than this are as good as never seen, and would dominate the upper bound.
    most = int(binom.isf(FALSE_ALARM / 4 / counts.size, trials, rate))
    values = np.arange(most + 1)
    variance = trials * rate * (1 - rate)
    logs = binom.logpmf(values, trials, rate)
    squares = (values - trials * rate) ** 2 / variance  # mean 1

    def log_mgf(factors: Floats) -> Floats:
        exponents = logs + factors[:, None] * squares
        return counts.size * np.asarray(logsumexp(exponents, axis=1))

    high = least_bound(log_mgf, FALSE_ALARM / 4)
    low = -least_bound(lambda factors: log_mgf(-factors), FALSE_ALARM / 4)
    found = float(((counts - trials * rate) ** 2).sum() / variance)
    if not low <= found <= high:
        raise SelfCheckFailed(
            f"{what} must be in [{low / counts.size:.3f}, {high / counts.size:.3f}], "
            f"got {found / counts.size:.3f}"
        )


def least_bound(log_mgf: Callable[[Floats], Floats], level: float) -> float:
    """What a variable exceeds with probability ``level`` at most, by Chernoff's inequality.

    Args:
        log_mgf: the logarithm of its moment generating function, or more, at factors in (0, 1/2).
        level: probability.
    """
    factors = np.logspace(-5, math.log10(0.499), _STEPS)
    return float(np.min((log_mgf(factors) + math.log(1 / level)) / factors))


def overlap_bound(terms: int, comparisons: int) -> float:
    """How large a sum of ``terms`` products of standard normals gets by chance, either way.

    The products are of two independent vectors, or of one with itself moved along in a circle, by
    less than half of it.
    """
    level = FALSE_ALARM / comparisons / 2
    return least_bound(lambda factors: overlap_log_mgf(terms, factors), level)


def overlap_log_mgf(terms: int, factors: Floats) -> Floats:
    """At most this is the logarithm of such a sum's moment generating function.

    Of a vector with itself it is a quadratic form on cycles of L >= 3 numbers, whose eigenvalues
    are cosines: over k < L, the product of 1 - 2 f cos(2 pi k / L) is
    ((1 + root) / 2)^L (1 - r^L)^2 with r = (1 - root) / 2 f. The shortest cycles have most;
    independent vectors have less.
    """
    root = np.sqrt(1 - 4 * factors**2)
    cycles = -terms / 3 * np.log1p(-(((1 - root) / (2 * factors)) ** 3))
    return cycles - terms / 2 * np.log((1 + root) / 2)
