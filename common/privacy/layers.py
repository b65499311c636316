"""Layers that write per-sample gradients into a buffer while autograd goes backward.

A linear layer's weight gradient for a sample is the sum over positions of the outer product of the
output's gradient and the input: a batched product over samples has as many operations as the one
summed product it stands in for. All other layers are sampled by Opacus (Yousefpour et al. 2021,
https://arxiv.org/abs/2109.12298): its own sampler for the type, or its vmap over one sample.

Not covered, and refused by name: layers called with more than one tensor (attention's packed
weights, DoRA), layers with buffers, modules that hold parameters beside other modules, embeddings
whose gradient depends on the batch; compiled modules.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from common.errors import SelfCheckFailed
from common.privacy.buffer import Buffer
from common.privacy.fused import fused_forward

Forward = Callable[..., Any]
Context = Any  # autograd's own takes any attribute


@contextmanager
def recording(model: nn.Module, buffer: Buffer, *, fused: bool) -> Iterator[None]:
    """Let every module that holds a parameter of ``buffer`` write to it; undone on leaving.

    Only the instances' ``forward`` is replaced, so hooks and what calls the modules stay theirs.
    """
    replaced: list[tuple[nn.Module, Forward | None]] = []
    try:
        for module in model.modules():
            forward = _recorded_forward(module, buffer)
            if forward is None and fused:
                forward = fused_forward(module, buffer)
            if forward is not None:
                replaced.append((module, module.__dict__.get("forward")))
                module.forward = forward
        yield
    finally:
        for module, before in replaced:
            del module.forward
            if before is not None:
                module.forward = before


def _recorded_forward(module: nn.Module, buffer: Buffer) -> Forward | None:
    own = list(module.parameters(recurse=False))
    if not any(buffer.holds(parameter) for parameter in own):
        return None
    is_plain = "forward" not in module.__dict__
    if is_plain and type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return _linear_forward(module, buffer)
    return _sampled_forward(module, buffer)


def _linear_forward(layer: nn.Module, buffer: Buffer) -> Forward:
    def forward(x: Tensor) -> Tensor:
        for tensor in (layer.weight, layer.bias):
            if isinstance(tensor, Tensor) and tensor.requires_grad and not buffer.holds(tensor):
                names = ", ".join(buffer.names(layer.parameters(recurse=False)))
                raise _no_sampler(names, "a weight or bias that is computed from others")
        lead = x.shape[:-1]
        # Flat and unflattened outside: a view from within could not be changed in place.
        flat: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), layer.weight, layer.bias, layer, buffer, lead
        )
        return flat.view(*lead, flat.shape[-1])

    return forward


class _Linear(torch.autograd.Function):
    """y = x W^T + b, or x W + b for Conv1D; W and b get rows in the buffer, never a sum."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: nn.Module,
        buffer: Buffer,
        lead: torch.Size,
    ) -> Tensor:
        """``x`` is (positions of all samples, D), ``lead`` the dimensions that they had."""
        ctx.input_dtype, ctx.layer, ctx.buffer, ctx.lead = x.dtype, layer, buffer, lead
        cast = _autocast_dtype(x)
        if cast is not None:  # what autocast itself would keep for the backward pass
            x = x.to(cast)
        ctx.save_for_backward(x)
        return functional.linear(x, weight.t() if isinstance(layer, Conv1D) else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Write the rows of weight and bias; only the input gets a gradient."""
        (x,) = ctx.saved_tensors
        layer, buffer = ctx.layer, ctx.buffer
        is_transposed = isinstance(layer, Conv1D)
        inputs, outputs = (t.view(*ctx.lead, t.shape[-1]) for t in (x, gradient))
        with torch.autocast(gradient.device.type, enabled=False):
            if buffer.holds(layer.weight):
                pair = (inputs, outputs) if is_transposed else (outputs, inputs)
                buffer.add_outer(layer.weight, *pair)
            if buffer.holds(layer.bias):
                buffer.add_positions(layer.bias, outputs)
            back = None
            if ctx.needs_input_grad[0]:
                weight = layer.weight.t() if is_transposed else layer.weight
                back = (gradient @ weight.to(gradient.dtype)).to(ctx.input_dtype)
        return back, None, None, None, None, None


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would turn ``x`` into, if anything; it leaves float64 alone."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(x.device.type)


def _sampled_forward(module: nn.Module, buffer: Buffer) -> Forward:
    """The module's own forward on detached parameters, with Opacus' sampler behind it.

    With its parameters detached autograd forms no sum for them, so a sum that does appear comes
    from another use of the parameter and is refused.
    """
    names = ", ".join(buffer.names(module.parameters(recurse=False)))
    if any(True for _ in module.children()):
        raise _no_sampler(names, "held beside other modules")
    if "forward" in module.__dict__:
        raise _no_sampler(names, "a replaced forward")
    own = [p for p in module.parameters(recurse=False) if buffer.holds(p)]
    detached = copy.copy(module)
    detached._parameters = {
        name: None if p is None else nn.Parameter(p.detach(), requires_grad=False)
        for name, p in module._parameters.items()
    }
    sample = _sampler(module, names)

    def write(x: Tensor, gradient: Tensor) -> None:
        for parameter in own:
            buffer.require_rows(parameter, x, gradient)
        for parameter, rows in sample(x, gradient).items():
            if buffer.holds(parameter):
                buffer.add(parameter, rows)

    def forward(*arguments: object, **named: object) -> Tensor:
        if len(arguments) != 1 or named or not isinstance(arguments[0], Tensor):
            raise _no_sampler(names, "a call with other than one tensor")
        output = detached.forward(*arguments)
        if not isinstance(output, Tensor):
            raise _no_sampler(names, "an output other than one tensor")
        tapped: Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
            output, arguments[0].detach(), write, *own
        )
        return tapped

    return forward


class _Tap(torch.autograd.Function):
    """The identity, which hands on a layer's input and its output's gradient."""

    @staticmethod
    def forward(
        ctx: Context,
        output: Tensor,
        x: Tensor,
        write: Callable[[Tensor, Tensor], None],
        *own: Tensor,
    ) -> Tensor:
        """A copy of ``output``, which what follows may change in place."""
        ctx.write, ctx.others = write, 2 + len(own)
        ctx.save_for_backward(x)
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Hand input and gradient to the sampler."""
        (x,) = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            ctx.write(x, gradient)
        return gradient, *([None] * ctx.others)


def _sampler(
    module: nn.Module, names: str
) -> Callable[[Tensor, Tensor], dict[nn.Parameter, Tensor]]:
    plain = copy.copy(module)  # the samplers leave attributes on what they are given
    registered = GradSampleModule.GRAD_SAMPLERS.get(type(module))
    if isinstance(module, nn.LayerNorm) and module.bias is None:
        registered = None  # Opacus' sampler for LayerNorm expects a bias
    if isinstance(module, nn.Embedding):
        _require_independent(module, names)
    if registered is None:
        try:
            prepare_layer(plain)
        except NotImplementedError as error:
            raise _no_sampler(names, "a layer that Opacus does not support") from error
        registered = ft_compute_per_sample_gradient
    dtype = next(module.parameters(recurse=False)).dtype

    def sample(x: Tensor, gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        inputs = x.to(dtype) if x.is_floating_point() else x
        rows: dict[nn.Parameter, Tensor] = registered(plain, [inputs], gradient.to(dtype))
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            next(iter(rows.values()))[:, module.padding_idx] = 0  # as autograd leaves it
        return rows

    return sample


def _require_independent(module: nn.Embedding, names: str) -> None:
    if module.scale_grad_by_freq or module.max_norm is not None or module.sparse:
        raise _no_sampler(names, "an embedding with max_norm, scale_grad_by_freq or sparse")


def _no_sampler(names: str, found: str) -> SelfCheckFailed:
    return SelfCheckFailed(
        f"{names} must belong to a layer that has per-sample gradients, got {found}"
    )
