"""One step of DP-SGD: who is sampled, what they may add, what noise hides it.

Source: Abadi et al. (2016), https://arxiv.org/abs/1607.00133, Algorithm 1, with Poisson sampling
of privacy units and a public divisor: rate times public population, never the realised batch, whose
size is private.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from common.job import Job
from common.privacy import clipping, noise, sampling
from common.privacy.stream import KeySource, Stream, fresh_key, public_keys

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Mechanism:
    """The constants of a site's steps; all public.

    Attributes:
        sampling_rate: probability that a unit enters a step.
        divisor: expected batch size, in units.
        clip_norm: L2 bound C of a unit's gradient; ``None`` without privacy.
        noise_multiplier: noise standard deviation over the sum's sensitivity.
        unit_cap: the most records of a unit that a step sees; ``None`` where a unit is one record.
        keys: where each draw's key comes from.
    """

    sampling_rate: float
    divisor: float
    clip_norm: float | None
    noise_multiplier: float
    unit_cap: int | None
    keys: KeySource

    def sample(self, units: Sequence[Sequence[Item]], round_: int, step: int) -> list[list[Item]]:
        """This step's units, each with the records that it sees. Sensitive."""
        coins = Stream(self.keys("sampling", round_, step))
        chosen = sampling.poisson_sample(len(units), self.sampling_rate, coins)
        sampled = [units[i] for i in chosen.tolist()]
        if self.unit_cap is None:
            return [list(unit) for unit in sampled]
        choice = Stream(self.keys("records", round_, step))
        return [
            [unit[j] for j in sampling.choose_records(len(unit), self.unit_cap, choice)]
            for unit in sampled
        ]

    def zero(self, size: int, device: torch.device) -> Tensor:
        """The sum of no units, (P,): whole lattice units where the job is private."""
        dtype = torch.float64 if self.clip_norm is None else torch.int64
        return torch.zeros(size, dtype=dtype, device=device)

    def bounded_sum(self, gradients: Tensor) -> Tensor:
        """The (P,) sum of (n, P) rows, one a unit. Sensitive.

        Clipped and in int64 lattice units where the job is private, as it is in float64 elsewhere.
        """
        if self.clip_norm is None:
            return gradients.double().sum(dim=0)
        return clipping.clip_and_sum(gradients, self.clip_norm)

    def release(self, total: Tensor, round_: int, step: int) -> Tensor:
        """Noise ``total`` (P,) and divide it; the (P,) float32 result may leave the site."""
        if self.clip_norm is None:
            return (total / self.divisor).float()
        drawn = noise.lattice_noise(
            len(total),
            self.noise_multiplier * clipping.sensitivity(len(total)),
            Stream(self.keys("noise", round_, step)),
        )
        noised = total + torch.from_numpy(drawn).to(total.device)
        return (noised.double() * (self.clip_norm / clipping.LATTICE / self.divisor)).float()


def mechanism_of(job: Job, site: str, keys: KeySource | None = None) -> Mechanism:
    """The mechanism that a job prescribes to a site.

    Args:
        job: its parameters.
        site: whose batches and noise are drawn.
        keys: a simulation's, by which jobs under one seed see the same batches; ``None`` for a
            deployment's: fresh, or anybody's where the job has no privacy, so that it repeats.
    """
    if keys is None:
        keys = fresh_key if job.is_private else public_keys(job.sha256, site)
    return Mechanism(
        sampling_rate=job.privacy.sampling_rate,
        divisor=job.divisor(site),
        clip_norm=job.privacy.clip_norm,
        noise_multiplier=job.noise_multiplier,
        unit_cap=job.privacy.unit_cap,
        keys=keys,
    )
