"""Layers that write per-sample gradients in their backward pass.

``watch`` puts these in place of the forward passes of a model's trainable layers and takes them
away again: linear layers (PEFT's A and B and heads among them), transformers' Conv1D, and PEFT's
whole LoRA layer where its forward pass is the plain one (``fused``). Other layers keep their own
forward pass and get Opacus' grad samplers (Yousefpour et al. 2021,
https://arxiv.org/abs/2109.12298), by hooks.

Not covered, and refused by name: layers that take more than one input (DoRA), parameters that no
layer of their own holds (LoRA on embeddings), layers that are bypassed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from common.errors import SelfCheckFailed
from common.privacy.buffer import GradientBuffer


class _Linear(torch.autograd.Function):
    """``x W^T + b``; the gradients of W and b go to the buffer, one a sample."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        buffer: GradientBuffer,
        is_transposed: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Where non-reentrant checkpointing recomputes, a saved tensor is another object than the
        # parameter that the buffer knows.
        ctx.parameters = weight, bias
        ctx.buffer, ctx.is_transposed = buffer, is_transposed
        return functional.linear(x, weight.t() if is_transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            # What the product was of: autocast may have rounded the input on the way in.
            seen = x.to(g.dtype)
            left, right = (seen, g) if ctx.is_transposed else (g, seen)
            ctx.buffer.add_outer(ctx.parameters[0], left, right)
        if ctx.needs_input_grad[2]:
            ctx.buffer.add_over_tokens(ctx.parameters[1], g)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        matrix = weight.to(g.dtype)
        back = g @ (matrix.t() if ctx.is_transposed else matrix)
        return back.to(x.dtype), None, None, None, None


class _FusedLora(torch.autograd.Function):
    """``x W^T + b + s (x A^T) B^T`` with W and b frozen; A's and B's gradients go to the buffer."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        base: nn.Linear,
        a: Tensor,
        b: Tensor,
        scale: float,
        buffer: GradientBuffer,
    ) -> Tensor:
        y, h = functional.linear(x, base.weight, base.bias), functional.linear(x, a)
        y.view(-1, y.shape[-1]).addmm_(h.reshape(-1, h.shape[-1]), b.t(), alpha=scale)
        ctx.save_for_backward(x, h, base.weight, a, b)
        ctx.parameters, ctx.scale, ctx.buffer = (a, b), scale, buffer
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, h, weight, a, b = ctx.saved_tensors
        inner = g @ b
        if ctx.scale != 1:
            inner *= ctx.scale
        if ctx.needs_input_grad[2]:
            ctx.buffer.add_outer(ctx.parameters[0], inner, x)
        if ctx.needs_input_grad[3]:
            ctx.buffer.add_outer(ctx.parameters[1], g, h, ctx.scale)
        back = None
        if ctx.needs_input_grad[0]:
            back = g @ weight
            back.view(-1, back.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), a)
        return back, None, None, None, None, None


@contextmanager
def watch(model: nn.Module, buffer: GradientBuffer, *, fused: bool) -> Iterator[None]:
    """Let the trainable layers of ``model`` fill ``buffer`` in every backward pass meanwhile.

    Raises:
        SelfCheckFailed: a trainable parameter that no layer of a known kind holds.
    """
    undo: list[Callable[[], None]] = []
    try:
        for name, layer in model.named_modules():
            if fused and _is_plain_lora(layer):
                undo.append(_replace_forward(layer, partial(_lora_forward, layer, buffer)))
            if any(p.requires_grad for p in layer.parameters(recurse=False)):
                undo.append(_watch_layer(name, layer, buffer))
        yield
    finally:
        for step in reversed(undo):
            step()


def _watch_layer(name: str, layer: nn.Module, buffer: GradientBuffer) -> Callable[[], None]:
    is_own = "forward" in vars(layer)
    if type(layer).forward is nn.Linear.forward and not is_own:
        return _replace_forward(layer, partial(_linear_forward, layer, buffer, False))
    if type(layer) is Conv1D and not is_own:
        return _replace_forward(layer, partial(_linear_forward, layer, buffer, True))
    if isinstance(layer, nn.ParameterDict | nn.ParameterList) or any(
        True for _ in layer.children()
    ):
        held = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
        raise SelfCheckFailed(
            f"trainable parameter {name}.{held[0]} must belong to a layer of its own, "
            f"got one of {type(layer).__name__}"
        )
    return _hook_sampler(name, layer, buffer)


def _replace_forward(layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[[], None]:
    layer.forward = forward

    def undo() -> None:
        del layer.forward

    return undo


def _linear_forward(layer: Any, buffer: GradientBuffer, is_transposed: bool, x: Tensor) -> Tensor:  # noqa: ANN401
    return _Linear.apply(x, layer.weight, layer.bias, buffer, is_transposed)  # type: ignore[no-any-return,no-untyped-call]


def _is_plain_lora(layer: nn.Module) -> bool:
    """Whether PEFT's layer adds one adapter's product and does nothing else."""
    if type(layer) is not lora.Linear or "forward" in vars(layer):
        return False
    if len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return False
    (name,) = layer.active_adapters
    base = layer.get_base_layer()
    if type(base).forward is not nn.Linear.forward or name not in layer.lora_A:
        return False
    a, b = layer.lora_A[name], layer.lora_B[name]
    return (
        not any(p.requires_grad for p in base.parameters())
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in layer.lora_variant
        and a.bias is None
        and b.bias is None
        and {a.weight.dtype, b.weight.dtype} == {base.weight.dtype}
    )


def _lora_forward(layer: Any, buffer: GradientBuffer, x: Tensor, *rest: Any, **kind: Any) -> Tensor:  # noqa: ANN401
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    if rest or kind or x.dtype != a.dtype or torch.is_autocast_enabled(x.device.type):
        found: Tensor = type(layer).forward(layer, x, *rest, **kind)
        return found
    base, scale = layer.get_base_layer(), layer.scaling[name]
    return _FusedLora.apply(x, base, a, b, scale, buffer)  # type: ignore[no-any-return,no-untyped-call]


def _hook_sampler(name: str, layer: nn.Module, buffer: GradientBuffer) -> Callable[[], None]:
    """Let Opacus compute per-sample gradients from a layer's input and its output's gradient."""
    sampler = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    if sampler is None:
        prepare_layer(layer)
        sampler = ft_compute_per_sample_gradient

    def watch_output(_: nn.Module, args: Any, kinds: Any, output: Any) -> None:  # noqa: ANN401
        if not (isinstance(output, Tensor) and output.requires_grad):
            return  # the first pass of a checkpoint
        if len(args) != 1 or kinds:
            raise SelfCheckFailed(
                f"trainable layer {name} ({type(layer).__name__}) must take one input, got more"
            )
        seen = args[0].detach()
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda g: _sample(layer, sampler, seen, g, buffer)
        )

    handle = layer.register_forward_hook(watch_output, with_kwargs=True)

    def undo() -> None:
        handle.remove()
        vars(layer).pop("ft_compute_sample_grad", None)

    return undo


def _sample(
    layer: nn.Module, sampler: Callable[..., Any], seen: Tensor, g: Tensor, buffer: GradientBuffer
) -> None:
    for parameter, gradients in sampler(layer, [seen], g.detach()).items():
        if parameter.requires_grad:
            buffer.add(parameter, gradients)
