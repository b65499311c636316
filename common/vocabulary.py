"""Whether every token and every length that a job can bring has its place in the base.

Base and tokenizer come from whoever wrote the job. A token without a row of the embedding, or a
text longer than the positions, ends a round in an error: that it did would tell, without noise,
that a certain text was sampled. So what a job brings is compared with the base before any record
is read, and every encoded record again before any round.

Not covered: an error that depends on a record in another way; a site answers it in fixed words.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InvalidInput
from common.tasks.batches import Batch, Example, physical_batches

Losses = Callable[[nn.Module, Batch], Tensor]


def require_places(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 -- transformers is untyped
    losses: Losses,
    example: Callable[[tuple[int, ...]], Example],
    max_length: int,
) -> None:
    """Check that the base has a row for every id of its tokenizer and takes the longest text.

    Args:
        model: the base with its adapter, still on the CPU: an index beyond a table raises there,
            where it would leave a GPU unusable for this process.
        tokenizer: the base's; what it puts around a text is looked at as well.
        losses: the task's; a text of ``max_length`` goes through it once.
        example: makes one of token ids.
        max_length: the most tokens of a text.

    Raises:
        InvalidInput: it has not, or does not.
    """
    around = tokenizer("a", truncation=True, max_length=max_length)["input_ids"]
    pad_id = int(tokenizer.pad_token_id or 0)
    ids, rows = [*tokenizer.get_vocab().values(), *around, pad_id], rows_of(model)
    if not (min(ids) >= 0 and max(ids) < rows):
        raise InvalidInput(
            f"model.base must have an embedding for each of its tokenizer's ids, got {rows} for "
            f"{min(ids)} to {max(ids)}"
        )
    # Not of the padding id, from which some bases count no positions.
    longest = example((int(pad_id == 0),) * max_length)
    (batch,) = physical_batches([longest], 1, pad_id, torch.device("cpu"))
    try:
        with torch.no_grad():
            losses(model, batch)
    except (IndexError, RuntimeError, ValueError) as error:
        raise InvalidInput(
            f"model.max_length must be a length that the base takes, got {max_length}"
        ) from error


def require_known(examples: Iterable[Example], model: nn.Module, max_length: int) -> None:
    """Check encoded records against the base once more.

    Raises:
        InvalidInput: an id without a row, or a record that is too long. Sensitive.
    """
    rows = rows_of(model)
    for example in examples:
        if not all(0 <= number < rows for number in example.input_ids):
            raise InvalidInput(f"tokens must have one of the {rows} embeddings, got others")
        if not len(example.input_ids) <= example.padded_length <= max_length:
            raise InvalidInput(f"tokens of a text must be at most {max_length}, got more")


def rows_of(model: nn.Module) -> int:
    """How many tokens a base knows."""
    wrapped: Any = model
    base = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    return int(base.get_input_embeddings().weight.shape[0])
