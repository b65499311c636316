"""Evaluation of the global adapter on the job's public hold-out, at the server.

No site is asked: a metric of private records would be a release.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.adapter import LoadedAdapter, Vector
from common.data.catalogue import load
from common.data.records import Record, require_labels
from common.errors import InvalidInput
from common.job import Job
from common.tasks import task_of
from common.tasks.batches import Example, placed_batches
from common.tasks.metrics import Metrics

_BATCH = 64


@dataclass(frozen=True)
class HoldOut:
    """The public records, encoded as well, and the model that predicts them."""

    job: Job
    adapter: LoadedAdapter
    records: Sequence[Record]
    examples: Sequence[Example]

    def evaluate(self, vector: Vector) -> Metrics:
        """Metrics of the adapter ``vector``, (P,)."""
        task, model = task_of(self.job), self.adapter.model.eval()
        self.adapter.write(vector)
        predicted: list[Any] = [None] * len(self.examples)
        with torch.inference_mode():
            for batch, places in placed_batches(
                self.examples, _BATCH, self.adapter.pad_id, self.adapter.device
            ):
                rows = task.predict(model, batch).cpu().numpy()
                for place, row in zip(places, rows, strict=True):
                    predicted[place] = row
        return task.measure(self.records, self.examples, predicted, self.job)


def load_hold_out(job: Job, adapter: LoadedAdapter) -> HoldOut:
    """Read the hold-out that the job names: at most ``evaluation.records``, evenly spread.

    Raises:
        InvalidInput: it is not there, is empty, or has a label outside the public set.
    """
    chosen = hold_out_records(job)
    examples = task_of(job).encode(adapter.tokenizer, chosen, job)
    return HoldOut(job, adapter, chosen, examples)


def hold_out_records(job: Job) -> list[Record]:
    """The records of ``load_hold_out``, which raises the same."""
    evaluation = job.evaluation
    records = load(evaluation.data, evaluation.split, job.hold_out_columns)
    if not records:
        raise InvalidInput(f"evaluation.data must have records, got none in {evaluation.data}")
    require_labels(records, job.data.labels, evaluation.data)
    keep = np.linspace(0, len(records) - 1, min(evaluation.records, len(records))).astype(int)
    return [records[i] for i in keep]
