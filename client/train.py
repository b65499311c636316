"""A site's local training: some steps of DP-SGD from the round's global adapter.

The optimiser's state is fresh each round and every step costs the same, whatever the batch: an
empty one releases noise too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.adapter import LoadedAdapter, Vector, read_vector, write_vector
from common.job import Job
from common.privacy.mechanism import Mechanism
from common.privacy.persample import flatten, per_sample_gradients, trainable
from common.privacy.selfcheck import Subject
from common.tasks import Task, task_of
from common.tasks.batches import Batch, Example, padded_length, physical_batches

_PROBE_TOKENS = 12
_PROBE_VOCABULARY = 30  # ids that every vocabulary has


@dataclass(frozen=True)
class Trainer:
    """A job made ready at a site.

    Attributes:
        job: its constants.
        adapter: the base with the adapter, and its tokenizer.
        examples: the site's encoded records. Sensitive.
        mechanism: what bounds and hides them.
        physical_batch: examples in memory at once; changes what is computed by rounding alone.
    """

    job: Job
    adapter: LoadedAdapter
    examples: Sequence[Example]
    mechanism: Mechanism
    physical_batch: int

    @property
    def task(self) -> Task:
        """The job's task."""
        return task_of(self.job)

    def train_round(self, start: Vector, round_: int) -> Vector:
        """Take the round's steps from ``start``; the (P,) change, which may leave the site."""
        model = self.adapter.model.train()
        write_vector(model, start)
        optimizer = _optimizer(model, self.job)
        for step in range(self.job.training.local_steps):
            chosen = self.mechanism.sample(len(self.examples), round_, step)
            total = self._bounded_sum([self.examples[i] for i in chosen])
            _set_gradient(model, self.mechanism.release(total, round_, step))
            optimizer.step()
        change = read_vector(model) - start
        write_vector(model, start)
        return change

    def _bounded_sum(self, batch: Sequence[Example]) -> Tensor:
        total = torch.zeros(
            self.adapter.table.size, dtype=torch.float64, device=self.adapter.device
        )
        for rows in self._gradients(batch):
            total += self.mechanism.bounded_sum(rows)
        return total

    def _gradients(self, batch: Sequence[Example]) -> Iterator[Tensor]:
        """Per-sample gradients, (n, P) a physical batch. Sensitive."""
        adapter = self.adapter
        for part in physical_batches(batch, self.physical_batch, adapter.pad_id, adapter.device):
            yield self._per_sample(part)

    def _per_sample(self, batch: Batch, weights: Tensor | float = 1.0) -> Tensor:
        model = self.adapter.model
        rows = per_sample_gradients(
            model, lambda: self.task.per_example_loss(model, batch) * weights
        )
        return flatten(rows)

    def subject(self) -> Subject:
        """What the self-checks look at: this mechanism and model, on public examples."""
        self.adapter.model.train()
        write_vector(self.adapter.model, self.adapter.initial)
        public = [_public_example(self.job, seed) for seed in range(2)]

        def gradients(weights: Tensor) -> Tensor:
            device = self.adapter.device
            (batch,) = physical_batches(public[: len(weights)], 2, self.adapter.pad_id, device)
            return self._per_sample(batch, weights.to(device))

        return Subject(self.mechanism, self.adapter.table.size, gradients)


def _public_example(job: Job, seed: int) -> Example:
    """An example of random tokens, the same at every site."""
    rng = np.random.Generator(np.random.PCG64(seed))
    tokens = min(_PROBE_TOKENS, job.model.max_length)
    ids = tuple(int(i) for i in rng.integers(1, _PROBE_VOCABULARY, tokens))
    return Example(ids, seed % len(job.data.labels), padded_length(tokens, job.model.max_length))


def _optimizer(model: nn.Module, job: Job) -> torch.optim.Optimizer:
    parameters, training = list(trainable(model).values()), job.training
    if training.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )


def _set_gradient(model: nn.Module, gradient: Tensor) -> None:
    offset = 0
    for parameter in trainable(model).values():
        parameter.grad = gradient[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
