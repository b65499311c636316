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
IGNORED = -100  # the label of a token that no loss is taken of; torch's own default


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded record. Sensitive.

    Attributes:
        input_ids: its tokens.
        label: its label's index; in a token task one for each token, ``IGNORED`` where none counts.
        padded_length: tokens with padding.
        words: in a token task, for each token that counts the place of its word in the record.
    """

    input_ids: tuple[int, ...]
    label: int | tuple[int, ...]
    padded_length: int
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one padded length, on a device. Sensitive."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    labels: Tensor  # (B,), in a token task (B, T)


def padded_length(tokens: int, max_length: int) -> int:
    """The record's own token count rounded up to a multiple of 16, at most ``max_length``."""
    return min(-(-max(tokens, 1) // LENGTH_STEP) * LENGTH_STEP, max_length)


def physical_batches(
    examples: Sequence[Example], size: int, pad_id: int, device: torch.device
) -> Iterator[Batch]:
    """Group ``examples`` by padded length into batches of at most ``size``."""
    for batch, _ in placed_batches(examples, size, pad_id, device):
        yield batch


def placed_batches(
    examples: Sequence[Example], size: int, pad_id: int, device: torch.device
) -> Iterator[tuple[Batch, list[int]]]:
    """The same batches, each with the places of its examples."""
    for length, places in _groups(examples, size):
        group = [examples[i] for i in places]
        yield collate(group, length, len(places), pad_id, device), places


def fixed_batches(
    examples: Sequence[Example], rows: int, pad_id: int, device: torch.device
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of exactly ``rows`` rows, each with the places of the examples in its first ones.

    A matrix product may add up in another order when it has another number of rows, so a batch
    that shrank with a record would change the others' last bits. Rows that no example fills hold
    one padding token; whoever takes the batch drops what they give.
    """
    for length, places in _groups(examples, rows):
        yield collate([examples[i] for i in places], length, rows, pad_id, device), places


def _groups(examples: Sequence[Example], size: int) -> Iterator[tuple[int, list[int]]]:
    by_length: dict[int, list[int]] = {}
    for place, example in enumerate(examples):
        by_length.setdefault(example.padded_length, []).append(place)
    for length, places in sorted(by_length.items()):
        for start in range(0, len(places), size):
            yield length, places[start : start + size]


def collate(
    group: Sequence[Example], length: int, rows: int, pad_id: int, device: torch.device
) -> Batch:
    """The examples as the first rows of a batch, (rows, length); the other rows hold padding.

    Args:
        group: one example or more, none of more than ``length`` tokens.
        length: tokens of every row.
        rows: as many as there are examples, or more.
        pad_id: what rows are padded with.
        device: where the batch goes.
    """
    ids = torch.full((rows, length), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, length), dtype=torch.long)
    mask[len(group) :, 0] = 1  # attention over nothing is not a number
    for row, example in enumerate(group):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        mask[row, : len(example.input_ids)] = 1
    return Batch(ids.to(device), mask.to(device), _labels(group, length, rows).to(device))


def _labels(group: Sequence[Example], length: int, rows: int) -> Tensor:
    """(rows,), or (rows, length) where examples have a label for each token."""
    by_token = isinstance(group[0].label, tuple)
    shape, blank = ((rows, length), IGNORED) if by_token else ((rows,), 0)
    labels = torch.full(shape, blank, dtype=torch.long)
    for row, example in enumerate(group):
        if isinstance(example.label, tuple):
            labels[row, : len(example.label)] = torch.tensor(example.label)
        else:
            labels[row] = example.label
    return labels
