"""Per-sample gradients of a model's trainable parameters, in one backward pass.

``native`` writes them into one flat (n, P) buffer while autograd goes backward, in place of the
summed gradients; ``opacus`` takes them from Opacus' hooks (Yousefpour et al. 2021,
https://arxiv.org/abs/2109.12298) and is what the native engine is tested against.

Not covered: batch-level losses (a mean over the batch's tokens leaks other records into a record's
gradient, so only a per-example loss vector is accepted; that each loss depends on one record alone
is for the self-check on neighbours to find), DoRA and LoRA on embeddings (refused by name). Opacus'
hooks miss parameters under non-reentrant gradient checkpointing, which is refused too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from common.errors import InvalidInput, SelfCheckFailed
from common.privacy.buffer import Buffer, refused
from common.privacy.layers import recording
from common.privacy.memory import rows_within_memory

__all__ = [
    "flat_gradients",
    "flatten",
    "per_sample_gradients",
    "rows_within_memory",
    "trainable",
]

Losses = Callable[[], Tensor]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, sorted: the order of every flat vector."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def per_sample_gradients(
    model: nn.Module, compute_losses: Losses, *, engine: str = "native", fused: bool = False
) -> dict[str, Tensor]:
    """One gradient a sample for every trainable parameter.

    Args and errors as ``flat_gradients``.

    Returns:
        name -> (n, *parameter.shape), views of one (n, P) buffer. Sensitive.
    """
    rows = flat_gradients(model, compute_losses, engine=engine, fused=fused)
    parameters = trainable(model)
    parts = torch.split(rows, [p.numel() for p in parameters.values()], dim=1)
    return {
        name: part.view(len(rows), *p.shape)
        for (name, p), part in zip(parameters.items(), parts, strict=True)
    }


def flat_gradients(
    model: nn.Module, compute_losses: Losses, *, engine: str = "native", fused: bool = False
) -> Tensor:
    """One flat gradient a sample, side by side in ``trainable`` order.

    Args:
        model: left as it was found, but for gradients, which are cleared.
        compute_losses: runs the forward pass and returns the (n,) loss vector; n may be 0: a pass
            that gives ``model`` an empty tensor first is not run on.
        engine: ``native`` or ``opacus``; the latter needs the model in training mode.
        fused: replace peft's plain LoRA forward by one step (native only).

    Returns:
        (n, P) float32, or float64 if any trainable parameter is. Sensitive. A row that is not
        finite leaves the others as they are.

    Raises:
        InvalidInput: no such engine, or none that fuses.
        SelfCheckFailed: losses are no vector, a layer mixes samples (batch statistics), or a
            parameter got no gradient for each sample: clipping would miss it.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if fused and engine != "native":
        raise InvalidInput(f"fused must be false for the engine {engine}, got true")
    _require_separate(model)
    _clear(model)
    try:
        return ENGINES[engine](model, compute_losses, fused)
    finally:
        _clear(model)


def _require_separate(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise SelfCheckFailed(
                f"{name or 'model'} must keep samples apart, got statistics over the batch"
            )


def flatten(gradients: dict[str, Tensor]) -> Tensor:
    """Rows of all parameters side by side in name order, (n, P)."""
    return torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)


def _native(model: nn.Module, compute_losses: Losses, fused: bool) -> Tensor:
    parameters = trainable(model)
    buffer = Buffer(parameters)
    with recording(model, buffer, fused=fused):
        losses = _losses(model, compute_losses)
        if losses is None:
            return _no_rows(model)
        buffer.open(len(losses))
        _backward(losses)
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            raise refused(name, parameter.shape, "a sum from outside its layer")
    return buffer.close()


def _opacus(model: nn.Module, compute_losses: Losses, fused: bool) -> Tensor:
    del fused
    with _hooked(model):
        losses = _losses(model, compute_losses)
        if losses is None:
            return _no_rows(model)
        _backward(losses)
        parameters = trainable(model)
        return flatten({name: _take(name, p, len(losses)) for name, p in parameters.items()})


ENGINES: dict[str, Callable[[nn.Module, Losses, bool], Tensor]] = {
    "native": _native,
    "opacus": _opacus,
}


@contextmanager
def _hooked(model: nn.Module) -> Iterator[None]:
    before = {module: set(vars(module)) for module in model.modules()}
    kinds = {module: module._is_full_backward_hook for module in before}
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    try:
        yield
    finally:
        wrapped.to_standard_module()
        for module, names in before.items():  # what a pass that broke off leaves behind
            module._is_full_backward_hook = kinds[module]
            for name in set(vars(module)) - names:
                delattr(module, name)


def _take(name: str, parameter: nn.Parameter, samples: int) -> Tensor:
    gradient = getattr(parameter, "grad_sample", None)
    if not isinstance(gradient, Tensor):
        raise refused(name, parameter.shape, "none")
    if gradient.shape != (samples, *parameter.shape):
        raise refused(name, parameter.shape, "other rows")
    return gradient if gradient.dtype == torch.float64 else gradient.float()


class _NoRowsGiven(BaseException):
    """Ends a forward pass on a batch of no rows, which attention's reshapes cannot take."""


def _losses(model: nn.Module, compute_losses: Losses) -> Tensor | None:
    """The (n,) losses; none if the batch has no rows."""
    with _stopped_without_rows(model):
        try:
            losses = compute_losses()
        except _NoRowsGiven:
            return None
    if losses.dim() != 1:
        raise SelfCheckFailed(
            f"loss must be a vector of one value a sample, got {losses.dim()} dimensions"
        )
    return losses if len(losses) else None


@contextmanager
def _stopped_without_rows(model: nn.Module) -> Iterator[None]:
    """The first call into ``model`` ends the pass if the first tensor that it is given is empty.

    Later ones may be empty in a batch that is not: an expert that no token is sent to.
    """
    hooks: list[RemovableHandle] = []

    def look(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        del module
        _remove(hooks)
        first = next(_tensors((*arguments, *named.values())), None)
        if first is not None and not len(first):
            raise _NoRowsGiven

    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(look, with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        _remove(hooks)


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Tensors of one dimension or more, also within mappings and sequences, in order."""
    for value in values:
        if isinstance(value, Tensor):
            if value.dim():
                yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _backward(losses: Tensor) -> None:
    """Each loss by itself: a sum would carry a loss that is not finite into the others."""
    if losses.requires_grad:
        torch.autograd.backward(losses, torch.ones_like(losses))


def _no_rows(model: nn.Module) -> Tensor:
    buffer = Buffer(trainable(model))
    return torch.empty(0, buffer.size, dtype=buffer.dtype, device=buffer.device)


def _clear(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None
