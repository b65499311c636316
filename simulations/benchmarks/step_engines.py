"""One training step by every engine, from the same model: forward, backward, clip, sum, AdamW.

``plain`` is PEFT without privacy. ``hooks``, ``functorch`` and ``ghost`` are Opacus as its own
documentation has it; ``ours`` and ``fused`` are common/privacy/persample.py. Each leaves the
gradient that AdamW saw in ``grad``: a sum over the batch, of clipped rows except for ``plain``.

Not included: noise, which every private engine needs alike and which is timed on its own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from common.privacy.clipping import LATTICE, clip_and_sum
from common.privacy.persample import flat_gradients, trainable


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded examples: ids and mask (n, T), labels (n,)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


Step = Callable[[TokenBatch], None]


def losses(model: nn.Module, batch: TokenBatch) -> Tensor:
    """The (n,) cross-entropies of a sequence classifier."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return functional.cross_entropy(logits.float(), batch.labels, reduction="none")


def make_step(engine: str, model: nn.Module, clip_norm: float) -> tuple[nn.Module, Step]:
    """A copy of ``model`` and a step that trains it by ``engine``, one of ``ENGINES``."""
    own = copy.deepcopy(model)
    return own, ENGINES[engine](own, clip_norm)


def summed_gradient(model: nn.Module) -> Tensor:
    """What the last step gave to AdamW, (P,) float32 in name order."""
    parameters = trainable(model).values()
    return torch.cat([p.grad.flatten().float() for p in parameters if p.grad is not None])


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(list(trainable(model).values()), lr=1e-3)


def _plain(model: nn.Module, clip_norm: float) -> Step:
    del clip_norm
    optimizer = _adamw(model)

    def step(batch: TokenBatch) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(losses(model, batch).sum())
        optimizer.step()

    return step


def _opacus(model: nn.Module, clip_norm: float, *, use_functorch: bool) -> Step:
    wrapped = GradSampleModule(model, loss_reduction="sum", force_functorch=use_functorch)
    optimizer = DPOptimizer(
        _adamw(model),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )

    def step(batch: TokenBatch) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(losses(wrapped, batch).sum())
        optimizer.step()

    return step


def _ghost(model: nn.Module, clip_norm: float) -> Step:
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=clip_norm, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        _adamw(model),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )

    def step(batch: TokenBatch) -> None:
        optimizer.zero_grad()
        loss = DPTensorFastGradientClipping(wrapped, optimizer, losses(wrapped, batch), "sum")
        loss.backward()
        optimizer.step()

    return step


def _native(model: nn.Module, clip_norm: float, *, fused: bool) -> Step:
    optimizer = _adamw(model)

    def step(batch: TokenBatch) -> None:
        rows = flat_gradients(model, lambda: losses(model, batch), fused=fused)
        total = clip_and_sum(rows, clip_norm).double() * (clip_norm / LATTICE)
        parameters = trainable(model).values()
        sizes = [p.numel() for p in parameters]
        for parameter, part in zip(parameters, torch.split(total, sizes), strict=True):
            parameter.grad = part.to(parameter.dtype).view_as(parameter)
        optimizer.step()

    return step


ENGINES: dict[str, Callable[[nn.Module, float], Step]] = {
    "plain": _plain,
    "hooks": lambda model, clip_norm: _opacus(model, clip_norm, use_functorch=False),
    "functorch": lambda model, clip_norm: _opacus(model, clip_norm, use_functorch=True),
    "ghost": _ghost,
    "ours": lambda model, clip_norm: _native(model, clip_norm, fused=False),
    "fused": lambda model, clip_norm: _native(model, clip_norm, fused=True),
}
