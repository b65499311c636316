"""Alternating runs of several variants: raw CPU times, medians, quartiles and their ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.adapter import Vector
from common.errors import SelfCheckFailed


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU of each variant, once a round, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, act in variants.items():
            begun = time.process_time()
            act()
            if round_:
                seconds[name].append(time.process_time() - begun)
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


def require_close(name: str, found: Vector, expected: Vector, most: float) -> float:
    """The relative distance of two vectors.

    Raises:
        SelfCheckFailed: it is more than ``most``.
    """
    distance = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not distance <= most:
        raise SelfCheckFailed(f"{name} must be within {most:g} of the other's, got {distance:g}")
    return distance
