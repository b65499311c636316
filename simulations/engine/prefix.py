"""What a record is below the first adapter, computed once: no site changes it, in any round.

Where adapters and heads are in a model's upper blocks alone, the hidden states that enter the first
block with one depend on the record and the frozen base. They are kept, and the blocks below are
passed over.

Not covered: models whose blocks hand more than hidden states upwards, or whose first trained tensor
is below the blocks: ``require_exact`` (simulations/engine/engine.py) tries the cache as it will be
used, and a model that it does not fit trains without.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.errors import SelfCheckFailed
from common.privacy.memory import free_bytes
from common.tasks.batches import Batch, Example

_SHARE = 0.25  # of the memory that is free when the first states are kept


class _Reached(BaseException):
    """Ends a forward pass at the first block that trains."""


class States:
    """What enters one block, by example, as far as memory goes.

    Args:
        sharing: how many engines share this machine's memory.
    """

    def __init__(self, sharing: int = 1) -> None:
        self._sharing = sharing
        self._kept: dict[Example, Tensor] = {}
        self._room: int | None = None
        self._is_full = False

    def missing(self, examples: Sequence[Example]) -> list[Example]:
        """Those that are not kept and for which there may be room, each once."""
        if self._is_full:
            return []
        return list(dict.fromkeys(e for e in examples if e not in self._kept))

    def keep(self, example: Example, state: Tensor) -> None:
        """Keep a (T, D) state of an example's own tokens."""
        if self._room is None:
            self._room = int(_SHARE * free_bytes(state.device) / self._sharing)
        if state.nbytes > self._room:
            self._is_full = True
            return
        self._kept[example] = state.clone()
        self._room -= state.nbytes

    def find(self, examples: Sequence[Example]) -> list[Tensor] | None:
        """The states of these examples, or ``None`` where one is missing."""
        found = [self._kept.get(example) for example in examples]
        return None if any(state is None for state in found) else cast("list[Tensor]", found)


@lru_cache(maxsize=1)
def states_of(base_sha256: str, dtype: str, device: str, block: str, sharing: int) -> States:
    """The states that runs of this process share: those of the base and block that came last.

    A sweep's runs differ in what they train, and so in nothing below it.
    """
    return States(sharing)


class Prefix:
    """A model's blocks below the first that trains, and what comes out of them.

    Args:
        blocks: the model's, of which the first ``count`` hold nothing that trains.
        count: how many are passed over.
        states: those known before.
    """

    def __init__(self, blocks: nn.ModuleList, count: int, states: States) -> None:
        self._blocks, self._count, self._states = blocks, count, states

    def keep(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        batches: Callable[[Sequence[Example]], Iterable[tuple[Batch, list[int]]]],
    ) -> None:
        """Compute and keep what is not known yet of these examples, as far as memory goes.

        Args:
            model: the whole of it.
            examples: of a step.
            batches: of some of them, with each batch's places among them.

        Raises:
            SelfCheckFailed: the model's blocks are not called with hidden states.
        """
        missing = self._states.missing(examples)
        for batch, places in batches(missing):
            for row, place in zip(self._entered(model, batch), places, strict=True):
                example = missing[place]
                self._states.keep(example, row[: len(example.input_ids)])

    def _entered(self, model: nn.Module, batch: Batch) -> Tensor:
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
        kept = self._states.find(examples)
        if kept is None:
            yield
            return
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


def prefix_of(model: nn.Module, states: States | None = None) -> Prefix | None:
    """The blocks of a model below everything that trains; ``None`` where there are none."""
    block = first_trained(model)
    return None if block is None else Prefix(*block, states or States())


def first_trained(model: nn.Module) -> tuple[nn.ModuleList, int] | None:
    """A model's blocks and how many are below all that trains; ``None`` where none is.

    Where a head alone trains, all but the last are.
    """
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            trains = [any(p.requires_grad for p in block.parameters()) for block in module]
            if trains[0]:
                return None
            return module, trains.index(True) if any(trains) else len(module) - 1
    return None
