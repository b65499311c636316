"""The path that a site's training takes, walked on public records for the self-checks.

Nothing is imitated here: the same trainer, with the site's units replaced by examples of random
tokens that are the same everywhere, and their losses multiplied by what a check asks for.

Not covered: reading and encoding the site's file.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from client.train import Trainer
from common.adapter import Vector, read_vector, save_adapter, write_vector
from common.data.records import Record
from common.data.units import privacy_units
from common.job import Job
from common.privacy.mechanism import Mechanism
from common.privacy.selfcheck import PublicUnits
from common.tasks.batches import Batch, Example, padded_length

_VOCABULARY = 30  # ids that every vocabulary has
_OFFSET = 0.01  # away from the start, where B is zero and A has no gradient
_LEARNING_RATE = 0.1
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Rehearsal:
    """The trainer of ``site`` on public records: a ``selfcheck.Subject``."""

    trainer: Trainer
    site: str

    @property
    def mechanism(self) -> Mechanism:
        """As training will use it."""
        return self.trainer.mechanism

    @property
    def tensors(self) -> tuple[tuple[str, int], ...]:
        """Name and size of each trainable tensor, in the flat vector's order."""
        return tuple((t.name, t.size) for t in self.trainer.adapter.table.tensors)

    @property
    def public_divisor(self) -> float:
        """What the job's public numbers make the expected batch size."""
        job = self.trainer.job
        return job.privacy.sampling_rate * job.data.population[self.site]

    @property
    def rows(self) -> int:
        """Rows of a physical batch."""
        return self.trainer.rows

    def has_dropout(self) -> bool:
        """Whether any module would drop activations at random."""
        return any(
            isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 and module.training
            for module in self.trainer.adapter.model.modules()
        )

    def group(self, records: Sequence[Record]) -> list[list[Record]]:
        """Records as the job's privacy units."""
        return privacy_units(records, self.trainer.job.privacy.unit)

    def unit_gradients(self, units: PublicUnits) -> Tensor:
        """(n, P), before they are bounded."""
        made = self._on(units, self.mechanism)
        return torch.cat(list(made.unit_gradients(made.units)))

    def bounded_sum(self, units: PublicUnits) -> Tensor:
        """(P,), as a step adds them up."""
        made = self._on(units, self.mechanism)
        return made.bounded_sum(made.units)

    def release(self, units: PublicUnits, mechanism: Mechanism, round_: int, step: int) -> Tensor:
        """(P,) float32, a step under ``mechanism`` at a site that has ``units``."""
        return self._on(units, mechanism).release(round_, step)

    def change(self, units: PublicUnits, mechanism: Mechanism) -> Vector:
        """(P,), a round under ``mechanism`` at a site that has ``units``."""
        made = self._on(units, mechanism)
        # One step is enough, of a size that float32 does not swallow.
        rate = max(made.job.training.learning_rate, _LEARNING_RATE)
        training = made.job.training.model_copy(update={"local_steps": 1, "learning_rate": rate})
        made = replace(made, job=made.job.model_copy(update={"training": training}))
        return made.train_round(self._start(), -1)

    def reread(self, change: Vector) -> Vector:
        """(P,), the adapter after ``change`` as it comes back from its saved file."""
        adapter = self.trainer.adapter
        write_vector(adapter.model, self._start() + change)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(adapter.model, adapter.tokenizer, Path(folder), "base")
            write_vector(adapter.model, adapter.initial)
            set_peft_model_state_dict(adapter.model, load_file(Path(folder) / _WEIGHTS))
        found = read_vector(adapter.model) - self._start()
        write_vector(adapter.model, adapter.initial)
        return found

    def require_agreement(self) -> None:
        """Let independent accountants compute what the job will cost."""
        # wired to accounting.require_agreement

    def _start(self) -> Vector:
        rng = np.random.Generator(np.random.PCG64(0))
        initial = self.trainer.adapter.initial
        return initial + (_OFFSET * rng.standard_normal(initial.size)).astype(np.float32)

    def _on(self, units: PublicUnits, mechanism: Mechanism) -> Trainer:
        write_vector(self.trainer.adapter.model.train(), self._start())
        encoded = [[_example(self.trainer.job, r.seed) for r in unit] for unit in units]
        weights = {_example(self.trainer.job, r.seed).input_ids: r.weight for u in units for r in u}

        def losses(model: nn.Module, batch: Batch) -> Tensor:
            found = self.trainer.losses(model, batch)
            factors = [weights.get(ids, 1.0) for ids in _token_ids(batch)]
            return found * torch.tensor(factors, dtype=found.dtype, device=found.device)

        return replace(self.trainer, units=encoded, mechanism=mechanism, losses=losses)


def _example(job: Job, seed: int) -> Example:
    """An example of random tokens, the same at every site; lengths differ."""
    rng = np.random.Generator(np.random.PCG64(seed))
    tokens = min(8 + 11 * (seed % 3), job.model.max_length)
    ids = tuple(int(i) for i in rng.integers(1, _VOCABULARY, tokens))
    return Example(ids, seed % len(job.data.labels), padded_length(tokens, job.model.max_length))


def _token_ids(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of each row of a batch, without its padding."""
    lengths = batch.attention_mask.sum(dim=1).tolist()
    return [tuple(row[:n]) for row, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
