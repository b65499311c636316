"""The path that a site's training takes, walked on public records for the self-checks.

Nothing is imitated here: the same trainer, with the site's units replaced by examples of random
tokens that are the same everywhere, and their losses multiplied by what a check asks for.

Not covered: reading and encoding the site's file.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from client.train import Trainer
from common.adapter import Vector
from common.data.records import Record
from common.data.units import privacy_units
from common.errors import StorageFailed
from common.privacy.crosscheck import require_agreement
from common.privacy.event import GaussianSteps
from common.privacy.mechanism import Mechanism
from common.privacy.persample import trainable
from common.privacy.selfcheck import run_checks
from common.privacy.subject import PublicRecord, PublicUnits, Table
from common.saved import read_adapter, save_adapter
from common.tasks import task_of
from common.tasks.batches import LENGTH_STEP, Batch, Example, padded_length

_OFFSET = 0.01  # away from the start, where B is zero and A has no gradient
_LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Rehearsal:
    """The trainer of ``site`` on public records: a ``subject.Subject``.

    Attributes:
        trainer: as it will train; its units are not touched.
        site: whose declared population counts.
        is_seeded: whether a simulation's seed repeats its draws.
        round: that is rehearsed, below 1: no round of the job, but one that trains the same.
    """

    trainer: Trainer
    site: str
    is_seeded: bool = False
    round: int = -1

    @property
    def mechanism(self) -> Mechanism:
        """As training will use it."""
        return self.trainer.mechanism

    @property
    def tensors(self) -> Table:
        """Name and size of each trainable tensor, in the order of the job's flat vector."""
        return tuple((t.name, t.size) for t in self.trainer.trained(self.round).table.tensors)

    @property
    def trainables(self) -> Table:
        """The same, as the model has them now; what a site of a lower rank has not is left out."""
        trained, model = self.trainer.trained(self.round), self.trainer.adapter.model
        cut = {} if trained.within is None else {t.name: t.size for t in trained.table.tensors}
        return tuple((n, cut.get(n, p.numel())) for n, p in trainable(model).items())

    @property
    def public_divisor(self) -> float:
        """What the job's public numbers make the expected batch size."""
        job = self.trainer.job
        trains = 1.0 if job.metrics is None else 1 - job.metrics.hold_out
        return job.privacy.sampling_rate * job.data.population[self.site] * trains

    @property
    def rows(self) -> int:
        """Rows of a physical batch."""
        return self.trainer.rows

    @property
    def lengths(self) -> tuple[int, ...]:
        """Padded lengths of records, ascending: the least, one between, the greatest."""
        most = self.trainer.job.model.max_length
        every = sorted({padded_length(n, most) for n in range(1, most + LENGTH_STEP, LENGTH_STEP)})
        return tuple(sorted({every[0], every[len(every) // 2], every[-1]}))

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
        """(n, P), before they are bounded; in the order of ``units`` where all have one length."""
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
        return made.train_round(self._start, self.round)

    def reread(self, change: Vector) -> Vector:
        """(P,), the adapter after ``change`` as it comes back from its saved file.

        Raises:
            StorageFailed: no file can be written to the folder for temporary ones.
        """
        adapter, places = self.trainer.adapter, self.trainer.trained(self.round).places
        state = self._start.copy()
        state[places] += change
        try:
            with tempfile.TemporaryDirectory() as folder:
                save_adapter(adapter, state, Path(folder), "base")
                found = read_adapter(adapter, Path(folder))
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StorageFailed(f"temporary folder must be writable, got: {reason}") from error
        return found[places] - self._start[places]

    def require_agreement(self) -> None:
        """Let independent accountants compute what the job will cost."""
        job, mechanism = self.trainer.job, self.mechanism
        if job.privacy.delta is not None:
            plan = GaussianSteps(mechanism.sampling_rate, mechanism.noise_multiplier, job.steps)
            counts = () if job.metrics_event is None else (job.metrics_event,)
            _require_agreement((plan, *counts), job.privacy.delta)

    @cached_property
    def _start(self) -> Vector:
        rng = np.random.Generator(np.random.PCG64(0))
        initial = self.trainer.adapter.initial
        moved = initial + (_OFFSET * rng.standard_normal(initial.size)).astype(np.float32)
        return self.trainer.adapter.layout.cut(moved, self.trainer.rank)

    @cached_property
    def _vocabulary(self) -> NDArray[np.int64]:
        """Every id that a text can have."""
        adapter = self.trainer.adapter
        known = min(len(adapter.tokenizer), adapter.model.get_input_embeddings().num_embeddings)
        return np.setdiff1d(np.arange(known), adapter.tokenizer.all_special_ids)

    def _example(self, record: PublicRecord) -> Example:
        """An example of random tokens, the same at every site; lengths differ."""
        job, rng = self.trainer.job, np.random.Generator(np.random.PCG64(record.seed))
        tokens = min(8 + 11 * (record.seed % 3), job.model.max_length)
        if record.length:
            tokens = max(1, record.length - record.seed % 3)
        ids = tuple(int(i) for i in rng.choice(self._vocabulary, tokens))
        length = record.length or padded_length(tokens, job.model.max_length)
        return task_of(job).public_example(ids, record.seed, length, job)

    def _on(self, units: PublicUnits, mechanism: Mechanism) -> Trainer:
        trainer = replace(self.trainer, round=self.round)
        if units:  # without any the model is not asked
            trainer.begin(self._start)
        encoded = [[self._example(record) for record in unit] for unit in units]
        weights = {
            example.input_ids: record.weight
            for unit, examples in zip(units, encoded, strict=True)
            for record, example in zip(unit, examples, strict=True)
        }

        def losses(model: nn.Module, batch: Batch) -> Tensor:
            found = self.trainer.losses(model, batch)
            factors = [weights.get(ids, 1.0) for ids in _token_ids(batch)]
            return found * torch.tensor(factors, dtype=found.dtype, device=found.device)

        return replace(trainer, units=encoded, mechanism=mechanism, losses=losses)


def rehearse(trainer: Trainer, site: str, *, is_seeded: bool) -> tuple[str, ...]:
    """Run every self-check, on each kind of round that the method has; the names of all.

    Raises:
        SelfCheckFailed: by the first that did not pass.
    """
    passed: tuple[str, ...] = ()
    for kind in trainer.adapter.layout.rounds:
        rehearsed = kind - 2 * len(trainer.adapter.layout.rounds)  # no round of a job
        trainer.adapter.begin(rehearsed)
        passed = run_checks(Rehearsal(trainer, site, is_seeded, rehearsed))
    return passed


@lru_cache(maxsize=64)
def _require_agreement(plan: tuple[GaussianSteps, ...], delta: float) -> None:
    """PRV takes half a second; what has been agreed once stays so."""
    require_agreement(plan, delta)


def _token_ids(batch: Batch) -> list[tuple[int, ...]]:
    """The ids of each row of a batch, without its padding."""
    lengths = batch.attention_mask.sum(dim=1).tolist()
    return [tuple(row[:n]) for row, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
