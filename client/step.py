"""How far the global adapter may have moved since a site last saw it.

A server that could send any adapter could send one made to extract records. Round 1 has the public
start, bit for bit; where that is singular vectors, the base's own. Later, what no round trained is
as it was, and the rest is where updates within the job's bound can have brought it, by the job's
method (``client/factors.py``), its rule and its optimiser (``client/stride.py``).

Not covered: a server that stays within the bound; what the numbers mean.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from client.factors import nearest, redrawn, residuals, same_rows
from client.move import ROUNDING, Move
from client.singular import adopted, is_at_start
from common.adapter import LoadedAdapter, Vector
from common.errors import RoundRefused
from common.job import Job
from common.methods import Part


def require_step(
    job: Job, adapter: LoadedAdapter, round_: int, state: Vector, latest: tuple[int, bytes] | None
) -> None:
    """Check that ``state`` (P,) is what the rounds since could have made of the known one.

    Args:
        job: its bound, rounds, method and rule.
        adapter: the job's, with the start that round 1 has.
        round_: that is asked for.
        state: that came with it.
        latest: round and state of the last order that was answered.

    Raises:
        RoundRefused: it is not, or there is no such round.
    """
    if round_ > job.training.rounds:
        raise RoundRefused(f"round must be at most {job.training.rounds}, got {round_}")
    known_round, known = 1, adapter.initial
    if latest is not None:
        known_round, known = latest[0], np.frombuffer(latest[1], dtype="<f4")
    move = Move(job, adapter, round_, known_round, known, state, is_first=latest is None)
    if move.is_first and job.adapter.start == "svd" and is_at_start(move):
        move = replace(move, known=adopted(move))
    if move.rounds == 0:
        move.require(move.moved(frozenset(Part)), 0.0)
    else:
        _PROMISES.get(job.adapter.method, _numbers)(move)


def _numbers(move: Move) -> None:
    """A mean, a middle or an optimiser's step of the trained numbers; the others stay."""
    move.require(move.moved(frozenset(Part) - move.trained), 0.0)
    rounding = ROUNDING * move.rounds * move.size
    move.require(move.moved(move.trained), move.rounds * move.stride, rounding=rounding)


_PROMISES: dict[str, Callable[[Move], None]] = {
    "fedsvd": same_rows,
    "fedex": residuals,
    "flora": redrawn,
    "flexlora": nearest,
}
