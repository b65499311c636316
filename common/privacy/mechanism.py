"""One step of DP-SGD: who is sampled, what they may add, what noise hides it.

Source: Abadi et al. (2016), https://arxiv.org/abs/1607.00133, Algorithm 1, with Poisson sampling
and a public divisor: rate times public population, never the realised batch, whose size is
private.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.job import Job
from common.privacy import clipping, noise, sampling
from common.privacy.stream import KeySource, Stream


@dataclass(frozen=True, slots=True)
class Mechanism:
    """The constants of a site's steps; all public.

    Attributes:
        sampling_rate: probability that a unit enters a step.
        divisor: expected batch size.
        clip_norm: L2 bound C of a unit's gradient; ``None`` without privacy.
        noise_multiplier: noise standard deviation over C.
        keys: where each draw's key comes from.
    """

    sampling_rate: float
    divisor: float
    clip_norm: float | None
    noise_multiplier: float
    keys: KeySource

    def sample(self, units: int, round_: int, step: int) -> NDArray[np.int64]:
        """Indices of the units in this step's batch. Sensitive."""
        stream = Stream(self.keys("sampling", round_, step))
        return sampling.poisson_sample(units, self.sampling_rate, stream)

    def bounded_sum(self, gradients: Tensor) -> Tensor:
        """The (P,) float64 sum of (n, P) rows, each clipped where the job is private. Sensitive."""
        if self.clip_norm is None:
            return gradients.double().sum(dim=0)
        return clipping.clip_and_sum(gradients, self.clip_norm)

    def release(self, total: Tensor, round_: int, step: int) -> Tensor:
        """Noise ``total`` (P,) and divide it; the (P,) float32 result may leave the site."""
        if self.clip_norm is not None:
            drawn = noise.gaussian_noise(
                len(total),
                noise_multiplier=self.noise_multiplier,
                clip_norm=self.clip_norm,
                stream=Stream(self.keys("noise", round_, step)),
            )
            total = total + torch.from_numpy(drawn).to(total.device)
        return (total / self.divisor).float()


def mechanism_of(job: Job, site: str, keys: KeySource) -> Mechanism:
    """The mechanism that a job prescribes to a site."""
    return Mechanism(
        sampling_rate=job.privacy.sampling_rate,
        divisor=job.divisor(site),
        clip_norm=job.privacy.clip_norm,
        noise_multiplier=job.noise_multiplier,
        keys=keys,
    )
