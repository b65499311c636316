"""Thousands of releases with and without one adversarial unit: can they be told apart too well?

Every release is drawn by the code that a site runs: sampling, clipping, rounding, adding, noise,
division. All units are sampled, so a step claims to be mu-GDP with mu = 1 / noise multiplier. The
score of a release is its component along what the adversary adds to the sum. An eighth of the
releases choose a threshold; on the others, exact bounds of the error rates bound mu from below
(Dong, Roth and Su 2019, https://arxiv.org/abs/1905.02383), and mu bounds the epsilon of the job.
Half of the significance goes to both rates together, which says most of a Gaussian, half to each of
them alone, which says most of faults that show in a tail.

Two settings: an adversary beside a unit that pulls the other way, where a sum that is bounded as a
whole moves twice as far; and an adversary at a site without any unit.

Not covered: the sampler, and randomness that somebody knows: the self-checks look at these.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.audit.gaussian import gaussian_epsilon, least_mu, most
from common.errors import InvalidInput, SelfCheckFailed
from common.privacy.clipping import LATTICE
from common.privacy.drawcheck import place
from common.privacy.mechanism import Mechanism
from common.privacy.subject import PublicRecord, PublicUnits, Subject
from common.privacy.sumcheck import ADVERSARY

Scores = NDArray[np.float64]
Release = Callable[[int, int], Tensor]

RELEASES = 40_000
LEAST_RELEASES, MOST_RELEASES = 200, 10_000_000
_ALONE = 8  # one in so many releases is of a site without other units
_LEVEL_ALONE = 0.1  # and so much of the significance is spent on it
_THRESHOLDS = 20  # that are tried: more of them fit the scores that choose too well
_CHOOSING = 8  # one score in so many chooses
_LEVEL_TOGETHER = 0.5  # of the significance, for both rates together


class AuditSubject(Subject, Protocol):
    """A site's path on public units, as the self-checks know it, that releases many times."""

    def site_with(self, units: PublicUnits, mechanism: Mechanism) -> Release:
        """(round, step) -> (P,), drawn anew each time by a site that has ``units``."""


@dataclass(frozen=True, slots=True)
class Told:
    """How well releases were told apart in one setting.

    Attributes:
        mu: the least mu that the error rates allow.
        false_positives: their upper bound, without the adversary.
        false_negatives: their upper bound, with it.
        errors: the upper bound of the mean of both.
        threshold: in clip norms along the adversary's direction.
        moved: how far the adversary moved the sum, in clip norms.
    """

    mu: float
    false_positives: float
    false_negatives: float
    errors: float
    threshold: float
    moved: float


@dataclass(frozen=True, slots=True)
class StepAudit:
    """What the audit of a step found, of both settings the one that says more.

    Attributes:
        told: how well.
        releases: drawn in all.
        mu: what the step claims.
    """

    told: Told
    releases: int
    mu: float

    def bound(self, delta: float) -> float:
        """The least epsilon of one step that samples everybody."""
        return gaussian_epsilon(self.told.mu, delta)


def audit_step(subject: AuditSubject, releases: int, level: float) -> StepAudit:
    """Tell ``releases`` with an adversary from as many without.

    Args:
        subject: a site's path.
        releases: of each kind beside another unit; an eighth of that alone.
        level: how often a sound mechanism is refuted.

    Raises:
        InvalidInput: too few or too many releases, or a job without noise.
        SelfCheckFailed: the adversary moves nothing.
    """
    if not LEAST_RELEASES <= releases <= MOST_RELEASES:
        raise InvalidInput(f"releases must be {LEAST_RELEASES} to {MOST_RELEASES}, got {releases}")
    mechanism = subject.mechanism
    if mechanism.clip_norm is None or mechanism.noise_multiplier == 0:
        raise InvalidInput("privacy.mode must be one that adds noise, got none")
    others = [[PublicRecord(1, -_weight(subject, 1))]]
    together = min(mechanism.unit_cap or 1, 2 * subject.rows + 1)
    adversary = [PublicRecord(4, _weight(subject, 4))] * together
    few = releases // _ALONE
    beside = _tell(subject, others, adversary, releases, level * (1 - _LEVEL_ALONE))
    alone = _tell(subject, [], adversary, few, level * _LEVEL_ALONE)
    told = max((beside, alone), key=lambda one: one.mu)
    return StepAudit(told, 2 * (releases + few), 1 / mechanism.noise_multiplier)


