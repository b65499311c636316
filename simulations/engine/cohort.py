"""A round of K simulated sites at once: what ``Trainer.train_round`` does at each of them.

Sampling, clipping and noise are each site's own mechanism with its own keys, so that who else is in
the cohort changes nothing but rounding.

Not covered: a scenario in which sites take uneven steps. ``Lane.steps`` is for those who call the
engine themselves; a job has one number for all its sites, and a server uses no update of another.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from client.train import Trainer, optimizer_of
from common.adapter import Vector
from common.privacy.buffer import Buffer
from common.privacy.clipping import lattice_factors
from common.privacy.persample import trainable
from common.tasks.batches import Batch, Example
from simulations.engine.layers import stacked
from simulations.engine.prefix import Prefix
from simulations.engine.rows import shared_batches
from simulations.engine.stack import Rows, Stack

DEFAULT_TOKENS = 4096


@dataclass(frozen=True)
class Lane:
    """One site of a cohort.

    Attributes:
        trainer: its units, mechanism and rank, as it would train by itself. Sensitive.
        steps: how many it takes; ``None`` for as many as the job says.
        site: its name, where another process finds it by that.
    """

    trainer: Trainer
    steps: int | None = None
    site: str = ""

    @property
    def planned(self) -> int:
        """Steps of the round."""
        return self.trainer.job.training.local_steps if self.steps is None else self.steps


def train_cohort(
    lanes: Sequence[Lane],
    start: Vector,
    round_: int,
    *,
    tokens: int = DEFAULT_TOKENS,
    rows: int | None = None,
    prefix: Prefix | None = None,
) -> list[Vector]:
    """What ``Trainer.train_round`` gives at each site, in the order of ``lanes``.

    Args:
        lanes: of one job and one model.
        start: (P,) the state that all begin with.
        round_: which one.
        tokens: the most in a physical batch.
        rows: likewise; ``None`` for as many as have so many tokens.
        prefix: keeps what a record is below the first adapter; ``None`` to compute it each time.

    Returns:
        The change of each, (P_k,) float32.

    Raises:
        InvalidInput: a layer trains that cannot be stacked.
    """
    if not lanes:
        return []
    # Sites that finish first are last, so that those which go on are always the first rows.
    order = sorted(range(len(lanes)), key=lambda i: -lanes[i].planned)
    cohort = Cohort([lanes[i] for i in order], start, round_, tokens, prefix, rows)
    changes = dict(zip(order, cohort.train(), strict=True))
    return [changes[i] for i in range(len(lanes))]


class Cohort:
    """The state of a round under way, sites of most steps first; arguments as ``train_cohort``."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        start: Vector,
        round_: int,
        tokens: int,
        prefix: Prefix | None = None,
        rows: int | None = None,
    ) -> None:
        self._lanes, self._start, self._round = lanes, start, round_
        self._tokens, self._most_rows, self._prefix = tokens, rows, prefix
        first = lanes[0].trainer
        self._adapter = first.adapter
        self._model = replace(first, rank=None, round=round_).begin(start)
        parameters = trainable(self._model)
        self._trained = [lane.trainer.trained(round_) for lane in lanes]
        self._stack = Stack(parameters, [trained.within for trained in self._trained])
        self._rows = Rows(self._stack, Buffer(parameters))
        values = self._stack.values
        # Whole lattice units are added up exactly in float64. Made once: new memory is slow memory.
        exact = values.dtype if first.mechanism.clip_norm is None else torch.float64
        self._totals = torch.zeros_like(values, dtype=exact)
        self._gradient = torch.zeros_like(values)

    def train(self) -> list[Vector]:
        """Take all steps of the round; each site's change, (P_k,) float32."""
        steps, training = (
            [lane.planned for lane in self._lanes],
            self._lanes[0].trainer.job.training,
        )
        values = self._stack.values
        groups = _groups(values, steps)
        optimizer = optimizer_of(groups, training, fused=True)
        mu, anchor = training.proximal_mu or 0.0, values.clone() if training.proximal_mu else values
        with stacked(self._model, self._rows):
            for step in range(steps[0]):
                active = sum(planned > step for planned in steps)
                gradient = self._released(active, step)
                if mu:  # as client/train.py has it: after clip and noise, as it knows no record
                    gradient += mu * (values[:active] - anchor[:active])
                _set_gradients(groups, gradient)
                optimizer.step()
        self._adapter.write(self._start)
        return [self._change(place) for place in range(len(self._lanes))]

    def gradients(
        self, examples: Sequence[Example], sites: Sequence[int]
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Gradients of rows of these sites at the start, (n, P), with the examples' places.

        Each part holds until the next is asked for. Sensitive.
        """
        with stacked(self._model, self._rows):
            yield from self._row_gradients(examples, sites)

    def _change(self, place: int) -> Vector:
        after = self._stack.take(self._stack.values, place).float().cpu().numpy()
        change: Vector = after - self._start[self._trained[place].places]
        return change

    def _released(self, active: int, step: int) -> Tensor:
        """The noised gradient of each site that goes on, (active, P)."""
        chosen = [
            lane.trainer.mechanism.sample(lane.trainer.units, self._round, step)
            for lane in self._lanes[:active]
        ]
        totals = self._bounded_sums(chosen)
        gradient = self._gradient[:active]
        for place, lane in enumerate(self._lanes[:active]):
            total = self._stack.take(totals, place)
            released = lane.trainer.mechanism.release(total, self._round, step)
            self._stack.put(gradient, place, released)
        return gradient

    def _bounded_sums(self, chosen: Sequence[Sequence[Sequence[Example]]]) -> Tensor:
        """The bounded sum of each site's units, (active, P); lattice units with privacy. Sensitive.

        Args:
            chosen: of each site the units of the step, each the records that it sees.
        """
        totals, mechanism = self._totals[: len(chosen)].zero_(), self._lanes[0].trainer.mechanism
        owners = [site for site, units in enumerate(chosen) for _ in units]
        units = [unit for of_site in chosen for unit in of_site]
        if mechanism.unit_cap is None:
            for gradients, places in self._row_gradients([unit[0] for unit in units], owners):
                _add(totals, gradients, [owners[i] for i in places], mechanism.clip_norm)
        else:
            _add(totals, self._unit_gradients(units, owners), owners, mechanism.clip_norm)
        return totals

    def _unit_gradients(self, units: Sequence[Sequence[Example]], owners: Sequence[int]) -> Tensor:
        """The gradient of each unit, the sum over its records, (units, P). Sensitive."""
        buffer = self._rows.buffer
        sums = torch.zeros(len(units), buffer.size, dtype=buffer.dtype, device=buffer.device)
        of_unit = [place for place, unit in enumerate(units) for _ in unit]
        records = [example for unit in units for example in unit]
        for gradients, places in self._row_gradients(records, [owners[u] for u in of_unit]):
            to = torch.tensor([of_unit[i] for i in places], device=sums.device)
            sums.index_add_(0, to, gradients)
        return sums

    def _batches(self, examples: Sequence[Example]) -> Iterator[tuple[Batch, list[int]]]:
        adapter, rows = self._adapter, self._most_rows
        return shared_batches(examples, self._tokens, adapter.pad_id, adapter.device, rows)

    def _below(self, batch: Batch, examples: Sequence[Example]) -> AbstractContextManager[None]:
        return nullcontext() if self._prefix is None else self._prefix.entering(batch, examples)

    def _row_gradients(
        self, examples: Sequence[Example], sites: Sequence[int]
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Gradients of rows, (n, P), with the places of their examples. Sensitive."""
        losses = self._lanes[0].trainer.losses
        if self._prefix is not None:
            self._prefix.keep(self._model, examples, self._batches)
        for batch, places in self._batches(examples):
            self._rows.open([sites[i] for i in places])
            with self._below(batch, [examples[i] for i in places]):
                found = losses(self._model, batch)
                # Each by itself: a sum would carry a loss that is not finite into the others.
                torch.autograd.backward(found, torch.ones_like(found))
            yield self._rows.close(), places


def _groups(values: Tensor, steps: Sequence[int]) -> list[nn.Parameter]:
    """Sites of equal steps as one parameter each, whose optimiser state stops with them."""
    groups, first = [], 0
    for end in range(1, len(steps) + 1):
        if end == len(steps) or steps[end] != steps[first]:
            groups.append(nn.Parameter(values[first:end]))
            first = end
    return groups


def _set_gradients(groups: Sequence[nn.Parameter], gradient: Tensor) -> None:
    """Give each group its part of (active, P); a group that has finished gets none, and stays."""
    first = 0
    for group in groups:
        part = gradient[first : first + len(group)]
        group.grad = part if len(part) else None
        first += len(group)


def _add(totals: Tensor, rows: Tensor, sites: Sequence[int], clip_norm: float | None) -> None:
    """Add (n, P) unit gradients to their sites' sums; clipped, in lattice units, with privacy."""
    if clip_norm is None:
        for row, site in zip(rows, sites, strict=True):
            totals[site] += row
        return
    factors = lattice_factors(rows, clip_norm)
    for row, factor, site in zip(rows, factors, sites, strict=True):
        totals[site] += row.mul_(factor).round_()
