"""Checks of what is random: fresh keys, noise, sampling, the choice of a unit's records.

Not covered: randomness that is new each time and yet known to somebody, as from a generator with a
counter; noise that depends on the round's number.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from common.errors import SelfCheckFailed
from common.privacy.chance import (
    overlap_bound,
    require_coins,
    require_few,
    require_normal,
    require_rate,
    require_variance,
)
from common.privacy.clipping import LATTICE, sensitivity
from common.privacy.mechanism import Mechanism
from common.privacy.subject import PublicRecord, Subject, places

_ROUND = -1  # it and the one below: no training rounds, so seeded streams are not touched

_NUMBERS = 2**24  # of noise that are looked at, in all
_MOST_DRAWS, _LEAST_DRAWS = 160, 4  # 160 tell half the noise on a single coordinate from all of it
_WITH_A_UNIT = 4  # draws over a batch that is not empty, which cost a pass of the model each
_BLOCK = 4096  # coordinates
_SHIFTED = 2**20  # numbers that are compared with themselves, moved along

_COINS = 16_000_000
_LEAST_DIFFERING = 1e-6
_MANY_ONCE = 100_000  # units
_MANY = 4000  # units
_TAILS = 12


def check_keys(subject: Subject) -> None:
    """A step drawn again takes other keys and samples others: no seed repeats it."""
    if subject.is_seeded:
        return
    for purpose in ("sampling", "records", "noise"):
        keys = {subject.mechanism.keys(purpose, *place(0)) for _ in range(3)}
        if len(keys) < 3:
            raise SelfCheckFailed(
                f"keys: those of {purpose} must be new each time, got one again (a seeded stream?)"
            )
    if _samples_repeat(subject.mechanism):
        raise SelfCheckFailed("keys: a step must sample others when drawn again, got the same")


def _samples_repeat(mechanism: Mechanism) -> bool:
    """Whether the same steps sample the same units each time; chance does so one time in e^24."""
    differing = 2 * mechanism.sampling_rate * (1 - mechanism.sampling_rate)
    if differing < _LEAST_DIFFERING:
        return False
    units = min(math.ceil(24 / differing), _MANY_ONCE)
    steps = math.ceil(24 / (differing * units))
    first, again = (_samples(mechanism, units, steps) for _ in range(2))
    return all(one == other for one, other in zip(first, again, strict=True))


def check_empty(subject: Subject) -> None:
    """A step that samples nobody releases noise, as one that samples somebody does."""
    # A step that never does is for the check on noise to name.
    if _draw(subject, 0).any() and not subject.release([], subject.mechanism, *place(0)).any():
        raise SelfCheckFailed(
            "empty batch: a step that samples nobody must release noise, got none"
        )


def check_noise(subject: Subject) -> None:
    """Every coordinate gets noise of the deviation accounted for, alike nothing drawn before."""
    noise = _noise(subject)
    draws, size = noise.shape
    mechanism = subject.mechanism
    lattice_deviation = mechanism.noise_multiplier * sensitivity(size)
    # Few draws round to the lattice point 0: one in 2.5 million at a deviation of C.
    zeros = int(np.count_nonzero(noise == 0))
    require_few(
        "noise: every coordinate must get some", zeros, noise.size, min(1, 1 / lattice_deviation)
    )
    found = [draw.tobytes() for draw in noise]
    if not subject.is_seeded:  # the last step once more
        found.append(_draw(subject, draws - 1).tobytes())
    if len(set(found)) < len(found):
        raise SelfCheckFailed("noise: every draw must be fresh, got one twice")
    _require_deviation(noise, subject)
    _require_independence(noise)


def _noise(subject: Subject) -> NDArray[np.float32]:
    """Releases that add up nothing, (draws, P), each coordinate in deviations accounted for."""
    size = sum(count for _, count in subject.tensors)
    draws = max(_LEAST_DRAWS, min(_MOST_DRAWS, _NUMBERS // size))
    noise = np.empty((draws, size), dtype=np.float32)
    for draw in range(draws):
        noise[draw] = _draw(subject, draw)
    return noise


def _draw(subject: Subject, draw: int) -> NDArray[np.float32]:
    mechanism = replace(subject.mechanism, sampling_rate=1.0)
    size = sum(count for _, count in subject.tensors)
    lattice_unit = (mechanism.clip_norm or 1.0) / LATTICE
    deviation = mechanism.noise_multiplier * sensitivity(size) * lattice_unit
    # Its gradient is zero, or there is none.
    units = [[PublicRecord(0, 0.0)]] if draw < _WITH_A_UNIT else []
    released = subject.release(units, mechanism, *place(draw)).cpu().numpy()
    scaled: NDArray[np.float32] = released * np.float32(subject.public_divisor / deviation)
    return scaled


def _require_deviation(noise: NDArray[np.float32], subject: Subject) -> None:
    draws, size = noise.shape
    squares, by_draw = np.zeros(size), np.zeros(draws)
    for i, draw in enumerate(noise):
        square = np.square(draw, dtype=np.float64)
        squares += square
        by_draw[i] = square.sum()
    over = "over the accounted one"
    require_variance(f"noise: variance {over}", by_draw.sum(), noise.size)
    blocks = list(_blocks(subject))
    for name, columns in blocks:
        degrees = draws * (columns.stop - columns.start)
        what = f"noise: variance of {name}'s noise {over}"
        require_variance(what, squares[columns].sum(), degrees, len(blocks))
    require_variance(f"noise: variance of a step's noise {over}", by_draw, size, draws)
    require_variance(f"noise: variance of one number's noise {over}", squares, draws, size)
    means = noise.sum(axis=0, dtype=np.float64) / math.sqrt(draws)
    require_normal("noise: its mean at every number", means)


def _blocks(subject: Subject) -> Iterator[tuple[str, slice]]:
    """Every tensor, in pieces where it is large."""
    for name, columns in places(subject.tensors):
        for first in range(columns.start, columns.stop, _BLOCK):
            yield name, slice(first, min(first + _BLOCK, columns.stop))


def _require_independence(noise: NDArray[np.float32]) -> None:
    """No draw is part of another or of itself elsewhere, with either sign."""
    draws, size = noise.shape
    overlaps = noise @ noise.T
    pairs = list(combinations(range(draws), 2))
    most = max(float(abs(overlaps[pair])) for pair in pairs)
    if not most <= (bound := overlap_bound(size, len(pairs))):
        raise SelfCheckFailed(
            f"noise: two steps' noise must overlap by at most {bound / size:.3f}, "
            f"got {most / size:.3f}"
        )
    sequence = noise.ravel()[: max(_SHIFTED, size)].astype(np.float64)
    spectrum = np.fft.rfft(sequence)
    moved = np.fft.irfft(spectrum * spectrum.conj(), sequence.size)[1 : (sequence.size + 1) // 2]
    most = float(np.abs(moved).max())
    if not most <= (bound := overlap_bound(sequence.size, moved.size)):
        raise SelfCheckFailed(
            f"noise: it must overlap with itself elsewhere by at most {bound / sequence.size:.3f}, "
            f"got {most / sequence.size:.3f}"
        )


def check_sampler(subject: Subject) -> None:
    """Each unit enters each step by its own coin at the public rate.

    Batch sizes and units' counts must both spread as coins do; shuffled or fixed-size batches do
    not.
    """
    rate = subject.mechanism.sampling_rate
    units = steps = min(math.ceil(96 / rate), _MANY)
    included = np.zeros((steps, units), dtype=bool)
    for step, sampled in enumerate(_samples(subject.mechanism, units, steps)):
        included[step, sampled] = True
    if rate == 1:
        if not included.all():
            raise SelfCheckFailed(
                "sampler: every unit must be included at rate 1, got some left out"
            )
        return
    require_rate("sampler: inclusion rate", int(included.sum()), included.size, rate)
    for what, axis in (("batch sizes", 1), ("units", 0)):
        require_coins(
            f"sampler: spread of {what} over that of coins",
            included.sum(axis),
            included.shape[axis],
            rate,
        )


def require_whole_samples(subject: Subject) -> None:
    """No batch is cut short: neither where all are sampled, nor in the sizes' upper tail."""
    everybody = replace(subject.mechanism, sampling_rate=1.0)
    (sampled,) = _samples(everybody, _MANY, 1)
    if sampled != list(range(_MANY)):
        raise SelfCheckFailed("whole batch: every unit must be sampled at rate 1, got fewer")
    rate = subject.mechanism.sampling_rate
    if rate == 1:
        return
    # Where half a unit is expected, any multiple of the expectation is soon exceeded.
    for units in (math.ceil(0.5 / rate), math.ceil(subject.public_divisor / rate)):
        steps = max(40, min(2 * _MANY, _COINS // 2 // units))
        sizes = np.array([len(s) for s in _samples(subject.mechanism, units, steps)])
        for tail in range(1, _TAILS + 1):
            least = int(binom.isf(2.0**-tail, units, rate)) + 1
            require_rate(
                f"whole batch: share of steps with {least} units or more of {units}",
                int((sizes >= least).sum()),
                steps,
                float(binom.sf(least - 1, units, rate)),
                comparisons=2 * _TAILS,
            )


def _samples(mechanism: Mechanism, units: int, steps: int) -> Iterator[list[int]]:
    everyone = [[unit] for unit in range(units)]
    for step in range(steps):
        yield [unit for (unit,) in mechanism.sample(everyone, *place(step))]


def check_cap(subject: Subject) -> None:
    """A step sees at most the public number of a unit's records, and all of them by turns."""
    cap = subject.mechanism.unit_cap
    if cap is None:
        return
    sure, seen = replace(subject.mechanism, sampling_rate=1.0), set()
    for step in range(40):
        (sampled,) = sure.sample([range(cap + 1)], *place(step))
        seen.update(sampled)
        if len(set(sampled)) != cap:
            raise SelfCheckFailed(f"cap: a unit must give {cap} records, got {len(set(sampled))}")
    if cap >= 1 and len(seen) == cap:
        raise SelfCheckFailed("cap: a unit's records must be chosen anew, got the same ones")


def place(draw: int) -> tuple[int, int]:
    """Round and step of a check's draw: two rounds in turn, so that neither alone makes it new."""
    return _ROUND - draw % 2, draw // 2
