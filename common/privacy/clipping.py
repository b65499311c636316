"""Bound what one unit can add to a step's sum."""

import torch
from torch import Tensor

# The factor and the product round in the gradients' precision; this keeps the norm below C.
_ROUNDING = 1e-6


def clip_and_sum(gradients: Tensor, clip_norm: float) -> Tensor:
    """Scale each row of ``gradients`` down to L2 norm ``clip_norm`` and add them up.

    Guarantee: adding or removing one row moves the sum by at most ``clip_norm``, for any row; one
    that holds a non-finite number counts as zero.

    Args:
        gradients: (n, P), one row a unit. Sensitive.
        clip_norm: L2 bound in gradient units, > 0.

    Returns:
        (P,) float64, so that the order of the rows does not matter to what is kept.
    """
    rows = gradients.double()
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    factors = (clip_norm * (1.0 - _ROUNDING) / norms.clamp_min(clip_norm)).where(
        finite, torch.zeros_like(norms)
    )
    total: Tensor = factors @ torch.where(finite[:, None], rows, torch.zeros_like(rows))
    return total
