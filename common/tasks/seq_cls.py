"""Sequence classification: one label a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional

from common.data.records import Record
from common.errors import InvalidInput
from common.job import Job
from common.model import load_config
from common.tasks.batches import Batch, Example, padded_length
from common.tasks.metrics import ClassScore, Metrics


def load_base(folder: Path, job: Job) -> tuple[nn.Module, frozenset[str]]:
    """The base with a head of the job's labels, and the parameters it has no weights for."""
    from transformers import AutoModelForSequenceClassification

    dtype = getattr(torch, job.model.dtype)
    config = load_config(folder, num_labels=len(job.data.labels))
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=dtype,
        # bf16 on a CPU spends most of a step in SDPA's backward pass.
        attn_implementation="eager" if dtype is torch.bfloat16 else None,
        # A head of other labels than the job's counts as one that is not there.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    return model, frozenset(mismatched | set(info["missing_keys"]))


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
    return functional.cross_entropy(_logits(model, batch), batch.labels, reduction="none")


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """The likeliest label's index, (B,)."""
    return _logits(model, batch).argmax(dim=-1)


def probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Each label's probability, (B, L)."""
    return _logits(model, batch).softmax(dim=-1)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits.float()


def measure(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]
) -> Metrics:
    """Accuracy, and precision, recall and F1 of every label (0 where undefined)."""
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=range(len(labels)), zero_division=0.0
    )
    classes = tuple(
        ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, label in enumerate(labels)
    )
    return Metrics(float(np.mean(truth == predicted)), float(np.mean(f1)), classes)
