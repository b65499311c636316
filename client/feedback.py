"""What a coarse codec rounded off a round's update, carried into the next one.

Without it what is too small for a row's scale would never arrive (error feedback: Seide et al.
2014; Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847). What is carried is a function of
noised updates, so that it costs no privacy, and it stays in memory: after a restart one round's
rounding is lost, and nothing else.

Where tensors take turns (``rolora``) each turn's rounding waits for the next of its kind.

Not covered: methods whose numbers stand for something else in the next round; they carry nothing.
"""

import numpy as np

from client.train import Trainer
from common.adapter import Vector
from common.link.codecs import CODECS
from common.link.payload import rounded
from common.methods import METHODS

_COARSE = ("int8", "int4")


class Feedback:
    """What was rounded off, by job and by what is trained."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], Vector] = {}

    def carried(self, trainer: Trainer, round_: int, change: Vector) -> Vector:
        """The change (P,) with what the job's earlier rounds left out of the same tensors."""
        job, table = trainer.job, trainer.trained(round_).table
        codec = job.training.codec
        if codec not in _COARSE or not METHODS[job.adapter.method].is_stationary:
            return change
        key = job.sha256, table.sha256
        carried: Vector = change + self._left.get(key, 0)
        left = carried - rounded(carried, table, CODECS[codec])
        if np.isfinite(left).all():  # a round that overflowed has no update, and leaves no trace
            self._left[key] = left
        return carried

    def forget(self, job_sha256: str) -> None:
        """A job has ended."""
        self._left = {key: left for key, left in self._left.items() if key[0] != job_sha256}
