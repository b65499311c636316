"""What was executed, in the terms that every accountant takes.

Unit: one unit of the job. Neighbours: add or remove one. Sampler: Poisson at a public rate, for
which alone the amplification holds.

Not covered: shuffled or fixed-size batches; noise that is not Gaussian.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from common.errors import InvalidInput

# Of one account's whole life; what an accountant adds a step for rounding stays negligible.
MOST_STEPS = 2**24


@dataclass(frozen=True, slots=True, order=True)
class GaussianSteps:
    """``steps`` releases of a Poisson-subsampled Gaussian mechanism.

    Only what was executed or charged counts: a job that stopped early is reported by the steps that
    it was charged for, and the reason for stopping never lowers the report.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int


def merged(events: Iterable[GaussianSteps]) -> tuple[GaussianSteps, ...]:
    """``events`` in ascending order, equal mechanisms added up, those without steps left out.

    Raises:
        InvalidInput: a parameter outside its range.

    >>> merged([GaussianSteps(0.2, 1.5, 3), GaussianSteps(0.1, 2.0, 0), GaussianSteps(0.2, 1.5, 4)])
    (GaussianSteps(sampling_rate=0.2, noise_multiplier=1.5, steps=7),)
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        _require_mechanism(event)
        key = (event.sampling_rate, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.steps
    if sum(steps.values()) > MOST_STEPS:
        raise InvalidInput(f"steps must be at most {MOST_STEPS}, got {sum(steps.values())}")
    return tuple(GaussianSteps(*key, number) for key, number in sorted(steps.items()) if number)


def _require_mechanism(event: GaussianSteps) -> None:
    if event.steps < 0:
        raise InvalidInput(f"steps must be at least 0, got {event.steps}")
    if not 0 < event.sampling_rate <= 1:
        raise InvalidInput(f"sampling_rate must be in (0, 1], got {event.sampling_rate}")
    if not 0 <= event.noise_multiplier < math.inf:
        raise InvalidInput(
            f"noise_multiplier must be finite and at least 0, got {event.noise_multiplier}"
        )


def noise_slack(steps: int) -> float:
    """What the site's noise generator may add to delta over ``steps`` steps.

    The generator draws ``round(N(0, s^2))`` to within a total variation distance of 2^-128 a
    coordinate. Against neighbours whose own noise is off by as much, P coordinates cost at most
    ``(1 + e^epsilon) P 2^-128`` of delta a step, and steps add up (Dwork and Roth 2014, Lemma
    3.17). This counts ``2^-64`` a step, which is more for 2^40 coordinates up to epsilon 16.
    Not covered: epsilons far above that, which protect nobody.

    >>> noise_slack(2**24) == 2.0**-40
    True
    """
    return steps * 2.0**-64


def usable_delta(delta: float, steps: int) -> float:
    """What is left of ``delta`` for the mechanism when the noise generator has had its share.

    Raises:
        InvalidInput: ``delta`` is outside (0, 1), or nothing is left.
    """
    if not 0 < delta < 1:
        raise InvalidInput(f"delta must be in (0, 1), got {delta}")
    if delta <= noise_slack(steps):
        raise InvalidInput(
            f"delta must be more than the {noise_slack(steps):g} that the noise generator takes "
            f"over {steps} steps, got {delta}"
        )
    return delta - noise_slack(steps)
