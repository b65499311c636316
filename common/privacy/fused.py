"""peft's plain LoRA forward as one autograd step that keeps only x and x A^T.

y = x W^T + b + s (x A^T) B^T. Sums in a different order than peft, so results differ by rounding.
It stands in only where peft's own forward is that formula: everything else goes through peft.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from common.privacy.buffer import Buffer

Context = Any  # autograd's own takes any attribute


def fused_forward(module: nn.Module, buffer: Buffer) -> Callable[..., Any] | None:
    """A forward for ``module`` if it is a plain LoRA layer now, else none."""
    if type(module) is not LoraLinear or "forward" in module.__dict__ or not is_plain_lora(module):
        return None
    (adapter,) = module.active_adapters
    a, b = module.lora_A[adapter], module.lora_B[adapter]
    base: Any = module.base_layer
    scaling, peft_forward = float(module.scaling[adapter]), module.forward

    def forward(x: Tensor, *arguments: object, **named: object) -> Tensor:
        dtypes = {x.dtype, base.weight.dtype, a.weight.dtype, b.weight.dtype}
        if arguments or named or len(dtypes) > 1 or torch.is_autocast_enabled(x.device.type):
            y: Tensor = peft_forward(x, *arguments, **named)
            return y
        lead = x.shape[:-1]
        flat: Tensor = _Lora.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), a.weight, b.weight, base, scaling, buffer, lead
        )
        return flat.view(*lead, flat.shape[-1])

    return forward


def is_plain_lora(module: LoraLinear) -> bool:
    """Whether the layer, as it is now, computes x W^T + b + s (x A^T) B^T and nothing else."""
    if module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return False
    (adapter,) = module.active_adapters
    if adapter not in module.lora_A or adapter in module.lora_variant:
        return False
    base, a, b = module.base_layer, module.lora_A[adapter], module.lora_B[adapter]
    dropout = module.lora_dropout[adapter]
    return (
        (isinstance(dropout, nn.Identity) or getattr(dropout, "p", None) == 0.0)
        and type(base) in (nn.Linear, Conv1D)
        and type(a) is type(b) is nn.Linear
        and a.bias is None
        and b.bias is None
        and not any(p.requires_grad for p in base.parameters())
        and not any(_is_altered(layer) for layer in (base, a, b, dropout))
    )


def _is_altered(layer: nn.Module) -> bool:
    """Whether somebody's hook or forward would no longer run."""
    return bool(
        "forward" in layer.__dict__
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        base: Any,  # noqa: ANN401 -- either kind of linear layer
        scaling: float,
        buffer: Buffer,
        lead: torch.Size,
    ) -> Tensor:
        """``x`` is (positions of all samples, D), ``lead`` the dimensions that they had."""
        low = functional.linear(x, a).mul_(scaling)  # (positions, R)
        y = functional.linear(x, _weight(base), base.bias).addmm_(low, b.t())
        ctx.save_for_backward(x, low)
        ctx.a, ctx.b, ctx.base, ctx.scaling, ctx.buffer, ctx.lead = (
            a,
            b,
            base,
            scaling,
            buffer,
            lead,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Write the rows of A and B; only the input gets a gradient."""
        x, low = ctx.saved_tensors
        a, b, buffer = ctx.a, ctx.b, ctx.buffer
        down = (gradient @ b).mul_(ctx.scaling)  # (positions, R)
        outputs, lows, downs, inputs = (
            t.view(*ctx.lead, t.shape[-1]) for t in (gradient, low, down, x)
        )
        if buffer.holds(b):
            buffer.add_outer(b, outputs, lows)
        if buffer.holds(a):
            buffer.add_outer(a, downs, inputs)
        back = None
        if ctx.needs_input_grad[0]:
            back = (gradient @ _weight(ctx.base)).addmm_(down, a)
        return back, None, None, None, None, None, None


def _weight(base: Any) -> Tensor:  # noqa: ANN401
    """(out, in) of either kind of linear layer."""
    weight: Tensor = base.weight
    return weight.t() if isinstance(base, Conv1D) else weight
