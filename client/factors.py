"""What each method that makes A and B anew promises of them, held against what came.

A server that could choose A while B is zero would choose what the first gradient shows of records.
So A is checked by itself, and not by its product alone:

- ``fedsvd``: orthonormal rows, which span what A's rows spanned before, since B alone is trained.
- ``fedex``: A and B move as their means do; what is folded in is a covariance of the changes.
- ``flora``: A is the round's public draw, or stays; B is zero.
- ``flexlora``: orthonormal rows.

In these proofs u is the move's stride, E and D are a site's changes of B and A, and norms are over
all adapted matrices together; |E|^2 + |D|^2 <= u^2, so that |E D| <= u^2 / 2.

Not covered: what A's rows are while B is zero after a round of ``flexlora``, but for their length.
"""

import math

import numpy as np
from numpy.typing import NDArray

from client.move import ROUNDING, Move
from common.errors import RoundRefused
from common.initial import drawn_a
from common.layout import Matrices, Vector
from common.methods import Part
from common.products import Matrix, a_of, b_of, product

_HEAD = frozenset({Part.HEAD})
_FOLD = frozenset({Part.FOLD})


def same_rows(move: Move) -> None:
    """FedSVD: a mean of E moves B A by at most |E| |A|, |A| being 1 once rows are orthonormal.

    Raises:
        RoundRefused: it is not so.
    """
    for matrices in move.layout.matrices:
        rows, before = a_of(matrices, move.state), a_of(matrices, move.known)
        _require_orthonormal(rows, matrices)
        basis = np.linalg.qr(before.T)[0]
        off = float(np.linalg.norm(rows - rows @ basis @ basis.T))
        if off > ROUNDING * math.sqrt(matrices.rank) * (1 + move.rounds):
            raise RoundRefused(
                f"global adapter's A must span the rows that this site knows, got some that are "
                f"{off:g} outside ({matrices.name})"
            )
    _require_head(move)
    size = max(1.0, _largest(move, move.known))
    _require_products(move, move.rounds * move.stride * size)


def residuals(move: Move) -> None:
    """FedEx: mean(B A) - mean(B) mean(A) is the covariance of E and D, of at most u^2 / 2.

    Raises:
        RoundRefused: it is not so.
    """
    numbers = frozenset({Part.A, Part.B, Part.HEAD})
    rounding = ROUNDING * move.rounds * move.size
    move.require(move.moved(numbers), move.rounds * move.stride, rounding=rounding)
    rounding += ROUNDING * move.rounds * move.size**2
    move.require(move.moved(_FOLD), move.rounds * move.stride**2 / 2, rounding=rounding)


def redrawn(move: Move) -> None:
    """FLoRA: E (A + D) is folded in; no start has rows of A that are longer than 1.

    Raises:
        RoundRefused: it is not so.
    """
    for matrices in move.layout.matrices:
        wanted: NDArray[np.floating] = a_of(matrices, move.known)
        if move.job.adapter.start != "svd":
            wanted = drawn_a(move.job, matrices, move.round - 1).astype(np.float32)
        move.require(_apart(a_of(matrices, move.state), wanted), 0.0)
        move.require(float(np.linalg.norm(b_of(matrices, move.state))), 0.0)
    _require_head(move)
    a_round = math.sqrt(move.layout.rank) * move.stride + move.stride**2 / 2
    rounding = ROUNDING * move.rounds * (move.size + move.size**2)
    move.require(move.moved(_FOLD), move.rounds * a_round, rounding=rounding)


def nearest(move: Move) -> None:
    """FlexLoRA: see ``_nearest_bound``.

    Raises:
        RoundRefused: it is not so.
    """
    for matrices in move.layout.matrices:
        _require_orthonormal(a_of(matrices, move.state), matrices)
    _require_head(move)
    _require_products(move, _nearest_bound(move))


def _nearest_bound(move: Move) -> float:
    """How far rounds take the product X = B A, of norm x.

    A site that holds all of X ends at most a = (|A| + |B|) u + u^2 / 2 away; one of a lower rank
    has cut X first, by its tail. The mean is no farther, and the nearest product of the job's rank
    at most as far again. A round adds at most a to x and to the tail, as ranks that the lowest has
    not are what the others' mean is apart from its own.
    """
    ranks = [move.job.rank(site) for site in move.job.sites]
    lowest, is_mixed = min(ranks), min(ranks) < move.layout.rank
    begun = size = _norm_of([product(m, move.known) for m in move.layout.matrices])
    tail = _norm_of([_tail(m, move.known, lowest) for m in move.layout.matrices])
    of_a, moved = max(1.0, _largest(move, move.known)), 0.0
    for _ in range(move.rounds):
        a_round = (of_a + size) * move.stride + move.stride**2 / 2
        moved += 2 * (a_round + tail)
        tail += a_round if is_mixed else 0.0
        size, of_a = size + a_round, 1.0
    return min(moved, begun + size)


def _tail(matrices: Matrices, state: Vector, rank: int) -> Matrix:
    return b_of(matrices, state)[:, rank:] @ a_of(matrices, state)[rank:]


def _require_orthonormal(rows: Matrix, matrices: Matrices) -> None:
    """Rows beyond the matrix's own ranks are zero."""
    has_rank = np.arange(len(rows)) < min(matrices.inputs, matrices.outputs)
    off = _apart(rows @ rows.T, np.diag(has_rank.astype(np.float64)))
    if off > ROUNDING * len(rows):
        raise RoundRefused(
            f"global adapter's A must have orthonormal rows, got some that are {off:g} off "
            f"({matrices.name})"
        )


def _require_head(move: Move) -> None:
    rounding = ROUNDING * move.rounds * move.size
    move.require(move.moved(_HEAD), move.rounds * move.stride, rounding=rounding)


def _require_products(move: Move, allowed: float) -> None:
    steps = [product(m, move.state) - product(m, move.known) for m in move.layout.matrices]
    rounding = ROUNDING * move.rounds * (move.size + move.size**2)
    move.require(_norm_of(steps), allowed, rounding=rounding)


def _largest(move: Move, state: Vector) -> float:
    """The largest singular value of any A."""
    return max(float(np.linalg.norm(a_of(m, state), 2)) for m in move.layout.matrices)


def _norm_of(found: list[Matrix]) -> float:
    return float(np.linalg.norm([np.linalg.norm(matrix) for matrix in found]))


def _apart(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(one.astype(np.float64) - other))
