"""Rows of many sites in physical batches that waste little.

Rows are put together by length, whichever sites they are of, and a batch is as wide as its longest
row: a batch of one site's rows, or of sites side by side, would hold far more padding.

That is for simulations alone. A site pads a record by its own length, so that removing a record
leaves every other one's arithmetic as it was (common/tasks/batches.py).
"""

from collections.abc import Iterator, Sequence

import torch

from common.tasks.batches import Batch, Example, collate

_MULTIPLE = 4  # tokens; a row that is not aligned costs more than the padding


def shared_batches(
    examples: Sequence[Example],
    tokens: int,
    pad_id: int,
    device: torch.device,
    rows: int | None = None,
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of about ``tokens`` tokens with padding, longest rows first.

    Args:
        examples: of any sites.
        tokens: the most in a batch, unless one row alone has more.
        pad_id: what rows are padded with.
        device: where batches go.
        rows: the most in a batch, of which each has a gradient of its own; ``None`` for any number.

    Returns:
        Each batch with the places of its examples.
    """
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].input_ids))
    while order:
        width = row_width(examples[order[0]])
        count = max(1, min(tokens // width, len(order) if rows is None else rows))
        places, order = order[:count], order[count:]
        group = [examples[i] for i in places]
        yield collate(group, width, len(group), pad_id, device), places


def row_width(example: Example) -> int:
    """Tokens of a row as it is computed; never more than the record's own padded length."""
    tokens = max(1, len(example.input_ids))
    return min(-(-tokens // _MULTIPLE) * _MULTIPLE, max(example.padded_length, tokens))
