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
    for length, places in _groups(examples, size):
        yield _collate([examples[i] for i in places], length, len(places), pad_id, device)


def fixed_batches(
    examples: Sequence[Example], rows: int, pad_id: int, device: torch.device
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of exactly ``rows`` rows, each with the places of the examples in its first ones.

    A matrix product may add up in another order when it has another number of rows, so a batch
    that shrank with a record would change the others' last bits. Rows that no example fills hold
    one padding token; whoever takes the batch drops what they give.
    """
    for length, places in _groups(examples, rows):
        yield _collate([examples[i] for i in places], length, rows, pad_id, device), places


def _groups(examples: Sequence[Example], size: int) -> Iterator[tuple[int, list[int]]]:
    by_length: dict[int, list[int]] = {}
    for place, example in enumerate(examples):
        by_length.setdefault(example.padded_length, []).append(place)
    for length, places in sorted(by_length.items()):
        for start in range(0, len(places), size):
            yield length, places[start : start + size]


def _collate(
    group: Sequence[Example], length: int, rows: int, pad_id: int, device: torch.device
) -> Batch:
    ids = torch.full((rows, length), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, length), dtype=torch.long)
    mask[len(group) :, 0] = 1  # attention over nothing is not a number
    labels = torch.zeros(rows, dtype=torch.long)
    for row, example in enumerate(group):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
        labels[row] = example.label
    return Batch(ids.to(device), mask.to(device), labels.to(device))
