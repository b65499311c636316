"""What right guesses about canaries in one run of training say against a claim.

Each of m canaries was put in or left out by a fair coin; whoever saw all releases guesses some of
the coins. The more guesses are right, the more privacy must have been lost.

Sources: Steinke, Nasr and Jagielski (2023), https://arxiv.org/abs/2305.08846, Theorem 5.2, for any
(epsilon, delta) claim; Mahloujifar, Melis and Chaudhuri (2024), https://arxiv.org/abs/2410.22235,
Algorithm 3, here for the Gaussian trade-off curve through the claim.

Not covered: an epsilon is never measured; what is found is the least that the guesses allow.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from common.audit.gaussian import gaussian_epsilon
from common.errors import InvalidInput
from common.privacy.event import GaussianSteps

_MOST_EPSILON = 60.0
_MOST_MU = 30.0
_ROOM = 1.25  # of the claim: so far should a run be able to see
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # of the canaries, guessed


def chance_of(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most so likely are ``right`` right guesses or more, were the claim true.

    Raises:
        InvalidInput: numbers that do not fit each other.
    """
    _require_counts(canaries, guesses, right)
    accuracy = expit(epsilon)
    tail = float(binom.sf(right - 1, guesses, accuracy))
    if delta == 0 or right == 0:
        return tail
    fewer = np.arange(1, right + 1)
    gained = binom.sf(right - fewer - 1, guesses, accuracy) - tail
    return min(1.0, tail + 2 * canaries * delta * max(0.0, float(np.max(gained / fewer))))


def general_bound(
    canaries: int, guesses: int, right: int, delta: float, significance: float
) -> float:
    """The greatest epsilon that the guesses refute at ``delta``, by Steinke et al.; 0 for none.

    Args:
        canaries: m, all that were tossed for.
        guesses: how many of them were guessed.
        right: how many guesses were right.
        delta: of the claim.
        significance: how often a true claim may be refuted.
    """

    def excess(epsilon: float) -> float:
        return chance_of(canaries, guesses, right, epsilon, delta) - significance

    if excess(0.0) > 0:
        return 0.0
    return float(brentq(excess, 0.0, _MOST_EPSILON, xtol=1e-6))


def refutes_mu(canaries: int, guesses: int, right: int, mu: float, significance: float) -> bool:
    """Whether mu-GDP makes ``right`` right guesses less likely than ``significance``."""
    _require_counts(canaries, guesses, right)
    hits = significance * right / canaries
    misses = significance * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        before, misses = misses, max(misses, float(ndtr(ndtri(hits) - mu)))
        if misses == before:  # and stays so
            break
        hits = min(1.0, hits + i / (guesses - i) * (misses - before))
    return hits + misses > guesses / canaries


def gaussian_bound(
    canaries: int, guesses: int, right: int, delta: float, significance: float
) -> float:
    """The same by Mahloujifar et al., for claims whose trade-off curve is a Gaussian's."""
    if not refutes_mu(canaries, guesses, right, 0.0, significance):
        return 0.0
    low, high = 0.0, _MOST_MU
    while high - low > 1e-6:
        middle = (low + high) / 2
        if refutes_mu(canaries, guesses, right, middle, significance):
            low = middle
        else:
            high = middle
    return gaussian_epsilon(low, delta)


def ideal_right(canaries: int, guesses: int, event: GaussianSteps) -> int:
    """How many of ``guesses`` are right on average, were the mechanism what it claims to be.

    An ideal canary adds one clip norm of its own coordinate to every step that samples it, so its
    score is Binomial(T, q) + N(0, T sigma^2) if it was put in and N(0, T sigma^2) if not. The
    ``guesses / 2`` highest scores are guessed to be in, as many of the lowest to be out.
    """
    taken = np.arange(event.steps + 1)
    weights = binom.pmf(taken, event.steps, event.sampling_rate)
    spread = max(event.noise_multiplier * math.sqrt(event.steps), 1e-9)
    share = guesses / canaries / 2

    def above(threshold: float, *, is_in: bool) -> float:
        if is_in:
            return float((weights * ndtr((taken - threshold) / spread)).sum())
        return float(ndtr(-threshold / spread))

    def quantile(upper: float) -> float:
        def excess(t: float) -> float:
            return (above(t, is_in=True) + above(t, is_in=False)) / 2 - upper

        return float(brentq(excess, -40 * spread, event.steps + 40 * spread))

    high, low = quantile(share), quantile(1 - share)
    right = above(high, is_in=True) + 1 - above(low, is_in=False)
    return min(guesses, int(canaries / 2 * right))


def best_guesses(
    canaries: int, event: GaussianSteps, delta: float, significance: float, claim: float = 0.0
) -> int:
    """How many guesses show most on ideal canaries; it depends on public numbers alone.

    Of those that could refute ``claim`` with room to spare, if any could.
    """
    tried = sorted({max(2, int(canaries * share) // 2 * 2) for share in _SHARES})

    def shown(guesses: int) -> tuple[float, float]:
        right = ideal_right(canaries, guesses, event)
        bound = max(
            general_bound(canaries, guesses, right, delta, significance),
            gaussian_bound(canaries, guesses, right, delta, significance),
        )
        return bound, (2 * right - guesses) / math.sqrt(guesses)  # else: furthest from chance

    able = [k for k in tried if ceiling(canaries, k, delta, significance) > _ROOM * claim]
    return max(able or tried, key=shown)


def ceiling(canaries: int, guesses: int, delta: float, significance: float) -> float:
    """The most that these guesses can refute, all of them right."""
    numbers = (canaries, guesses, guesses, delta, significance)
    return max(general_bound(*numbers), gaussian_bound(*numbers))


def _require_counts(canaries: int, guesses: int, right: int) -> None:
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise InvalidInput(
            "right, guesses and canaries must be such that 0 <= right <= guesses <= canaries, "
            f"got {right}, {guesses}, {canaries}"
        )
