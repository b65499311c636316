"""What a person with several records is promised by a mechanism whose unit is one record.

Two answers. ``epsilon`` analyses the mechanism itself: under Poisson sampling a person's ``k``
records enter a step independently, so the sum moves by up to Binomial(k, rate) clip norms, and that
mixture of Gaussians has a privacy loss distribution of its own (Ganesh 2024,
https://arxiv.org/abs/2401.10294, tight when every step is released). ``conservative`` knows only
(epsilon, delta) and holds for every mechanism; it is the check on the first.

Not covered: a person whose records are partly added and partly removed; a person known to several
sites.
"""

import math
from functools import lru_cache

from dp_accounting import pld
from scipy.stats import binom

from common.errors import InvalidInput
from common.privacy.event import GaussianSteps, merged, usable_delta

# Coarse grids err upwards only. The mixture's cost grows with its losses over the grid, and it is
# large losses for which a coarse grid is enough.
_GRIDS = tuple(0.2 / 2**halvings for halvings in range(8))
CONVERGED = 0.005  # of the figure

# Above this, an observer's even odds may become 22,000 to 1: a bound, but no protection.
MEANINGFUL_EPSILON = 10.0


def conservative(*, epsilon: float, delta: float, records: int) -> tuple[float, float]:
    """The (epsilon, delta) that any (``epsilon``, ``delta``)-DP mechanism promises ``records``.

    Group privacy by the chain of neighbours: epsilon adds up, and delta grows by
    ``1 + e^epsilon + ... + e^((records - 1) epsilon)``. Vadhan (2017), The Complexity of
    Differential Privacy, Lemma 2.2, with the sum kept where the lemma rounds it up to
    ``records e^(records epsilon)``.

    Returns:
        ``(records * epsilon, delta')``; a delta' of 1 or more promises nothing at all.

    Raises:
        InvalidInput: a parameter outside its range.

    >>> conservative(epsilon=0.0, delta=1e-6, records=12)
    (0.0, 1.2e-05)
    """
    if not 0 <= epsilon < math.inf:
        raise InvalidInput(f"epsilon must be finite and at least 0, got {epsilon}")
    _check(delta, records)
    if epsilon == 0:
        return 0.0, records * delta
    try:
        growth = math.expm1(records * epsilon) / math.expm1(epsilon)
    except OverflowError:
        growth = math.inf
    return records * epsilon, delta * growth


@lru_cache(maxsize=128)
def epsilon(
    steps: GaussianSteps, delta: float, records: int, beside: tuple[GaussianSteps, ...] = ()
) -> float:
    """The epsilon that ``steps`` promise a person with ``records`` records, at the same ``delta``.

    Args:
        steps: of training.
        delta: in (0, 1).
        records: of the person.
        beside: what else is released, at rate 1, such as counts: it moves by as many sensitivities.

    Returns:
        An upper bound; 0 for no steps, infinity where a step had no noise. The grid is halved until
        that changes the figure by less than ``CONVERGED`` of it.

    Raises:
        InvalidInput: a parameter outside its range.

    >>> round(epsilon(GaussianSteps(0.01, 1.0, 1000), 1e-5, records=12))
    36
    """
    _check(delta, records)
    released = merged([steps, *beside])
    usable = usable_delta(delta, sum(event.steps for event in released))
    if not released:
        return 0.0
    if any(event.noise_multiplier == 0 for event in released):
        return math.inf
    figure = math.inf
    for grid in _GRIDS:
        before, figure = figure, min(figure, _on_grid(released, usable, records, grid))
        if before - figure < CONVERGED * figure:
            break
    return figure


def _on_grid(released: tuple[GaussianSteps, ...], delta: float, records: int, grid: float) -> float:
    first, *others = (_loss(event, records, grid) for event in released)
    for other in others:
        first = first.compose(other)
    return float(first.get_epsilon_for_delta(delta))


def _loss(
    steps: GaussianSteps, records: int, grid: float
) -> pld.privacy_loss_distribution.PrivacyLossDistribution:
    if steps.sampling_rate == 1:
        shifts, weights = [float(records)], [1.0]
    else:
        shifts = [float(count) for count in range(records + 1)]
        weights = [float(w) for w in binom.pmf(range(records + 1), records, steps.sampling_rate)]
    loss = pld.privacy_loss_distribution.from_mixture_gaussian_mechanism(
        steps.noise_multiplier, shifts, weights, value_discretization_interval=grid
    )
    return loss.self_compose(steps.steps)


def _check(delta: float, records: int) -> None:
    if not 0 < delta < 1:
        raise InvalidInput(f"delta must be in (0, 1), got {delta}")
    if not 1 <= records <= 1000:
        raise InvalidInput(f"records must be 1 to 1000, got {records}")
