"""An adapter's public start: the same for every site, and without a look at any record.

- ``uniform``: A uniform, B zero, as peft has it.
- ``orthonormal``: the rows of A random and orthonormal, B zero.
- ``svd``: the rows of A the base matrix's leading right singular vectors, B zero (PiSSA's
  directions without its change of the base: Meng et al. 2024, https://arxiv.org/abs/2404.02948).

With a core between A and B (``fedsb``) the columns of B are orthonormal too, or the left singular
vectors, and the core is zero. The data-driven start of LoRA-SB, a gradient over records, is not
covered: it would be a release.

The first two are the same bits on every machine: AES words, and sums that are rounded once
(``math.fsum``). Singular vectors are not, so they travel with the state.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from torch import nn

from common.errors import InvalidInput
from common.job import Job
from common.layout import ADAPTER, Factors, Matrices, factors_of
from common.privacy.stream import Stream, public_keys

Matrix = NDArray[np.float64]

_HEAD_BOUND = 0.035  # uniform: the standard deviation of BERT's normal(0, 0.02)


def initialise(model: nn.Module, job: Job, is_new_head: Callable[[str], bool]) -> None:
    """Fill what ``model`` trains or freezes beside the base.

    Args:
        model: with the job's adapter on it.
        job: whose ``adapter`` section says how.
        is_new_head: whether the base has no weights for a parameter of a head, by its name.

    Raises:
        InvalidInput: more ranks than the smallest matrix has, where A is or becomes orthonormal.
    """
    keys = public_keys("initial adapter", str(job.adapter.seed))

    def stream(name: str) -> Stream:
        return Stream(keys(name, 0, 0))

    with torch.no_grad():
        for factors in factors_of(model):
            _fill_factors(factors, job, stream)
        for name, parameter in sorted(model.named_parameters()):
            if ".modules_to_save." not in name:
                continue
            if is_new_head(name):
                bound = _HEAD_BOUND if parameter.dim() > 1 else 0.0
                _put(parameter, _uniform(tuple(parameter.shape), bound, stream(name)))
            elif parameter.requires_grad:
                parameter.data = parameter.data.float()


def _fill_factors(factors: Factors, job: Job, stream: Callable[[str], Stream]) -> None:
    (rank, inputs), outputs = factors.a.shape, factors.b.shape[0]
    how, method = job.adapter.start, job.adapter.method
    # FedSVD makes rows of A orthonormal in every round, whatever they began as.
    if (how != "uniform" or method == "fedsvd") and rank > min(inputs, outputs):
        raise InvalidInput(
            f"adapter.rank must be at most {min(inputs, outputs)} with method {method!r} and init "
            f"{how!r} ({factors.name} has no more), got {rank}"
        )
    right, left = _STARTS[how](factors, rank, stream)
    _put(factors.a, right)
    if factors.core is None:
        _put(factors.b, np.zeros((outputs, rank)))
    else:
        _put(factors.b, left().T)
        _put(factors.core, np.zeros((rank, rank)))


# (factors, rank, name -> stream) -> the rows of A, and a function for those of B's transpose.
Start = Callable[[Factors, int, Callable[[str], Stream]], tuple[Matrix, Callable[[], Matrix]]]


def _uniform_start(
    factors: Factors, rank: int, stream: Callable[[str], Stream]
) -> tuple[Matrix, Callable[[], Matrix]]:
    inputs = factors.a.shape[1]
    drawn = _uniform((rank, inputs), 1 / math.sqrt(inputs), stream(factors.a_name))
    return drawn, lambda: np.zeros((rank, factors.b.shape[0]))


def _orthonormal_start(
    factors: Factors, rank: int, stream: Callable[[str], Stream]
) -> tuple[Matrix, Callable[[], Matrix]]:
    def rows(name: str, width: int) -> Matrix:
        return orthonormal(_uniform((rank, width), 1.0, stream(name)))

    return rows(factors.a_name, factors.a.shape[1]), lambda: rows(
        factors.b_name, factors.b.shape[0]
    )


def _singular_start(
    factors: Factors, rank: int, stream: Callable[[str], Stream]
) -> tuple[Matrix, Callable[[], Matrix]]:
    del stream
    left, right = singular_vectors(factors.base.double().cpu().numpy(), rank)
    return right, lambda: left.T


_STARTS: dict[str, Start] = {
    "uniform": _uniform_start,
    "orthonormal": _orthonormal_start,
    "svd": _singular_start,
}


def drawn_a(job: Job, matrices: Matrices, round_: int) -> Matrix:
    """Another public A, (r, k), for the rounds after ``round_``."""
    keys = public_keys("initial adapter", str(job.adapter.seed))
    stream = Stream(keys(f"{matrices.name}.lora_A.{ADAPTER}.weight", round_, 0))
    shape = matrices.rank, matrices.inputs
    if job.adapter.start == "uniform":
        return _uniform(shape, 1 / math.sqrt(matrices.inputs), stream)
    return orthonormal(_uniform(shape, 1.0, stream))


def _uniform(shape: tuple[int, ...], bound: float, stream: Stream) -> Matrix:
    """Uniform in [-bound, bound)."""
    drawn: Matrix = (2 * stream.uniforms(math.prod(shape)) - 1) * bound
    return drawn.reshape(shape)


def _put(parameter: nn.Parameter, values: Matrix) -> None:
    """In fp32 whatever the base's dtype, as noise needs it."""
    parameter.data = torch.from_numpy(values.astype(np.float32)).view(parameter.shape)


def orthonormal(rows: Matrix) -> Matrix:
    """The rows of an (r, k) matrix made orthonormal, r <= k, by Gram and Schmidt, twice.

    The same bits everywhere: every sum is rounded once, and what else there is are single products,
    differences and quotients.
    """
    found: list[Matrix] = []
    for row in rows:
        for _ in range(2):  # the second time takes off what rounding left
            for other in found:
                row = row - math.fsum(row * other) * other
        found.append(row / math.sqrt(math.fsum(row * row)))
    return np.stack(found)


def singular_vectors(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Leading left (d, r) and right (r, k) singular vectors of a (d, k) matrix, largest first.

    Each pair's sign makes the largest entry of the right one positive.
    """
    if rank < min(matrix.shape) // 4:
        left, values, right = svds(matrix, k=rank, v0=np.ones(min(matrix.shape)))
        order = np.argsort(-values)
        left, right = left[:, order], right[order]
    else:
        left, _, right = np.linalg.svd(matrix, full_matrices=False)
        left, right = left[:, :rank], right[:rank]
    signs = signs_of(right)
    return left * signs, right * signs[:, None]


def signs_of(rows: Matrix) -> Matrix:
    """For each row of an (r, k) matrix the sign of its largest entry, (r,)."""
    largest = np.abs(rows).argmax(axis=1)
    return np.where(rows[np.arange(len(rows)), largest] < 0, -1.0, 1.0)
