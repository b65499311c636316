"""A site's trainer as the empirical audits see it: the same code, with an auditor's eyes and units.

A subclass looks at what a method of ``Trainer`` returns and calls it; none replaces one. Only two
things differ from a site at work: what the model says of the same records at the same weights is
remembered, and a canary's gradient is put in where the model's would be.

Not covered: that the model gives the same gradient twice, which the self-checks try.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from client.rehearsal import Rehearsal
from client.train import Trainer
from common.adapter import LoadedAdapter, Vector
from common.audit.canary import Canaries, Watch
from common.audit.mechanism import Release
from common.job import Job
from common.privacy.mechanism import Mechanism, mechanism_of
from common.privacy.persample import rows_within_memory
from common.privacy.stream import KeySource
from common.privacy.subject import PublicUnits
from common.tasks import task_of
from common.tasks.batches import Example

_ROWS = 8  # of a physical batch, as site.toml has it by default

Rows = tuple[Tensor, list[int]]
Key = tuple[Example, ...]
Kind = TypeVar("Kind", bound=Trainer)


@dataclass(frozen=True)
class RememberingTrainer(Trainer):
    """Asks the model once for what it says of the same records at the same weights."""

    remembered: dict[Key, list[Rows]] = field(default_factory=dict)

    def _record_gradients(self, records: Sequence[Example]) -> Iterator[Rows]:
        key = tuple(records)
        if key not in self.remembered:
            self.remembered[key] = list(super()._record_gradients(records))
        # Clipping works in place: each release gets rows of its own.
        yield from ((rows.clone(), list(places)) for rows, places in self.remembered[key])


@dataclass(frozen=True)
class AuditRehearsal(Rehearsal):
    """A site's path on public records, from which thousands of releases are drawn."""

    def site_with(self, units: PublicUnits, mechanism: Mechanism) -> Release:
        """(round, step) -> (P,), drawn anew each time by a site that has ``units``."""
        made = as_kind(RememberingTrainer, self._on(units, mechanism))
        return made.release


@dataclass(frozen=True)
class WatchedTrainer(Trainer):
    """Trains with gradient canaries among its units, and shows every release to ``watch``."""

    canaries: Canaries | None = None
    watch: Watch | None = None

    def release(self, round_: int, step: int) -> Tensor:
        """The noised gradient of a step, (P,) float32, which the auditor sees too."""
        released = super().release(round_, step)
        if self.watch is not None:
            self.watch(released)
        return released

    def _record_gradients(self, records: Sequence[Example]) -> Iterator[Rows]:
        planted = [i for i, record in enumerate(records) if is_canary(record)]
        real = [i for i, record in enumerate(records) if not is_canary(record)]
        for rows, places in super()._record_gradients([records[i] for i in real]):
            yield rows, [real[place] for place in places]
        for first in range(0, len(planted), self.rows):
            some = planted[first : first + self.rows]
            yield self._rows_of([records[i] for i in some]), some

    def _rows_of(self, records: Sequence[Example]) -> Tensor:
        if self.canaries is None:
            raise RuntimeError("a canary among the records of a trainer that knows none")
        numbers = [number_of(record) for record in records]
        return torch.from_numpy(self.canaries.gradients(numbers)).to(self.adapter.device)


def canary(number: int) -> Example:
    """The record that stands for a gradient canary; no text has its token."""
    return Example((-1 - number,), 0, 1)


def is_canary(record: Example) -> bool:
    """Whether a record is a canary's."""
    return record.input_ids[0] < 0


def number_of(record: Example) -> int:
    """Which canary a record stands for."""
    return -1 - record.input_ids[0]


def as_kind(kind: type[Kind], trainer: Trainer, **more: Any) -> Kind:  # noqa: ANN401 -- its fields
    """The same trainer as another class of it."""
    known = {f.name: getattr(trainer, f.name) for f in fields(Trainer)}
    return kind(**known, **more)


def trainer_of(
    job: Job, adapter: LoadedAdapter, site: str, keys: KeySource | None = None, rows: int = _ROWS
) -> Trainer:
    """The trainer that ``site`` would have for ``job`` with settings by default, without units."""
    return Trainer(
        job=job,
        adapter=adapter,
        units=(),
        mechanism=mechanism_of(job, site, keys),
        losses=task_of(job).per_example_loss,
        rows=min(rows, rows_within_memory(2 * adapter.layout.largest, adapter.device)),
    )


def train_job(trainer: Trainer, watch: Callable[[int], None] = lambda _: None) -> Vector:
    """All rounds of the job with this site alone; the state that comes out, (P,)."""
    state = trainer.adapter.initial.copy()
    for round_ in range(1, trainer.job.training.rounds + 1):
        state[trainer.trained(round_).places] += trainer.train_round(state, round_)
        watch(round_)
    return state


def with_canaries(
    trainer: Trainer, canaries: Canaries, included: Sequence[int], watch: Watch
) -> WatchedTrainer:
    """The trainer with the canaries ``included`` among its units, each a unit of its own."""
    units = [*trainer.units, *([canary(number)] for number in included)]
    return as_kind(WatchedTrainer, replace(trainer, units=units), canaries=canaries, watch=watch)
