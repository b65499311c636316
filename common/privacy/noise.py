"""Noise on the integer lattice: ``round(N(0, s^2))``, drawn as if real numbers were at hand.

Each draw post-processes the continuous Gaussian, so that the Gaussian's own privacy loss
distribution bounds it, and integers have none of the gaps by which floating-point noise gives its
input away (Mironov 2012, https://doi.org/10.1145/2382196.2382264).

A draw is a sign and a tail probability p, of which the stream gives as many binary digits as the
answer needs. 63 digits and a double-precision inverse of the tail decide all draws but those that
come within ``_DOUBT`` deviations of a rounding threshold or lie far out; these get 128 digits more
and are decided in 300-bit arithmetic.

Guarantee: for s up to 2^40 each draw is within 2^-128 total variation of ``round(N(0, s^2))``: at
192 digits the chance that a threshold (there are fewer than 2^47 of them) still divides the cell
that p is known to lie in is below 2^-144. Accounting subtracts that slack from delta.

What is assumed: AES-256-CTR under a fresh key is as good as random words; scipy's ``ndtri`` errs by
less than 2^-48 of its value where it is trusted (tests compare it with 200-bit arithmetic).

Not covered: timing; the discrete Gaussian, which adds up over sites.
"""

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from common.errors import InvalidInput
from common.privacy.stream import Stream

MAX_DEVIATION = 2.0**40

_CELL = 2.0**-64  # width of what 63 digits tell of a tail probability below 1/2
_TAIL = np.uint64(2**44)  # below this many cells, p < 2^-20, digits are too few to trust
_DOUBT = 2.0**-44  # deviations; four times what ndtri's error and a cell's width amount to
_MORE_WORDS = 2
_PRECISION = 300  # bits


def lattice_noise(size: int, deviation: float, stream: Stream) -> NDArray[np.int64]:
    """``size`` independent draws of ``round(N(0, deviation^2))``, (size,).

    Args:
        size: P, how many.
        deviation: s, in lattice units; 0 for none.
        stream: a fresh one; how much of it is used depends on the draws.

    Raises:
        InvalidInput: a deviation outside [0, 2^40].
    """
    if not 0 <= deviation <= MAX_DEVIATION:
        raise InvalidInput(f"deviation must be in [0, 2^40] lattice units, got {deviation}")
    if deviation == 0:
        return np.zeros(size, dtype=np.int64)
    words = stream.words(size)
    cells = words >> np.uint64(1)
    scaled = ndtri((cells.astype(np.float64) + 0.5) * _CELL)  # negative: the lower tail
    scaled *= -deviation
    magnitudes = np.rint(scaled)
    for i in np.flatnonzero(_is_doubtful(scaled, magnitudes, cells, deviation)):
        magnitudes[i] = _decide(int(cells[i]), deviation, stream)
    drawn: NDArray[np.int64] = magnitudes.astype(np.int64)
    drawn *= 1 - 2 * (words & np.uint64(1)).astype(np.int64)  # a masked negation takes ten times
    return drawn


def _is_doubtful(
    scaled: NDArray[np.float64],
    magnitudes: NDArray[np.float64],
    cells: NDArray[np.uint64],
    deviation: float,
) -> NDArray[np.bool_]:
    to_threshold = 0.5 - np.abs(scaled - magnitudes)
    doubtful: NDArray[np.bool_] = (to_threshold < deviation * _DOUBT) | (cells < _TAIL)
    return doubtful


def _decide(cell: int, deviation: float, stream: Stream) -> int:
    """The magnitude k for which p lies between the tails above k + 1/2 and k - 1/2."""
    for word in stream.words(_MORE_WORDS):
        cell = cell << 64 | int(word)
    with mpmath.workprec(_PRECISION):
        p = (mpmath.mpf(cell) + 0.5) * mpmath.mpf(2) ** (-64 * (_MORE_WORDS + 1))
        k = max(0, round(-deviation * float(ndtri(float(p)))))
        while p <= _tail(k, deviation):
            k += 1
        while k > 0 and p > _tail(k - 1, deviation):
            k -= 1
    return k


def _tail(k: int, deviation: float) -> mpmath.mpf:
    """P[s Z > k + 1/2] for a standard normal Z."""
    return mpmath.erfc((k + mpmath.mpf(0.5)) / (deviation * mpmath.sqrt(2))) / 2
