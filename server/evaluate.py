"""Evaluation of the global adapter on the job's public hold-out, at the server.

No site is asked: a metric of private records would be a release.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.adapter import LoadedAdapter, Vector, write_vector
from common.data.catalogue import load
from common.data.records import ColumnMap, require_labels
from common.errors import InvalidInput
from common.job import Job
from common.tasks import task_of
from common.tasks.batches import Example, physical_batches
from common.tasks.metrics import Metrics

_BATCH = 64


@dataclass(frozen=True)
class HoldOut:
    """The encoded public records and the model that predicts them."""

    job: Job
    adapter: LoadedAdapter
    examples: Sequence[Example]

    def evaluate(self, vector: Vector) -> Metrics:
        """Metrics of the adapter ``vector``, (P,)."""
        task, model = task_of(self.job), self.adapter.model.eval()
        write_vector(model, vector)
        truth: list[int] = []
        predicted: list[int] = []
        with torch.inference_mode():
            for batch in physical_batches(
                self.examples, _BATCH, self.adapter.pad_id, self.adapter.device
            ):
                truth += batch.labels.tolist()
                predicted += task.predict(model, batch).tolist()
        return task.measure(np.array(truth), np.array(predicted), self.job.data.labels)


def load_hold_out(job: Job, adapter: LoadedAdapter) -> HoldOut:
    """Read the hold-out that the job names: at most ``evaluation.records``, evenly spread.

    Raises:
        InvalidInput: it is not there, is empty, or has a label outside the public set.
    """
    evaluation = job.evaluation
    columns = ColumnMap(text=evaluation.text, label=evaluation.label)
    records = load(evaluation.data, evaluation.split, columns)
    if not records:
        raise InvalidInput(f"evaluation.data must have records, got none in {evaluation.data}")
    require_labels(records, job.data.labels, evaluation.data)
    keep = np.linspace(0, len(records) - 1, min(evaluation.records, len(records))).astype(int)
    chosen = [records[i] for i in keep]
    return HoldOut(job, adapter, task_of(job).encode(adapter.tokenizer, chosen, job))
