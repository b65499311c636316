"""How well members of the training data are told from others by an adapter that was released.

Two attacks: the loss alone (Yeom et al. 2018, https://arxiv.org/abs/1709.01604), and RMIA
(Zarifzadeh, Liu and Shokri 2024, https://arxiv.org/abs/2312.03262), which compares a record's
probability with what reference adapters, trained without it, say of it, and with the same of other
records. They are reported by the rate of members found at few false alarms (Carlini et al. 2022,
https://arxiv.org/abs/2112.03570), with exact intervals of both rates: the threshold is the score of
one of the few others at hand, and of all others more, or fewer, may lie above it.

Not covered: these figures are no epsilon and bound none: a stronger attack may find more.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.audit.gaussian import interval
from common.errors import InvalidInput

Floats = NDArray[np.float64]

FALSE_POSITIVES = (0.001, 0.01)
OFFLINE = 0.3  # RMIA's a: how much likelier a member's own references would find it
GAMMA = 1.0  # RMIA's threshold on a ratio of ratios


@dataclass(frozen=True, slots=True)
class Rate:
    """Members found at a rate of false alarms.

    Attributes:
        false_positives: the rate, of the non-members at hand.
        false_positives_low: Clopper and Pearson's 95 % interval of the rate among all non-members.
        false_positives_high: its upper end.
        found: share of members whose score is above all but so many non-members'.
        low: Clopper and Pearson's 95 % interval of that share, at this threshold.
        high: its upper end.
    """

    false_positives: float
    false_positives_low: float
    false_positives_high: float
    found: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Attack:
    """What one attack reached.

    Attributes:
        name: loss or rmia.
        auc: area under its ROC curve; 0.5 is guessing.
        rates: at each of ``FALSE_POSITIVES`` that there are non-members enough for.
    """

    name: str
    auc: float
    rates: tuple[Rate, ...]


def rmia(target: Floats, references: Floats, others: Floats, others_references: Floats) -> Floats:
    """RMIA's offline score of each record, (n,): the share of ``others`` that it stands out from.

    Args:
        target: losses under the audited adapter, (n,).
        references: losses under K adapters trained without these records, (K, n).
        others: losses of other records under the audited adapter, (z,).
        others_references: of the same under the K adapters, (K, z).
    """
    ratios = _likelihood_ratio(target, references)
    beside = np.sort(_likelihood_ratio(others, others_references))
    share: Floats = np.searchsorted(beside, ratios / GAMMA, side="left") / beside.size
    # Among those that stand out from all others, by how much.
    return share + ratios * 1e-9


def _likelihood_ratio(target: Floats, references: Floats) -> Floats:
    """p(record | audited) over p(record), the latter from references that never saw it."""
    without = np.exp(-references).mean(axis=0)
    prior = ((1 + OFFLINE) * without + 1 - OFFLINE) / 2
    ratio: Floats = np.exp(-target) / prior
    return ratio


def reached(name: str, members: Floats, others: Floats) -> Attack:
    """How far an attack's scores (higher: a member) tell ``members`` (n,) from ``others`` (m,).

    Raises:
        InvalidInput: no members or no others.
    """
    if not members.size or not others.size:
        raise InvalidInput(
            f"members and others must be at least 1 each, got {members.size} and {others.size}"
        )
    rates = tuple(
        _rate(members, others, rate) for rate in FALSE_POSITIVES if others.size * rate >= 1
    )
    return Attack(name, _auc(members, others), rates)


def _rate(members: Floats, others: Floats, rate: float) -> Rate:
    allowed = math.floor(others.size * rate + 1e-9)
    threshold = np.sort(others)[-allowed - 1]
    found = int((members > threshold).sum())
    return Rate(
        rate,
        *_alarms(int((others > threshold).sum()), allowed, others.size),
        found / members.size,
        *interval(found, members.size),
    )


def _alarms(above: int, allowed: int, others: int) -> tuple[float, float]:
    """The interval of the rate of false alarms at a threshold that these ``others`` chose.

    The share of all others above the one of rank allowed + 1 is Beta(allowed + 1, others - allowed)
    where scores do not tie, and at most that where they do: Clopper and Pearson's upper end.
    """
    return interval(above, others)[0], interval(allowed, others)[1]


def _auc(members: Floats, others: Floats) -> float:
    """Mann and Whitney's: how often a member's score is above another's, ties by half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    not_above = np.searchsorted(ordered, members, side="right")
    return float((below + not_above).mean() / 2 / others.size)
