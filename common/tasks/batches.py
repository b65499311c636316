"""Examples and the physical batches that carry them.

A record's padded length follows from that record alone (its own token count, rounded up), and a
batch holds one padded length only: with lengths set by the longest neighbour, removing a record
would change the arithmetic of the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH_STEP = 16


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded record. Sensitive."""

    input_ids: tuple[int, ...]
    label: int
    padded_length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one padded length, on a device. Sensitive."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    labels: Tensor  # (B,)


def padded_length(tokens: int, max_length: int) -> int:
    """The record's own token count rounded up to a multiple of 16, at most ``max_length``."""
    return min(-(-max(tokens, 1) // LENGTH_STEP) * LENGTH_STEP, max_length)


def physical_batches(
    examples: Sequence[Example], size: int, pad_id: int, device: torch.device
) -> Iterator[Batch]:
    """Group ``examples`` by padded length into batches of at most ``size``."""
    by_length: dict[int, list[Example]] = {}
    for example in examples:
        by_length.setdefault(example.padded_length, []).append(example)
    for length, group in sorted(by_length.items()):
        for start in range(0, len(group), size):
            yield _collate(group[start : start + size], length, pad_id, device)


def _collate(group: Sequence[Example], length: int, pad_id: int, device: torch.device) -> Batch:
    ids = torch.full((len(group), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(group), length), dtype=torch.long)
    for row, example in enumerate(group):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    labels = torch.tensor([example.label for example in group])
    return Batch(ids.to(device), mask.to(device), labels.to(device))
