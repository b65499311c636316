"""Refuse to train when the mechanism is not what the accountant thinks it is.

The checks run on the loaded model, before a job's first release, with public inputs: on the
mechanism that training will use and on its path from a loss to per-sample gradients. Each is a name
and a function in ``CHECKS``; a new one is a line there. Statistical ones refuse a sound mechanism
less than once in ten million runs.

Not covered: the loop around the two (client/train.py); a defect that shows only on certain records;
a hostile operating system.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, chi2
from torch import Tensor

from common.errors import SelfCheckFailed
from common.privacy.mechanism import Mechanism

FALSE_ALARM = 1e-8
ADVERSARY = 1e6  # gradient norm of the adversarial record, in clip norms
_NOISE_DRAWS = 20_000
_ROUND = -1  # it and the one below: no training rounds, so seeded streams are not touched


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked.

    Attributes:
        mechanism: as training will use it.
        size: P, the length of the flat gradient.
        gradients: (n,) loss weights -> (n, P) per-sample gradients of public examples, computed on
            the loaded model by the path that training takes.
    """

    mechanism: Mechanism
    size: int
    gradients: Callable[[Tensor], Tensor]


def check_sensitivity(subject: Subject) -> None:
    """A record whose gradient is a million clip norms long moves the sum by at most C."""
    clip_norm = subject.mechanism.clip_norm
    if clip_norm is None:
        return
    plain = subject.gradients(torch.ones(2))
    norm = float(torch.linalg.vector_norm(plain[1].double()))
    if not norm > 0:
        raise SelfCheckFailed("sensitivity: a record's gradient must be positive in norm, got 0")
    rows = subject.gradients(torch.tensor([1.0, ADVERSARY * clip_norm / norm]))
    reached = float(torch.linalg.vector_norm(rows[1].double()))
    if reached < ADVERSARY * clip_norm / 2:
        raise SelfCheckFailed(
            f"sensitivity: the adversarial gradient must reach {ADVERSARY:g} C, got "
            f"{reached / clip_norm:g} C"
        )
    # Against a neighbour that points the other way, a sum clipped as a whole would move by 2 C.
    opposed = torch.stack([-rows[1], 2 * rows[1]])
    for pair in (rows, opposed):
        moved = subject.mechanism.bounded_sum(pair) - subject.mechanism.bounded_sum(pair[:1])
        distance = float(torch.linalg.vector_norm(moved))
        if not distance <= clip_norm * (1 + 1e-9):
            raise SelfCheckFailed(
                f"sensitivity: one record must move the sum by at most C = {clip_norm:g}, "
                f"got {distance:g}"
            )


def check_noise(subject: Subject) -> None:
    """Every coordinate gets noise of the deviation accounted for, and no two draws are alike."""
    mechanism = subject.mechanism
    if mechanism.clip_norm is None:
        return
    scale = mechanism.divisor / (mechanism.noise_multiplier * mechanism.clip_norm)
    draws = max(4, -(-_NOISE_DRAWS // subject.size) + 1)
    zero = torch.zeros(subject.size, dtype=torch.float64)
    released = [mechanism.release(zero, *_place(i)).double().numpy() * scale for i in range(draws)]
    noise = np.concatenate(released)
    if not noise.all():
        raise SelfCheckFailed(
            f"noise: every coordinate must get some, got {np.count_nonzero(noise == 0)} without"
        )
    if len({draw.tobytes() for draw in released}) < draws:
        raise SelfCheckFailed("noise: every draw must be fresh, got one twice")
    _require_chi_square("noise: variance over the accounted one", float(noise @ noise), noise.size)
    for earlier, later in pairwise(released):
        overlap = float(earlier @ later) / math.sqrt(subject.size)
        # Products of independent normals have heavier tails in few coordinates.
        if abs(overlap) > 7 + 50 / math.sqrt(subject.size):
            raise SelfCheckFailed(
                f"noise: successive draws must be independent, got overlap {overlap:.1f} "
                "standard deviations"
            )


def check_sampler(subject: Subject) -> None:
    """Each unit enters each step by its own coin at the public rate.

    Batch sizes and units' counts must both spread as coins do; shuffled or fixed-size batches do
    not.
    """
    rate = subject.mechanism.sampling_rate
    units = steps = min(math.ceil(40 / rate), 4000)
    included = np.zeros((steps, units), dtype=bool)
    for step in range(steps):
        included[step, subject.mechanism.sample(units, *_place(step))] = True
    if rate == 1:
        if not included.all():
            raise SelfCheckFailed(
                "sampler: every unit must be included at rate 1, got some left out"
            )
        return
    _require_rate(int(included.sum()), rate, included.size)
    for what, counts in (("batch sizes", included.sum(1)), ("units", included.sum(0))):
        trials = included.size // counts.size
        spread = _dispersion(counts, trials, rate)
        # Few expected inclusions spread wider than a chi-square of ``counts.size`` degrees: one of
        # the same mean and variance has fewer (Satterthwaite 1946).
        widening = 1 + (1 - 6 * rate * (1 - rate)) / (2 * trials * rate * (1 - rate))
        _require_chi_square(
            f"sampler: spread of {what} over that of coins",
            spread / widening,
            counts.size / widening,
        )


def _place(draw: int) -> tuple[int, int]:
    """Round and step of a check's draw: two rounds in turn, so that neither alone makes it new."""
    return _ROUND - draw % 2, draw // 2


def _require_rate(found: int, rate: float, coins: int) -> None:
    low, high = binom.ppf([FALSE_ALARM, 1 - FALSE_ALARM], coins, rate)
    if not low <= found <= high:
        raise SelfCheckFailed(f"sampler: inclusion rate must be {rate:g}, got {found / coins:g}")


def _dispersion(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    return float(((counts - trials * rate) ** 2).sum() / (trials * rate * (1 - rate)))


def _require_chi_square(what: str, statistic: float, degrees: float) -> None:
    low, high = chi2.ppf([FALSE_ALARM, 1 - FALSE_ALARM], degrees)
    if not low <= statistic <= high:
        raise SelfCheckFailed(
            f"{what} must be in [{low / degrees:.3f}, {high / degrees:.3f}], "
            f"got {statistic / degrees:.3f}"
        )


# What a run without noise and clipping still has to keep.
WITHOUT_PRIVACY = ("sampler",)

CHECKS: dict[str, Callable[[Subject], None]] = {
    "sensitivity": check_sensitivity,
    "noise": check_noise,
    "sampler": check_sampler,
}


def run_checks(subject: Subject) -> tuple[str, ...]:
    """Run every check that applies; the names of those that passed.

    Raises:
        SelfCheckFailed: by the first that did not.
    """
    is_private = subject.mechanism.clip_norm is not None
    names = tuple(name for name in CHECKS if is_private or name in WITHOUT_PRIVACY)
    for name in names:
        CHECKS[name](subject)
    return names
