"""The change that A and B stand for, and the ways back to A and B.

All in float64, one adapted matrix at a time.

Source: the factors by singular values are FedSVD's (Lee et al. 2025,
https://arxiv.org/abs/2505.12805): the rows of A orthonormal, all size in B.
"""

import numpy as np
from numpy.typing import NDArray

from common.initial import signs_of
from common.layout import Matrices, Vector

Matrix = NDArray[np.float64]


def a_of(matrices: Matrices, state: Vector) -> Matrix:
    """A, (r, k)."""
    return state[matrices.a].reshape(matrices.rank, matrices.inputs).astype(np.float64)


def b_of(matrices: Matrices, state: Vector) -> Matrix:
    """B, (d, r)."""
    return state[matrices.b].reshape(matrices.outputs, matrices.rank).astype(np.float64)


def fold_of(matrices: Matrices, state: Vector) -> Matrix:
    """What is folded into the base, (d, k); zero where nothing ever is."""
    shape = (matrices.outputs, matrices.inputs)
    if matrices.fold is None:
        return np.zeros(shape)
    return state[matrices.fold].reshape(shape).astype(np.float64)


def product(matrices: Matrices, state: Vector) -> Matrix:
    """``fold + B core A``, (d, k): the change of the base over the scaling.

    Of a state in which A and B travel; the core is the identity where there is none.
    """
    b = b_of(matrices, state)
    if matrices.core is not None:
        b = b @ state[matrices.core].reshape(matrices.rank, matrices.rank).astype(np.float64)
    return fold_of(matrices, state) + b @ a_of(matrices, state)


def factored(change: Matrix, rank: int | None = None) -> tuple[Matrix, Matrix]:
    """B (d, r) and A (r, k) of which ``change`` (d, k) is the product, or nearest to it.

    Args:
        change: any matrix.
        rank: r; by default as many as the change has beyond float32's rounding, at least one.
    """
    left, values, right = np.linalg.svd(change, full_matrices=False)
    if rank is None:
        least = values[0] * np.finfo(np.float32).eps
        rank = max(1, int(np.count_nonzero(values > least)))
    b, a = left[:, :rank] * values[:rank], right[:rank]
    return _padded(b, a, rank)


def refactored(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """The same product ``b a`` with orthonormal rows in place of ``a``'s; ``b a`` is never formed.

    Of a product that lacks a rank, or all of them, rows are kept from ``a`` as far as they are new.
    """
    outer, rest = np.linalg.qr(b)
    rows, mixed = np.linalg.qr(a.T)
    left, values, right = np.linalg.svd(rest @ mixed.T)
    found = (rows @ right.T).T
    return _signed(outer @ left * values, found)


def _padded(b: Matrix, a: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Zeros where a matrix has fewer ranks than are asked for."""
    short = rank - len(a)
    if short > 0:
        b, a = np.pad(b, ((0, 0), (0, short))), np.pad(a, ((0, short), (0, 0)))
    return _signed(b, a)


def _signed(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """The pair whose rows of A have a positive largest entry."""
    signs = signs_of(a)
    return b * signs, a * signs[:, None]
