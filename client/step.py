"""How far the global adapter may have moved since a site last saw it.

A server that could send any adapter could send one made to extract records.

Not covered: a server that stays within the bound; what the numbers mean.
"""

import numpy as np
from numpy.typing import NDArray

from common.adapter import LoadedAdapter, Vector
from common.errors import RoundRefused
from common.job import Job
from common.layout import Layout
from common.methods import METHODS, Part
from common.products import product

# The mean of updates within the bound is within it; float32 rounds it by far less than this.
_ROUNDING = 1e-5


def require_step(
    job: Job, adapter: LoadedAdapter, round_: int, state: Vector, latest: tuple[int, bytes] | None
) -> None:
    """Check that ``state`` (P,) is within what the rounds since could have made of the known one.

    Args:
        job: its bound and rounds.
        adapter: the job's, with the start that round 1 has.
        round_: that is asked for.
        state: that came with it.
        latest: round and state of the last order that was answered.

    Raises:
        RoundRefused: it is not, or there is no such round.
    """
    known_round, known = 1, adapter.initial
    if latest is not None:
        known_round, known = latest[0], np.frombuffer(latest[1], dtype="<f4")
    if round_ > job.training.rounds:
        raise RoundRefused(f"round must be at most {job.training.rounds}, got {round_}")
    rounds, bound = max(round_ - known_round, 0), job.training.max_update_norm
    if _is_of_products(adapter.layout):
        allowed = _product_bound(adapter, known, rounds, bound)
        moved = _product_step(adapter.layout, known, state)
    else:
        allowed = bound * rounds
        moved = float(np.linalg.norm(state.astype(np.float64) - known))
    if moved > allowed * (1 + _ROUNDING):
        raise RoundRefused(
            f"global adapter must be within {allowed:g} of the one this site knows, got {moved:g}"
        )


def _is_of_products(layout: Layout) -> bool:
    """Whether A and B alone say nothing: another pair may stand for the same change."""
    travelling = METHODS[layout.method].state
    is_singular = set(layout.parts) != travelling  # its first bits are the server's
    return is_singular or layout.method in ("fedsvd", "fedex", "flora", "flexlora")


def _product_step(layout: Layout, known: Vector, state: Vector) -> float:
    """The norm of the step in head and ``fold + B A``."""
    head = _places(layout, {Part.HEAD})
    steps = [
        np.linalg.norm(product(matrices, state) - product(matrices, known))
        for matrices in layout.matrices
    ]
    return float(np.linalg.norm([np.linalg.norm(state[head] - known[head]), *steps]))


def _product_bound(adapter: LoadedAdapter, known: Vector, rounds: int, bound: float) -> float:
    """What ``rounds`` of updates within ``bound`` can do to head and products.

    (B + E)(A + D) - BA has a norm of at most (|A| + |B|) u + u^2 for an update of norm u, and the
    factors grow by u a round. A nearest product of a lower rank is at most as far again.
    """
    factors = _places(adapter.layout, {Part.A, Part.B})
    size = float(np.linalg.norm(known[factors]) + np.linalg.norm(adapter.initial[factors]))
    a_round = (1 + size + rounds * bound) * bound + bound**2
    return 2 * rounds * a_round


def _places(layout: Layout, parts: set[Part]) -> NDArray[np.bool_]:
    sizes = [spec.size for spec in layout.table.tensors]
    return np.repeat([part in parts for part in layout.parts], sizes)
