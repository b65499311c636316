"""Gaussian noise for a clipped sum, drawn from the operating system's randomness.

Not covered: the integer lattice that closes floating-point attacks.
"""

import numpy as np
from numpy.typing import NDArray

from common.privacy.stream import Stream


def gaussian_noise(
    size: int, *, noise_multiplier: float, clip_norm: float, stream: Stream
) -> NDArray[np.float64]:
    """Noise of standard deviation ``noise_multiplier * clip_norm`` in each coordinate, (size,).

    Source: Abadi et al. (2016), https://arxiv.org/abs/1607.00133, Algorithm 1.
    """
    return stream.normals(size) * (noise_multiplier * clip_norm)
