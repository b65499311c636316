"""Layers that take each row's own site's tensors, and write each row's gradient into a buffer.

A plain LoRA layer is one autograd step, y = x W^T + b + s (x A^T) B^T with W shared by all rows and
A and B each row's own; a tensor that does not train stays one for all. Linear layers of a head are
taken likewise. Per-row gradients are batched products, as in common/privacy/layers.py.

Not covered, and refused by name: other layers that train; a layer whose input's first dimension is
not the batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from common.errors import InvalidInput
from common.privacy.fused import is_plain_lora
from simulations.engine.stack import Rows

Context = Any  # autograd's own takes any attribute
Forward = Callable[[Tensor], Tensor]


@contextmanager
def stacked(model: nn.Module, rows: Rows) -> Iterator[None]:
    """Let every layer of ``model`` that trains take its rows' own tensors; undone on leaving.

    Raises:
        InvalidInput: a tensor trains that is in no layer which can be stacked.
    """
    replaced: list[nn.Module] = []
    try:
        for module, forward in _forwards(model, rows):
            module.forward = forward
            replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


def _forwards(model: nn.Module, rows: Rows) -> Iterator[tuple[nn.Module, Forward]]:
    covered: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if rows.stack.holds(p)]
        if type(module) is LoraLinear and "forward" not in module.__dict__:
            yield from _lora_forwards(module, rows, covered)
        elif own and not {id(p) for p in own} <= covered:
            is_linear = type(module).forward in (nn.Linear.forward, Conv1D.forward)
            if not is_linear or "forward" in module.__dict__:
                raise InvalidInput(
                    f"{name} must be a linear layer to be trained on the stacked grid, got a "
                    f"{type(module).__name__} (--grid inprocess takes it)"
                )
            yield module, _linear(module, rows)


def _lora_forwards(
    module: LoraLinear, rows: Rows, covered: set[int]
) -> Iterator[tuple[nn.Module, Forward]]:
    """One forward for the whole layer, if it is plain; else its parts come one by one."""
    if not is_plain_lora(module):
        return
    (adapter,) = module.active_adapters
    a: Any = module.lora_A[adapter]
    b: Any = module.lora_B[adapter]
    parts = a.weight, b.weight
    if any(rows.stack.holds(part) for part in parts):
        covered.update(id(part) for part in parts)
        yield module, _lora(module, *parts, float(module.scaling[adapter]), rows)


def _linear(layer: nn.Module, rows: Rows) -> Forward:
    def forward(x: Tensor) -> Tensor:
        flat: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
            _by_row(x, rows), layer.weight, layer.bias, layer, rows
        )
        return flat.view(*x.shape[:-1], flat.shape[-1])

    return forward


def _lora(module: LoraLinear, a: Tensor, b: Tensor, scaling: float, rows: Rows) -> Forward:
    def forward(x: Tensor) -> Tensor:
        flat: Tensor = _Lora.apply(  # type: ignore[no-untyped-call]
            _by_row(x, rows), a, b, module.base_layer, scaling, rows
        )
        return flat.view(*x.shape[:-1], flat.shape[-1])

    return forward


def _by_row(x: Tensor, rows: Rows) -> Tensor:
    """(n, ..., D) as (n, positions, D)."""
    if x.dim() < 2 or len(x) != len(rows.sites):
        raise InvalidInput(
            f"layers that train must see the batch of {len(rows.sites)} in their first dimension, "
            f"got {tuple(x.shape)} (--grid inprocess takes it)"
        )
    return x.reshape(len(x), -1, x.shape[-1])


class _Linear(torch.autograd.Function):
    """y = x W^T + b, or x W + b for Conv1D, each row with its site's W and b."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Module, rows: Rows
    ) -> Tensor:
        """``x`` is (n, positions, D); (n, positions, L)."""
        own = rows.of(weight, x.dtype).transpose(1, 2)
        if isinstance(layer, Conv1D):
            own = own.transpose(1, 2)
        y = x @ own
        if bias is not None:
            y += rows.of(bias, x.dtype).unsqueeze(1)
        ctx.save_for_backward(x, own)
        ctx.layer, ctx.rows = layer, rows
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Write the rows of weight and bias; only the input gets a gradient."""
        x, own = ctx.saved_tensors
        layer, buffer = ctx.layer, ctx.rows.buffer
        if buffer.holds(layer.weight):
            pair = (x, gradient) if isinstance(layer, Conv1D) else (gradient, x)
            buffer.add_outer(layer.weight, *pair)
        if buffer.holds(layer.bias):
            buffer.add_positions(layer.bias, gradient)
        back = gradient @ own.transpose(1, 2) if ctx.needs_input_grad[0] else None
        return back, None, None, None, None


class _Lora(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T, each row with its site's A and B."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        base: Any,  # noqa: ANN401 -- either kind of linear layer
        scaling: float,
        rows: Rows,
    ) -> Tensor:
        """``x`` is (n, positions, D); (n * positions, L)."""
        own_a, own_b = rows.of(a, x.dtype), rows.of(b, x.dtype)
        low = (x @ own_a.transpose(1, 2)).mul_(scaling)  # (n, positions, R)
        y = functional.linear(x, _weight(base), base.bias)
        if len(own_b) == len(x):
            y.baddbmm_(low, own_b.transpose(1, 2))
        else:
            y += low @ own_b.transpose(1, 2)
        ctx.save_for_backward(x, low, own_a, own_b)
        ctx.a, ctx.b, ctx.base, ctx.scaling, ctx.rows = a, b, base, scaling, rows
        return y.view(-1, y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Write the rows of A and B; only the input gets a gradient."""
        x, low, own_a, own_b = ctx.saved_tensors
        buffer, gradient = ctx.rows.buffer, gradient.view(*x.shape[:2], -1)
        if buffer.holds(ctx.b):
            buffer.add_outer(ctx.b, gradient, low)
        back = None
        if ctx.needs_input_grad[0] or buffer.holds(ctx.a):
            down = (gradient @ own_b).mul_(ctx.scaling)  # (n, positions, R)
            if buffer.holds(ctx.a):
                buffer.add_outer(ctx.a, down, x)
            if ctx.needs_input_grad[0]:
                back = gradient @ _weight(ctx.base)
                if len(own_a) == len(x):
                    back.baddbmm_(down, own_a)
                else:
                    back += down @ own_a
        return back, None, None, None, None, None


def _weight(base: Any) -> Tensor:  # noqa: ANN401
    """(out, in) of either kind of linear layer."""
    weight: Tensor = base.weight
    return weight.t() if isinstance(base, Conv1D) else weight
