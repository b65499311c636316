"""Sequence classification: one label a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional

from common.data.records import Record
from common.errors import InvalidInput
from common.job import Job
from common.tasks.batches import Batch, Example, padded_length
from common.tasks.guess import Guess
from common.tasks.loading import load_with_head
from common.tasks.logits import logits
from common.tasks.metrics import ClassScore, Metrics


def load_base(folder: Path, job: Job) -> tuple[nn.Module, frozenset[str]]:
    """The base with a head of the job's labels, and the parameters it has no weights for."""
    from transformers import AutoModelForSequenceClassification

    return load_with_head(AutoModelForSequenceClassification, folder, job)


def encode(tokenizer: Any, records: Sequence[Record], job: Job) -> list[Example]:  # noqa: ANN401
    """Token ids cut at ``model.max_length`` and the index of the label.

    Raises:
        InvalidInput: a label outside the job's public set.
    """
    index = {label: i for i, label in enumerate(job.data.labels)}
    unknown = sum(record.label not in index for record in records)
    if unknown:
        raise InvalidInput(
            f"labels must be in the job's public set of {len(index)}, "
            f"got {unknown} records with others"
        )
    if not records:
        return []
    limit = job.model.max_length
    ids = tokenizer([r.text for r in records], truncation=True, max_length=limit)["input_ids"]
    return [
        Example(tuple(row), index[record.label], padded_length(len(row), limit))
        for row, record in zip(ids, records, strict=True)
    ]


def per_example_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each example, (B,): never a mean over the batch."""
    return functional.cross_entropy(logits(model, batch), batch.labels, reduction="none")


def measure(
    records: Sequence[Record], examples: Sequence[Example], predicted: Sequence[Any], job: Job
) -> Metrics:
    """Accuracy, and precision, recall and F1 of every label (0 where undefined)."""
    truth = np.array([example.label for example in examples])
    found = np.array(predicted)
    labels = job.data.labels
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, found, labels=range(len(labels)), zero_division=0.0
    )
    classes = tuple(
        ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, label in enumerate(labels)
    )
    return Metrics(float(np.mean(f1)), classes, accuracy=float(np.mean(truth == found)))


def public_example(ids: tuple[int, ...], seed: int, length: int, job: Job) -> Example:
    """An example of public tokens; its label follows from ``seed``."""
    return Example(ids, seed % len(job.data.labels), length)


def question(text: str, job: Job) -> Record:
    """A text whose label is asked for."""
    return Record(text, job.data.labels[0])


def answer(record: Record, example: Example, probabilities: Tensor, job: Job) -> list[Guess]:
    """Every label with its probability, (L,), best first."""
    pairs = zip(job.data.labels, probabilities.tolist(), strict=True)
    return [Guess(label, p) for label, p in sorted(pairs, key=lambda pair: -pair[1])]
