"""A site's local training: some steps of DP-SGD from the round's global adapter.

The optimiser's state is fresh each round and every step costs the same, whatever the batch: an
empty one releases noise too. Physical batches have a fixed shape, units that do not fit memory at
once come one part after the other, and none is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor, nn

from common.adapter import LoadedAdapter, Vector, read_vector
from common.data.records import Record
from common.job import Job, TrainingSection
from common.layout import Trained
from common.privacy.mechanism import Mechanism
from common.privacy.persample import flat_gradients, trainable
from common.tasks.batches import Batch, Example, fixed_batches


@dataclass(frozen=True)
class Trainer:
    """A job made ready at a site.

    Attributes:
        job: its constants.
        adapter: the base with the adapter, and its tokenizer.
        units: the site's encoded records, by privacy unit. Sensitive.
        mechanism: what bounds and hides them.
        losses: (model, batch) -> (B,), each from its own example alone.
        rows: rows of a physical batch, and units of several records that are in memory at once.
        engine: how per-sample gradients are computed; changes nothing but speed.
        fused: whether the native engine runs a LoRA layer as one operation.
        rank: of this site's adapter; ``None`` for the job's.
        round: whose tensors are trained, where the method does not always train the same.
        held: units that are counted and train nothing, where the job has counts. Sensitive.
    """

    job: Job
    adapter: LoadedAdapter
    units: Sequence[Sequence[Example]]
    mechanism: Mechanism
    losses: Callable[[nn.Module, Batch], Tensor]
    rows: int
    engine: str = "native"
    fused: bool = False
    held: Sequence[Sequence[tuple[Record, Example]]] = ()
    rank: int | None = None
    round: int = 1

    def trained(self, round_: int) -> Trained:
        """What this site trains in a round, P numbers."""
        return self.adapter.layout.trained(round_, self.rank)

    def train_round(self, start: Vector, round_: int) -> Vector:
        """Take the round's steps from the state ``start``; the (P,) change, which may leave."""
        if round_ != self.round:
            return replace(self, round=round_).train_round(start, round_)
        model, trained = self.begin(start), self.trained(round_)
        optimizer = optimizer_of(trainable(model).values(), self.job.training)
        anchor = _anchor(model, self.job)
        for step in range(self.job.training.local_steps):
            _set_gradient(model, self.release(round_, step), trained)
            anchor()
            optimizer.step()
        after = read_vector(model)
        kept = after if trained.within is None else after[trained.within]
        change: Vector = kept - start[trained.places]
        self.adapter.write(start)
        return change

    def begin(self, start: Vector) -> PeftModel:
        """The model at ``start``, ready for the gradients of this trainer's round."""
        model = self.adapter.model.train()
        self.adapter.write(self.adapter.layout.cut(start, self.rank))
        self.adapter.begin(self.round)
        return model

    def release(self, round_: int, step: int) -> Tensor:
        """The noised gradient of a step, (P,) float32, at the model's present state."""
        chosen = self.mechanism.sample(self.units, round_, step)
        return self.mechanism.release(self.bounded_sum(chosen), round_, step)

    def bounded_sum(self, units: Sequence[Sequence[Example]]) -> Tensor:
        """What the mechanism makes of the gradients of ``units``, (P,). Sensitive."""
        total = self.mechanism.zero(self.trained(self.round).size, self.adapter.device)
        for gradients in self.unit_gradients(units):
            total += self.mechanism.bounded_sum(gradients)
        return total

    def unit_gradients(self, units: Sequence[Sequence[Example]]) -> Iterator[Tensor]:
        """The gradient of each unit, the sum over its records, in parts of (n, P). Sensitive."""
        if self.mechanism.unit_cap is None:
            records = [example for unit in units for example in unit]
            for gradients, _ in self._record_gradients(records):
                yield gradients
            return
        for first in range(0, len(units), self.rows):
            yield self._summed(units[first : first + self.rows])

    def _summed(self, units: Sequence[Sequence[Example]]) -> Tensor:
        owners = [owner for owner, unit in enumerate(units) for _ in unit]
        records = [example for unit in units for example in unit]
        size, device = self.trained(self.round).size, self.adapter.device
        dtypes = {p.dtype for p in trainable(self.adapter.model).values()}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32  # as their buffer is
        sums = torch.zeros((len(units), size), dtype=dtype, device=device)
        for gradients, places in self._record_gradients(records):
            for place, gradient in zip(places, gradients, strict=True):
                sums[owners[place]] += gradient  # one by one, so that the order is always the same
        return sums

    def _record_gradients(self, records: Sequence[Example]) -> Iterator[tuple[Tensor, list[int]]]:
        model, within = self.adapter.model, self.trained(self.round).within
        for batch, places in fixed_batches(
            records, self.rows, self.adapter.pad_id, self.adapter.device
        ):
            gradients = flat_gradients(
                model,
                lambda batch=batch: self.losses(model, batch),  # type: ignore[misc]
                engine=self.engine,
                fused=self.fused,
            )
            own = gradients[: len(places)]
            yield own if within is None else own[:, torch.from_numpy(within)], places


def optimizer_of(
    parameters: Iterable[nn.Parameter], training: TrainingSection, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The job's local optimiser, with no state yet; ``fused`` takes one pass over memory."""
    if training.optimizer == "adamw":
        return torch.optim.AdamW(
            list(parameters),
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        list(parameters),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=fused,
    )


def _set_gradient(model: nn.Module, gradient: Tensor, trained: Trained) -> None:
    parameters = trainable(model)
    if trained.within is not None:  # what this site has not, it never moves
        own, size = gradient, sum(p.numel() for p in parameters.values())
        gradient = own.new_zeros(size)
        gradient[torch.from_numpy(trained.within)] = own
    offset = 0
    for parameter in parameters.values():
        part = gradient[offset : offset + parameter.numel()]
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
        offset += parameter.numel()


def _anchor(model: nn.Module, job: Job) -> Callable[[], None]:
    """Draws each step back to where the round began, by ``proximal_mu``, or does nothing.

    FedProx (Li et al. 2020, https://arxiv.org/abs/1812.06127): mu/2 |w - w_0|^2 beside the loss. It
    knows no record, so it comes after clip and noise.
    """
    mu = job.training.proximal_mu or 0.0
    starts = {p: p.detach().clone() for p in trainable(model).values()} if mu else {}

    def draw() -> None:
        for parameter, start in starts.items():
            if parameter.grad is not None:
                parameter.grad = parameter.grad + mu * (parameter.detach() - start)

    return draw
