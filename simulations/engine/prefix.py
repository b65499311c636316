"""What a record is below the first adapter, computed once: no site changes it, in any round.

Where adapters and heads are in a model's upper blocks alone, the hidden states that enter the first
block with one depend on the record and the frozen base. They are kept, and the blocks below are
passed over.

Not covered: models whose blocks hand more than hidden states upwards, or whose first trained tensor
is below the blocks: ``require_exact`` (simulations/engine/engine.py) tries the cache as it will be
used, and a model that it does not fit trains without.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import SelfCheckFailed
from common.privacy.memory import free_bytes
from common.tasks.batches import Batch, Example

_SHARE = 0.25  # of the memory that is free when the first states are kept


class _Reached(BaseException):
    """Ends a forward pass at the first block that trains."""


class Prefix:
    """The states that enter one block, by example.

    Args:
        blocks: the model's, of which the first ``count`` hold nothing that trains.
        count: how many are passed over.
    """

    def __init__(self, blocks: nn.ModuleList, count: int) -> None:
        self._blocks, self._count = blocks, count
        self._kept: dict[Example, Tensor] = {}
        self._room: int | None = None
        self._entering: Tensor | None = None

    def keep(self, model: nn.Module, batch: Batch, examples: Sequence[Example]) -> None:
        """Compute and keep the states of a batch's rows, as far as memory goes.

        Raises:
            SelfCheckFailed: the model's blocks are not called with hidden states.
        """
        if all(example in self._kept for example in examples):
            return
        states = self._states(model, batch)
        if self._room is None:
            self._room = int(_SHARE * free_bytes(states.device))
        for row, example in zip(states, examples, strict=True):
            own = row[: len(example.input_ids)].clone()
            if example not in self._kept and own.nbytes <= self._room:
                self._kept[example] = own
                self._room -= own.nbytes

    def _states(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T, D), what enters the first block that trains."""
        found: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            found.extend(arguments[:1])
            raise _Reached

        hook = self._blocks[self._count].register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        except _Reached:
            pass
        finally:
            hook.remove()
        if not found:
            raise SelfCheckFailed("blocks must be given their hidden states first, got none")
        return found[0]

    @contextmanager
    def entering(self, batch: Batch, examples: Sequence[Example]) -> Iterator[None]:
        """Let the blocks below be passed over where all of a batch's rows are kept."""
        if not all(example in self._kept for example in examples):
            yield
            return
        kept = [self._kept[example] for example in examples]
        states = kept[0].new_zeros(*batch.input_ids.shape, kept[0].shape[-1])
        for row, own in zip(states, kept, strict=True):
            row[: len(own)] = own

        def enter(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (states, *arguments[1:])

        below = list(self._blocks)[: self._count]
        hook = self._blocks[self._count].register_forward_pre_hook(enter)
        for block in below:
            block.forward = _pass
        try:
            yield
        finally:
            hook.remove()
            for block in below:
                del block.forward


def _pass(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return hidden


def prefix_of(model: nn.Module) -> Prefix | None:
    """The blocks of a model below everything that trains; ``None`` where there are none."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            trains = [any(p.requires_grad for p in block.parameters()) for block in module]
            if any(trains) and not trains[0]:
                return Prefix(module, trains.index(True))
    return None
