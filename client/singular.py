"""Whether what a server says are a base's singular vectors are that.

Two machines make other last bits of them, and where singular values are equal any rotation of their
vectors is as good. So a site does not compare vectors: it looks whether the rows are orthonormal,
span a space that the base's matrix maps to itself, and hold its largest singular values.

Not covered: a base whose matrix lacks the rank that is asked for: the rest of the rows is any.
"""

import math

import numpy as np

from client.move import Move
from common.errors import RoundRefused
from common.layout import Factors, Matrices, Vector, factors_of
from common.methods import Part
from common.products import Matrix, a_of, b_of

_TOLERANCE = 1e-5  # relative; float32 rounds the rows by a hundredth of that


def is_at_start(move: Move) -> bool:
    """Whether A's rows are still, or again, those of the job's start."""
    return Part.A not in move.trained or move.layout.method == "flora"


def adopted(move: Move) -> Vector:
    """The known state (P,) with the server's singular vectors, which are checked, in place of ours.

    Raises:
        RoundRefused: they are not the base's.
    """
    known = move.known.copy()
    for factors, matrices in zip(factors_of(move.adapter.model), move.layout.matrices, strict=True):
        base = _base(move, factors)
        _require_leading(base, a_of(matrices, move.state), a_of(matrices, move.known), matrices)
        known[matrices.a] = move.state[matrices.a]
        if matrices.core is not None:
            left, own = b_of(matrices, move.state).T, b_of(matrices, move.known).T
            _require_leading(base.T, left, own, matrices)
            known[matrices.b] = move.state[matrices.b]
    return known


def _base(move: Move, factors: Factors) -> Matrix:
    """The base's own matrix, (d, k), without what was folded in."""
    held = move.adapter.bases.get(factors.base_name, factors.base)
    base: Matrix = held.detach().double().cpu().numpy()
    return base


def _require_leading(base: Matrix, rows: Matrix, own: Matrix, matrices: Matrices) -> None:
    """Check ``rows`` (r, k) against the base (d, k) and this machine's ``own``."""
    image = base @ rows.T
    gram = image.T @ image
    values = np.linalg.svd(image, compute_uv=False)
    wanted = np.linalg.svd(base @ own.T, compute_uv=False)
    size = float(wanted[0]) or 1.0
    off = max(
        float(np.linalg.norm(rows @ rows.T - np.eye(len(rows)))),
        float(np.linalg.norm(base.T @ image - rows.T @ gram)) / size**2,
        float(np.abs(values - wanted).max()) / size,
    )
    if not off <= _TOLERANCE * math.sqrt(len(rows)):
        raise RoundRefused(
            f"global adapter must start at the base's singular vectors, got others by {off:g} "
            f"({matrices.name})"
        )
