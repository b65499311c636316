"""Noise on counts: ``round(N(0, s^2))`` on each, by common/privacy/noise.py.

A count is a whole number, so ``count + round(N(0, s^2))`` is the rounded ``count + N(0, s^2)``: a
post-processing of the Gaussian mechanism, which its privacy loss distribution bounds in as many
dimensions as there are bins. The discrete Gaussian of Canonne, Kamath and Steinke (2020,
https://arxiv.org/abs/2004.00010, Theorem 14) keeps the Gaussian's concentrated DP as well; that the
Gaussian's privacy loss distribution bounds it is proved for one dimension only, and a release has
many. Its noise is as wide, so nothing would be gained. Both are whole numbers: no floating-point
gap tells anything (Mironov 2012, https://doi.org/10.1145/2382196.2382264).

What noise may be off by, 2^-128 total variation a number, is part of the 2^-64 that accounting
takes off delta for the step.

Not covered: what one unit can add (common/histograms.py); timing.
"""

import numpy as np
from numpy.typing import NDArray

from common.errors import SelfCheckFailed
from common.privacy.noise import lattice_noise
from common.privacy.stream import Stream

# The variance of round(N(0, s^2)) is at most s^2 + 1/12, from s = 0.3 on, and below it by no more
# than (4 s^2 + 1/pi^2) e^(-2 pi^2 s^2), by Poisson's summation formula.
ROUNDING_VARIANCE = 1 / 12


def noised(counts: NDArray[np.int64], deviation: float, stream: Stream) -> NDArray[np.int64]:
    """The counts that may leave, (bins,): each with noise of its own.

    Args:
        counts: (bins,) int64. Sensitive.
        deviation: s, noise multiplier times sensitivity.
        stream: a fresh one.

    Raises:
        SelfCheckFailed: no whole numbers, or no noise.
    """
    if counts.dtype != np.int64 or counts.ndim != 1:
        raise SelfCheckFailed(f"counts must be int64 in one row, got {counts.dtype}")
    if not deviation > 0:
        raise SelfCheckFailed(f"deviation of counts must be greater than 0, got {deviation}")
    return counts + lattice_noise(len(counts), deviation, stream)


def variance(deviation: float) -> float:
    """Of one count's noise, which is public.

    >>> variance(2.0) == 4 + 1 / 12
    True
    """
    return deviation**2 + ROUNDING_VARIANCE
