"""The engine as a grid uses it: checked once, then a round's sites in cohorts of the right size."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import structlog
import torch

from client.train import Trainer
from common.adapter import Vector
from common.errors import SelfCheckFailed
from common.tasks import task_of
from common.tasks.batches import Example, padded_length
from simulations.engine.cohort import Cohort, Lane, train_cohort
from simulations.engine.prefix import Prefix, States, first_trained, prefix_of, states_of
from simulations.engine.size import Shape, shape_of, sites_at_once

log = structlog.get_logger(__name__)

_OFFSET = 0.05  # away from the start, where B is zero and A has no gradient
_LENGTHS = (3, 17, 9, 6)
# Of the largest number in a row: float32 in another order; bf16 through all layers.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 0.2}


class Engine:
    """Trains sites of one job.

    Args:
        tokens: of a physical batch; ``None`` for what this machine does best.
        at_once: sites of a cohort; ``None`` for as many as memory and batch allow.
        sharing: how many engines share this machine's memory.
    """

    def __init__(
        self, *, tokens: int | None = None, at_once: int | None = None, sharing: int = 1
    ) -> None:
        self._tokens, self._at_once, self._sharing = tokens, at_once, sharing
        self._shape: Shape | None = None
        self._prefix: Prefix | None = None

    def train(self, lanes: Sequence[Lane], start: Vector, round_: int) -> Iterator[Vector]:
        """Each site's change of a round, in the order of ``lanes``; arguments as ``train_cohort``.

        Raises:
            SelfCheckFailed: on this model rows of several sites are not what each site would train.
            InvalidInput: a layer trains that cannot be stacked.
        """
        trainers = [lane.trainer for lane in lanes]
        if self._shape is None:
            self._prefix = checked_prefix(trainers[0], self._sharing)
            self._shape = shape_of(trainers[0], self._sharing, tokens=self._tokens)
        shape = self._shape
        count = self._at_once or sites_at_once(trainers, shape, round_, self._sharing)
        for first in range(0, len(lanes), count):
            part = lanes[first : first + count]
            yield from train_cohort(
                part, start, round_, tokens=shape.tokens, rows=shape.rows, prefix=self._prefix
            )


def checked_prefix(trainer: Trainer, sharing: int = 1) -> Prefix | None:
    """What may be kept below the first adapter, once it is known that it changes nothing.

    Raises:
        SelfCheckFailed: as ``require_exact``, also with nothing kept.
    """
    require_exact(trainer)
    if prefix_of(trainer.adapter.model) is None:
        return None
    try:
        require_exact(trainer, prefix_of(trainer.adapter.model))
    # The last three: what a model says whose blocks take or give something else.
    except (SelfCheckFailed, RuntimeError, TypeError, ValueError) as error:
        log.info("nothing kept below the first adapter", error=type(error).__name__)
        return None
    return prefix_of(trainer.adapter.model, _known_states(trainer, sharing))


def _known_states(trainer: Trainer, sharing: int) -> States | None:
    """What earlier runs of this process kept of the same base below the same block."""
    block = first_trained(trainer.adapter.model)
    if block is None:
        return None
    blocks, count = block
    dtype, device = str(_dtype(trainer)), str(trainer.adapter.device)
    place = f"{count} of {len(blocks)}"
    return states_of(trainer.job.model.sha256, dtype, device, place, sharing)


def require_exact(trainer: Trainer, prefix: Prefix | None = None) -> None:
    """Check that two sites' public rows, mixed, have the gradients that each has by itself.

    Raises:
        SelfCheckFailed: they have not: the model looks across the rows of a batch, or trains in
            another way than the engine takes it.
    """
    initial = trainer.adapter.initial
    draw = np.random.Generator(np.random.PCG64(3))
    start = initial + (_OFFSET * draw.standard_normal(initial.size)).astype(np.float32)
    for round_ in trainer.adapter.layout.rounds:
        one = replace(trainer, rank=None, round=round_, rows=len(_LENGTHS), units=())
        examples = [_example(one, place) for place in range(len(_LENGTHS))]
        one.begin(start)
        mechanism = replace(one.mechanism, unit_cap=None)  # a row is a record's
        alone = replace(one, mechanism=mechanism)
        expected = torch.cat(list(alone.unit_gradients([[e] for e in examples])))
        found = torch.zeros_like(expected)
        cohort = Cohort([Lane(one), Lane(one)], start, round_, 1 << 20, prefix)
        for gradients, places in cohort.gradients(examples, [0, 1, 1, 0]):
            found[places] = gradients
        # ``unit_gradients`` has them by padded length, and shorter rows first.
        order = sorted(range(len(examples)), key=lambda i: examples[i].padded_length)
        _require_close(found[order], expected, _dtype(trainer))
    trainer.adapter.write(initial)


def _require_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE[dtype]:
        raise SelfCheckFailed(
            f"gradients of stacked sites must be within {_TOLERANCE[dtype]:g} of each site's own, "
            f"got a difference of {difference:g} (--grid inprocess takes this model)"
        )


def _dtype(trainer: Trainer) -> torch.dtype:
    """The coarsest that the base has."""
    dtypes = {p.dtype for p in trainer.adapter.model.parameters()} & _TOLERANCE.keys()
    return max(dtypes, key=_TOLERANCE.__getitem__)


def _example(trainer: Trainer, place: int) -> Example:
    job, adapter = trainer.job, trainer.adapter
    known = min(len(adapter.tokenizer), adapter.model.get_input_embeddings().num_embeddings)
    count = min(_LENGTHS[place], job.model.max_length)
    ids = tuple((place * 7919 + 31 * i + 1) % known for i in range(count))
    length = padded_length(count, job.model.max_length)
    return task_of(job).public_example(ids, place, length, job)
