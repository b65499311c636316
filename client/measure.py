"""A job's one release of counts: which units are held out, and what the kept adapter makes of them.

Each record goes through the model alone, in a batch of one: what others there are moves none of its
bits, so that a neighbour changes its own counts and no other's.

Not covered: charging and storing (client/site.py); what a record counts as (common/counting.py).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from client.outbox import Outbox
from client.train import Trainer
from common.adapter import Vector
from common.counting import Judged, count
from common.data.records import Record
from common.errors import InvalidInput
from common.hold_out import held_out, hold_out_key
from common.job import Job
from common.privacy.counts import noised
from common.privacy.stream import KeySource, Stream
from common.tasks import task_of
from common.tasks.batches import Example, physical_batches
from common.tasks.entities import entities
from common.tasks.token_cls import word_tags

Pair = tuple[Record, Example]


def divided(
    trainer: Trainer,
    records: Sequence[Sequence[Record]],
    outbox: Outbox,
    seeded: KeySource | None = None,
) -> Trainer:
    """The trainer with the units that train, and beside them those that are held out.

    Args:
        trainer: with all units; a job without counts keeps them.
        records: of the same units. Sensitive.
        outbox: has accepted the job; its entry's random bits decide.
        seeded: a simulation's keys, which decide instead.

    Raises:
        InvalidInput: the job was not accepted.
    """
    if trainer.job.metrics is None:
        return trainer
    key = _key(trainer.job, outbox) if seeded is None else seeded("hold-out", 0, 0)
    return divided_by(trainer, records, key)


def divided_by(trainer: Trainer, records: Sequence[Sequence[Record]], key: bytes) -> Trainer:
    """``divided`` by a key that is known, of 32 bytes."""
    job = trainer.job
    if job.metrics is None:
        return trainer
    is_held = held_out(records, job.privacy.unit, key, job.metrics.hold_out)
    pairs = [
        list(zip(mine, examples, strict=True))
        for mine, examples, held in zip(records, trainer.units, is_held, strict=True)
        if held
    ]
    trains = [unit for unit, held in zip(trainer.units, is_held, strict=True) if not held]
    return replace(trainer, units=trains, held=pairs)


def _key(job: Job, outbox: Outbox) -> bytes:
    for submission in outbox.submissions():
        if submission.sha256 == job.sha256:
            return hold_out_key(submission.salt, job.sha256)
    raise InvalidInput(f"job must be accepted to divide its units, got {job.sha256[:12]}")


def released_counts(trainer: Trainer, vector: Vector) -> NDArray[np.int64]:
    """The job's counts of the adapter ``vector`` (P,) with their noise; they may leave the site.

    Raises:
        SelfCheckFailed: a unit would add more than the sensitivity.
    """
    job, keys = trainer.job, trainer.mechanism.keys
    trainer.adapter.model.eval()
    trainer.adapter.write(vector)
    edges = () if job.metrics is None else job.metrics.loss_edges
    choice = Stream(keys("metrics-records", job.metrics_round, 0))
    counted = count(
        trainer.held,
        lambda pair: judged(trainer, pair),
        job.histograms,
        edges=edges,
        cap=job.metrics_cap,
        stream=choice,
    )
    noise = Stream(keys("metrics-noise", job.metrics_round, 0))
    return noised(counted, job.metrics_deviation, noise)


def judged(trainer: Trainer, pair: Pair) -> Judged:
    """What the model, as it is, makes of one record. Sensitive."""
    record, example = pair
    adapter, job = trainer.adapter, trainer.job
    with torch.inference_mode():
        (batch,) = physical_batches([example], 1, adapter.pad_id, adapter.device)
        loss = float(trainer.losses(adapter.model, batch)[0])
        predicted = task_of(job).predict(adapter.model, batch)[0].cpu().numpy()
    if isinstance(example.label, int):
        return Judged(int(predicted) == example.label, example.label, loss, record.group)
    tags = word_tags(example, predicted, job.data.labels, len(record.words))
    truth, found = frozenset(entities(record.tags)), frozenset(entities(tags))
    return Judged(truth == found, 0, loss, record.group, truth, found)
