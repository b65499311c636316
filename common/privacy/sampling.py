"""Poisson sampling over privacy units at a public rate.

Every unit enters a step's batch on its own coin, so batches vary in size and may be empty. The
accountant's amplification holds for this sampler alone: shuffled batches at the same rate can cost
ten times the epsilon that Poisson accounting states (Chua et al. 2024,
https://arxiv.org/abs/2403.17673).
"""

import numpy as np
from numpy.typing import NDArray

from common.privacy.stream import Stream


def poisson_sample(units: int, sampling_rate: float, stream: Stream) -> NDArray[np.int64]:
    """Indices of the units that this step sees, ascending, (batch,).

    Args:
        units: how many there are. Sensitive.
        sampling_rate: the public probability of inclusion.
        stream: a fresh one for every step.
    """
    return np.flatnonzero(stream.uniforms(units) < sampling_rate)
