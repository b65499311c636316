"""Poisson sampling over privacy units at a public rate, and which of a unit's records are seen.

Every unit enters a step's batch on its own coin, so batches vary in size and may be empty. The
accountant's amplification holds for this sampler alone: shuffled batches at the same rate can cost
ten times the epsilon that Poisson accounting states (Chua et al. 2024,
https://arxiv.org/abs/2403.17673). With units of many records the same formula holds at the units'
rate, as each unit's records together are one clipped contribution (Charles et al. 2024,
https://arxiv.org/abs/2407.07737).
"""

import numpy as np
from numpy.typing import NDArray

from common.privacy.stream import Stream

_COIN_BITS = 53  # a double's: rate times 2^53 is then exact


def poisson_sample(units: int, sampling_rate: float, stream: Stream) -> NDArray[np.int64]:
    """Indices of the units that this step sees, ascending, (batch,).

    Args:
        units: how many there are. Sensitive.
        sampling_rate: the public probability of inclusion; coins round it down, never up.
        stream: a fresh one for every step.
    """
    coins = stream.words(units) >> np.uint64(64 - _COIN_BITS)
    return np.flatnonzero(coins < np.uint64(int(sampling_rate * 2.0**_COIN_BITS)))


def choose_records(records: int, cap: int, stream: Stream) -> NDArray[np.int64]:
    """Indices of at most ``cap`` of a unit's records, each subset as likely, ascending.

    Args:
        records: how many the unit has. Sensitive.
        cap: the public bound.
        stream: goes on from one unit to the next.
    """
    if records <= cap:
        return np.arange(records)
    return np.sort(np.argsort(stream.words(records), kind="stable")[:cap])
