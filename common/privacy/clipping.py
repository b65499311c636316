"""Bound what one unit can add to a step's sum, on an integer lattice.

A clipped row is rounded to whole lattice units, of which the clip norm has ``LATTICE``, and whole
numbers are added up exactly, in any order. So the sum moves by one unit's row and by nothing else
when that unit comes or goes, and its sensitivity is the clip norm plus the rounding:
``sensitivity``.

What is assumed: a unit's row and its norm are the same whoever else is in the batch, as they are
where the same kernel runs on rows of one alignment. The self-check on neighbours tries that.
"""

import math

import torch
from torch import Tensor

from common.errors import InvalidInput

LATTICE = 2**20  # lattice units in one clip norm

# Norm, factor and product round too: together by less than 2^-22 of the row in float32.
_ROUNDING = 2.0**-20
# Rows of whole numbers up to LATTICE that float32 adds up exactly, as it does below 2^24.
_EXACT_ROWS = 16
_LEAST_CLIP_NORM = 1e-30
_COLUMNS = 16_384  # what a processor's cache holds of so many rows


def sensitivity(size: int) -> float:
    """The most that one unit moves the sum of (P,) = (``size``,) numbers, in lattice units.

    A row has at most L2 norm ``LATTICE`` before it is rounded; rounding moves each of P numbers by
    at most a half.

    >>> sensitivity(4096) - LATTICE
    32.0
    """
    return LATTICE + math.sqrt(size) / 2


def clip_and_sum(gradients: Tensor, clip_norm: float) -> Tensor:
    """Clip each row of ``gradients`` to L2 norm ``clip_norm``, round it to the lattice, and sum.

    Guarantee: adding or removing one row moves the sum by at most ``sensitivity(P)``, and moves it
    by the same vector whatever the other rows are, as long as this row is the same; a row that
    holds a non-finite number counts as zero.

    Args:
        gradients: (n, P), one row a unit; changed in place. Sensitive.
        clip_norm: L2 bound in gradient units, > 0.

    Returns:
        (P,) int64, in lattice units of ``clip_norm / LATTICE``.

    Raises:
        InvalidInput: a clip norm whose lattice float32 cannot express.
    """
    rows = gradients if gradients.dtype == torch.float64 else gradients.float()
    factors = lattice_factors(rows, clip_norm)
    total = torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
    columns = _COLUMNS if rows.device.type == "cpu" else max(1, rows.shape[1])
    for first in range(0, rows.shape[1], columns):
        for group in range(0, len(rows), _EXACT_ROWS):
            part = rows[group : group + _EXACT_ROWS, first : first + columns]
            part = part * factors[group : group + _EXACT_ROWS, None]
            total[first : first + columns] += part.round_().sum(dim=0).long()
    return total


def lattice_factors(rows: Tensor, clip_norm: float) -> Tensor:
    """Each row's factor to lattice units, (n,); rows that are not finite become zero in place.

    Args:
        rows: (n, P), in floating point. Sensitive.
        clip_norm: as ``clip_and_sum`` has it.

    Raises:
        InvalidInput: as ``clip_and_sum``.
    """
    if not _LEAST_CLIP_NORM <= clip_norm < math.inf:
        raise InvalidInput(f"clip_norm must be at least {_LEAST_CLIP_NORM:g}, got {clip_norm}")
    norms = rows.new_zeros(len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        norms[i] = torch.linalg.vector_norm(row.double())
    finite = torch.isfinite(norms)
    rows[~finite] = 0
    factors = LATTICE * (1 - _ROUNDING) / norms.clamp_min(clip_norm)
    return factors.where(finite, torch.zeros_like(norms)).to(rows.dtype)