def _weight(subject: AuditSubject, seed: int) -> float:
    """What makes a record's gradient a million clip norms long."""
    gradient = subject.unit_gradients([[PublicRecord(seed)]]).double()
    norm = float(torch.linalg.vector_norm(gradient))
    if not norm > 0:
        raise SelfCheckFailed("an adversary's gradient must be above 0, got 0")
    return ADVERSARY * (subject.mechanism.clip_norm or 1.0) / norm


def _tell(
    subject: AuditSubject,
    others: PublicUnits,
    adversary: list[PublicRecord],
    releases: int,
    level: float,
) -> Told:
    sure = replace(subject.mechanism, sampling_rate=1.0)
    added = subject.bounded_sum([*others, adversary]) - subject.bounded_sum(others)
    added = added.double() / LATTICE
    moved = float(torch.linalg.vector_norm(added))
    if not moved > 0:
        raise SelfCheckFailed("an adversary must move the sum, got a sum that stays")
    without, with_it = _scores(
        [subject.site_with(others, sure), subject.site_with([*others, adversary], sure)],
        added / moved * (subject.public_divisor / (sure.clip_norm or 1.0)),
        releases,
    )
    return tell_apart(without, with_it, level, moved)


def tell_apart(without: Scores, with_it: Scores, level: float, moved: float) -> Told:
    """Choose a threshold on one score in eight, and bound the error rates on the rest.

    Args:
        without: scores without the adversary, (n,).
        with_it: with it, (n,); higher.
        level: how often the least mu may be above the true one.
        moved: told on.
    """
    chooses = np.arange(without.size) % _CHOOSING == 0
    threshold = _best_threshold(without[chooses], with_it[chooses], level)
    return _told(without[~chooses], with_it[~chooses], threshold, level, moved)


def _scores(sites: list[Release], direction: Tensor, releases: int) -> list[Scores]:
    """The scores of each site's releases, which are drawn in turn."""
    found = [np.empty(releases) for _ in sites]
    for draw in range(releases):
        for scores, release in zip(found, sites, strict=True):
            scores[draw] = float(release(*place(draw)).double() @ direction)
    return found


def _best_threshold(without: Scores, with_it: Scores, level: float) -> float:
    """What tells these releases apart best."""
    both = np.concatenate([without, with_it])
    tried = np.unique(np.quantile(both, np.linspace(0, 1, _THRESHOLDS)))
    return float(max(tried, key=lambda t: _told(without, with_it, float(t), level, 0.0).mu))


def _told(without: Scores, with_it: Scores, threshold: float, level: float, moved: float) -> Told:
    """What the errors at a threshold say of mu: as many scores of each kind."""
    alarms, misses = int((without >= threshold).sum()), int((with_it < threshold).sum())
    each = level * (1 - _LEVEL_TOGETHER) / 2
    positives = most(alarms, without.size, each)
    negatives = most(misses, with_it.size, each)
    # No test of mu-GDP has a lesser mean of both rates than ndtr(-mu / 2). A binomial of that mean
    # bounds a sum of two (Hoeffding 1956, https://doi.org/10.1214/aoms/1177728178, Theorem 4).
    errors = most(alarms + misses, without.size + with_it.size, level * _LEVEL_TOGETHER)
    mu = max(least_mu(positives, negatives), least_mu(errors, errors))
    return Told(mu, positives, negatives, errors, threshold, moved)
