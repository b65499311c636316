"""``fl-client`` with a fault that its home's file ``plant`` names: what the self-checks must see.

Without that file it is ``fl-client``.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from client import cli
from common.privacy import clipping, noise, sampling

HOME = Path(sys.argv[sys.argv.index("--home") + 1])


def planted() -> str:
    plant = HOME / "plant"
    return plant.read_text().strip() if plant.exists() else ""


sound_noise, sound_sum, sound_sample = (
    noise.lattice_noise,
    clipping.clip_and_sum,
    sampling.poisson_sample,
)


def lattice_noise(size: int, deviation: float, stream: Any) -> Any:  # noqa: ANN401
    return sound_noise(size, deviation / 2 if planted() == "half the noise" else deviation, stream)


def clip_and_sum(gradients: Any, clip_norm: float) -> Any:  # noqa: ANN401
    if planted() == "no clip":
        return (gradients * (clipping.LATTICE / clip_norm)).round().long().sum(dim=0)
    return sound_sum(gradients, clip_norm)


epochs: dict[int, list[int]] = {}


def poisson_sample(units: int, sampling_rate: float, stream: Any) -> Any:  # noqa: ANN401
    if planted() != "shuffled batches":
        return sound_sample(units, sampling_rate, stream)
    size = round(units * sampling_rate)
    left = epochs.setdefault(units, [])
    if len(left) < size:
        left[:] = np.random.permutation(units).tolist()
    epochs[units], batch = left[size:], left[:size]
    return np.sort(np.array(batch, dtype=np.int64))


noise.lattice_noise = lattice_noise
clipping.clip_and_sum = clip_and_sum
sampling.poisson_sample = poisson_sample

if __name__ == "__main__":
    raise SystemExit(cli.main())
