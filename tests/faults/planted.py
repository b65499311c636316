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
    noise.gaussian_noise,
    clipping.clip_and_sum,
    sampling.poisson_sample,
)


def gaussian_noise(size: int, **constants: Any) -> Any:  # noqa: ANN401
    drawn = sound_noise(size, **constants)
    return drawn / 2 if planted() == "half the noise" else drawn


def clip_and_sum(gradients: Any, clip_norm: float) -> Any:  # noqa: ANN401
    if planted() == "no clip":
        return gradients.double().sum(dim=0)
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


noise.gaussian_noise = gaussian_noise
clipping.clip_and_sum = clip_and_sum
sampling.poisson_sample = poisson_sample

if __name__ == "__main__":
    raise SystemExit(cli.main())
