"""Per-sample gradients of a model's trainable parameters, in one backward pass.

``native`` (layers.py) writes every sample's gradient into one (n, P) buffer in the backward pass
itself, in place of the summed gradient: as many multiplications as without privacy. ``opacus``
computes the same by Opacus' hooks (Yousefpour et al. 2021, https://arxiv.org/abs/2109.12298); it is
the oracle that ``native`` is tested against, and can be chosen for training.

Not covered: DoRA and LoRA on embeddings (refused where the adapter is built, and here by name);
``opacus`` with non-reentrant gradient checkpointing; batch-level losses (a mean over the batch's
tokens leaks other records into a record's gradient, so only a per-example loss vector is accepted).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from common.errors import InvalidInput, SelfCheckFailed
from common.privacy.buffer import GradientBuffer, wrong_rows
from common.privacy.layers import watch

ENGINES = ("native", "opacus")
MEMORY_SHARE = 0.25  # of what is free: the model and its activations need the rest

_CGROUP = Path("/sys/fs/cgroup")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, sorted: the order of every flat vector."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def per_sample_gradients(
    model: nn.Module,
    compute_losses: Callable[[], Tensor],
    *,
    engine: str = "native",
    fused: bool = False,
) -> dict[str, Tensor]:
    """One gradient a sample for every trainable parameter.

    Args:
        model: in training mode; it is left as it was, without gradients.
        compute_losses: runs the forward pass and returns the (n,) loss vector.
        engine: ``native`` or ``opacus``.
        fused: with ``native``, run PEFT's plain LoRA layers as one operation.

    Returns:
        name -> (n, *parameter.shape), float32 or wider. Sensitive.

    Raises:
        InvalidInput: no such engine.
        SelfCheckFailed: a loss that is no vector; a parameter without a gradient for each sample:
            clipping would miss it.
    """
    rows = flat_gradients(model, compute_losses, engine=engine, fused=fused)
    return GradientBuffer(trainable(model)).named(rows)


def flat_gradients(
    model: nn.Module,
    compute_losses: Callable[[], Tensor],
    *,
    engine: str = "native",
    fused: bool = False,
) -> Tensor:
    """``per_sample_gradients`` side by side in name order, (n, P)."""
    if engine not in ENGINES:
        raise InvalidInput(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    parameters = trainable(model)
    if not parameters:
        raise SelfCheckFailed("model must have trainable parameters, got none")
    compute = _with_native if engine == "native" else _with_opacus
    try:
        with _no_empty_forward(model):
            return compute(model, parameters, compute_losses, fused)
    except _EmptyBatch:
        buffer = GradientBuffer(parameters)
        buffer.begin(0)
        return buffer.rows
    finally:
        for p in model.parameters():
            p.grad = None


def _with_native(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    compute_losses: Callable[[], Tensor],
    fused: bool,
) -> Tensor:
    buffer = GradientBuffer(parameters)
    with watch(model, buffer, fused=fused):
        losses = _checked(compute_losses())
        buffer.begin(len(losses))
        torch.autograd.backward(losses.sum())
    return buffer.finish()


def _with_opacus(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    compute_losses: Callable[[], Tensor],
    fused: bool,
) -> Tensor:
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    try:
        losses = _checked(compute_losses())
        torch.autograd.backward(losses.sum())
        return flatten({name: _take(name, p, len(losses)) for name, p in parameters.items()})
    finally:
        wrapped.to_standard_module()
        for module in model.modules():  # Opacus leaves these, full of records after an error
            vars(module).pop("activations", None)
            vars(module).pop("max_batch_len", None)


class _EmptyBatch(Exception):
    """There is nothing to compute."""


@contextmanager
def _no_empty_forward(model: nn.Module) -> Iterator[None]:
    """Leave before the forward pass of an empty batch, which attention cannot reshape."""

    def look(_: nn.Module, args: tuple[Any, ...], kinds: dict[str, Any]) -> None:
        given = (*args, *kinds.values())
        if any(isinstance(v, Tensor) and v.dim() and not len(v) for v in given):
            raise _EmptyBatch

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _checked(losses: Tensor) -> Tensor:
    if losses.dim() != 1:
        raise SelfCheckFailed(
            f"loss must be a vector of one value a sample, got {losses.dim()} dimensions"
        )
    if not len(losses):
        raise _EmptyBatch
    return losses


def _take(name: str, parameter: nn.Parameter, samples: int) -> Tensor:
    gradient = getattr(parameter, "grad_sample", None)
    if not isinstance(gradient, Tensor):
        raise wrong_rows(name, parameter, "none")
    if gradient.shape != (samples, *parameter.shape):
        raise wrong_rows(name, parameter, "other rows")
    return gradient if gradient.dtype == torch.float64 else gradient.float()


def flatten(gradients: dict[str, Tensor]) -> Tensor:
    """Rows of all parameters side by side in name order, (n, P)."""
    return torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)


def rows_within_memory(size: int, device: torch.device) -> int:
    """How many rows of ``size`` float32 numbers fit a quarter of the memory that is free now.

    Returns:
        At least 1: what that needs cannot be done without.
    """
    return max(1, int(MEMORY_SHARE * _free_bytes(device)) // (4 * max(1, size)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no control group, or none with a limit
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    return free
