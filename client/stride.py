"""How far one round can move what sites train, when no update is longer than the job's bound.

Let u be that bound, x_i the n updates that a round takes, and r what the rule makes of them:

- ``mean``, ``geometric-median``, ``krum`` and ``multi-krum`` give a point between updates, so that
  |r| <= u; ``norm-bound`` cuts them first.
- ``trimmed-mean`` without the f largest and f smallest of each number: where r_j >= 0, the n - f
  largest have a mean of at least r_j, so (n - f) r_j^2 <= sum_i x_ij^2, and alike where r_j < 0.
  Over all numbers |r|^2 <= n / (n - f) u^2. That falls with n, which is at least the quorum.
- ``median`` is that with f = (n - 1) / 2, or n / 2 - 1 of an even n: |r|^2 <= 2 n / (n + 1) u^2.

And of the server's optimisers (in ``server/strategies/optimizer.py``), with momentum m:

- ``fedavgm``: m is a sum of r times powers of ``momentum``, so |m| <= |r| / (1 - momentum).
- ``fedadam``: |m| <= |r|, the rate's correction no more than undoes the zero start, and the
  divisor is at least tau: a step of at most eta |r| / tau. By Cauchy and Schwarz each number of m
  is also at most c sqrt(1 - q^t) times the root of its v in round t, if q = beta_1^2 / beta_2 < 1,
  with c = (1 - beta_1) / sqrt((1 - beta_2) (1 - q)). The correction leaves that below c, as
  (1 - beta_2^(t+1)) (1 - q^t) <= (1 - sqrt(beta_2) beta_1^t)^2 <= (1 - beta_1^(t+1))^2. So over P
  numbers it is a step of at most eta sqrt(P) c.
- ``fedyogi``: the same without correction, as v is at least (2 beta_2 - 1) times the one before and
  (1 - beta_2) r^2, so that 2 beta_2 - 1 stands for beta_2 within c.

Not covered: methods that make something else of the changes (``client/factors.py``).
"""

import math

from common.aggregation import AggregationSection
from common.job import Job


def stride(job: Job, size: int) -> float:
    """The most by which a round moves ``size`` trained numbers, as a Euclidean norm."""
    bound, asked = job.training.max_update_norm, job.aggregation
    if asked is None:
        return bound
    middle = bound * _of_rule(asked, job.training.quorum, len(job.sites))
    if asked.rule == "norm-bound" and asked.norm_bound is not None:
        middle = min(middle, asked.norm_bound)
    return _of_optimizer(asked, middle, size)


def _of_rule(asked: AggregationSection, quorum: int, sites: int) -> float:
    """A middle's norm over that of the longest update."""
    if asked.rule == "median":
        return math.sqrt(2 * sites / (sites + 1))
    if asked.rule == "trimmed-mean":
        return math.sqrt(quorum / (quorum - (asked.byzantine or 0)))
    return 1.0


def _of_optimizer(asked: AggregationSection, middle: float, size: int) -> float:
    """The step's norm from middles of at most ``middle``."""
    rate, momentum = asked.learning_rate or 1.0, asked.momentum or 0.0
    beta_1, beta_2 = asked.beta_1 or 0.0, asked.beta_2 or 0.0
    if asked.optimizer == "none":
        return middle
    if asked.optimizer == "fedavgm":
        return rate * middle / (1 - momentum)
    decay = 2 * beta_2 - 1 if asked.optimizer == "fedyogi" else beta_2
    by_root = math.sqrt(size) * _over_root(beta_1, beta_2, decay)
    by_tau = middle / asked.tau if asked.tau else math.inf
    return rate * min(by_root, by_tau)


def _over_root(beta_1: float, beta_2: float, decay: float) -> float:
    """The most that a number of m is over the root of its v, which keeps ``decay`` a round."""
    if decay <= beta_1**2:
        return math.inf
    return (1 - beta_1) / math.sqrt((1 - beta_2) * (1 - beta_1**2 / decay))
