"""Per-sample gradients of a model's trainable parameters, by Opacus' hooks.

Source: Yousefpour et al. (2021), https://arxiv.org/abs/2109.12298.

Not covered: DoRA and LoRA on embeddings (refused where the adapter is built), non-reentrant
gradient checkpointing, batch-level losses (a mean over the batch's tokens leaks other records into
a record's gradient, so only a per-example loss vector is accepted).
"""

from collections.abc import Callable

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from common.errors import SelfCheckFailed


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, sorted: the order of every flat vector."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def per_sample_gradients(
    model: nn.Module, compute_losses: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """One gradient a sample for every trainable parameter.

    Args:
        model: in training mode; hooks are added for the call and removed after it.
        compute_losses: runs the forward pass and returns the (n,) loss vector.

    Returns:
        name -> (n, *parameter.shape). Sensitive.

    Raises:
        SelfCheckFailed: a parameter got no gradient for each sample: clipping would miss it.
    """
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum")
    try:
        losses = compute_losses()
        if losses.dim() != 1:
            raise SelfCheckFailed(
                f"loss must be a vector of one value a sample, got {losses.dim()} dimensions"
            )
        torch.autograd.backward(losses.sum())
        return {name: _take(name, p, len(losses)) for name, p in trainable(model).items()}
    finally:
        wrapped.to_standard_module()
        for p in model.parameters():
            p.grad = None


def _take(name: str, parameter: nn.Parameter, samples: int) -> Tensor:
    gradient = getattr(parameter, "grad_sample", None)
    if not isinstance(gradient, Tensor) or gradient.shape != (samples, *parameter.shape):
        # A site sends its refusals to the server: how many samples there are stays out of them.
        found = "other rows" if isinstance(gradient, Tensor) else "none"
        raise SelfCheckFailed(
            f"per-sample gradient of {name} must have one row of shape {tuple(parameter.shape)} "
            f"a sample, got {found}"
        )
    return gradient


def flatten(gradients: dict[str, Tensor]) -> Tensor:
    """Rows of all parameters side by side in name order, (n, P)."""
    return torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)


def flat_gradients(
    model: nn.Module, compute_losses: Callable[[], Tensor], *, engine: str = "native"
) -> Tensor:
    """Temporary."""
    return flatten(per_sample_gradients(model, compute_losses))
