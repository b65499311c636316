"""Alternating runs of several variants: raw CPU times, medians, quartiles and their ratios.

CPU time is of this process and of every child that it has waited for.
"""

import resource
import statistics
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from common.adapter import Vector
from common.errors import InvalidInput, SelfCheckFailed

Made = TypeVar("Made")


def require_rounds(rounds: int) -> None:
    """Check that there are enough rounds for quartiles.

    Raises:
        InvalidInput: fewer than two.
    """
    if rounds < 2:
        raise InvalidInput(f"rounds must be at least 2, got {rounds}")


def cpu_seconds() -> float:
    """User and system time so far."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def alternate(
    variants: Mapping[str, Callable[[], Made]],
    rounds: int,
    check: Callable[[Mapping[str, Made]], None],
) -> dict[str, list[float]]:
    """Seconds of CPU of each variant, once a round, after a round that warms up.

    Args:
        variants: what is timed.
        rounds: how often.
        check: raises unless what the variants of a round made is right; called in every one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        made: dict[str, Made] = {}
        for name, act in variants.items():
            begun = cpu_seconds()
            made[name] = act()
            if round_:
                seconds[name].append(cpu_seconds() - begun)
        check(made)
    return seconds


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """The median of the rounds' own ratios, and their quartiles."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return {"ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def milliseconds(seconds: Mapping[str, list[float]], of: int) -> dict[str, Any]:
    """Medians and raw times of each variant, of one of ``of`` pieces of work."""
    return {
        name: {
            "median_ms": round(1000 * statistics.median(own) / of, 3),
            "ms": [round(1000 * value / of, 3) for value in own],
        }
        for name, own in seconds.items()
    }


class Distances:
    """The greatest relative distance of each variant from another over all rounds.

    Args:
        most: variant -> what is allowed.
    """

    def __init__(self, most: Mapping[str, float]) -> None:
        self._most = dict(most)
        self.greatest = dict.fromkeys(most, 0.0)

    def require(self, name: str, found: Vector, expected: Vector) -> None:
        """Check one variant's end of a round, (P,).

        Raises:
            SelfCheckFailed: it is further from ``expected`` than allowed.
        """
        distance = require_close(name, found, expected, self._most[name])
        self.greatest[name] = max(self.greatest[name], distance)


def require_close(name: str, found: Vector, expected: Vector, most: float) -> float:
    """The relative distance of two vectors.

    Raises:
        SelfCheckFailed: it is more than ``most``.
    """
    distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not distance <= most:
        raise SelfCheckFailed(f"{name} must be within {most:g} of the other's, got {distance:g}")
    return distance
