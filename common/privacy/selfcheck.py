"""Refuse to train when the mechanism is not what the accountant thinks it is.

The checks run on the loaded model, before a job's first release, on public records that take the
very path of training: grouping, sampling, per-sample gradients, clipping, noise, division, the
optimiser, the saved file. Each is a name and a function in ``CHECKS``; a new one is a line there.
Statistical ones refuse a sound mechanism less than once in ten million runs.

Not covered: a defect that shows only on certain records; reading and encoding a site's own file; a
hostile operating system.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom, chi2
from torch import Tensor

from common.data.records import Record
from common.errors import SelfCheckFailed
from common.privacy.clipping import LATTICE, sensitivity
from common.privacy.mechanism import Mechanism

FALSE_ALARM = 1e-8
ADVERSARY = 1e6  # gradient norm of the adversarial record, in clip norms
_NOISE_DRAWS = 20_000
_ROUND = -1  # it and the one below: no training rounds, so seeded streams are not touched


@dataclass(frozen=True, slots=True)
class PublicRecord:
    """A record of random tokens, by its number, and what its loss is multiplied by."""

    seed: int
    weight: float = 1.0


PublicUnits = Sequence[Sequence[PublicRecord]]


class Subject(Protocol):
    """The path of a site's training, on public units instead of its own."""

    @property
    def mechanism(self) -> Mechanism:
        """As training will use it."""

    @property
    def tensors(self) -> tuple[tuple[str, int], ...]:
        """Name and size of each trainable tensor, in the flat vector's order."""

    @property
    def public_divisor(self) -> float:
        """What the job's public numbers make the expected batch size."""

    @property
    def rows(self) -> int:
        """Rows of a physical batch."""

    def has_dropout(self) -> bool:
        """Whether the model drops anything at random."""

    def group(self, records: Sequence[Record]) -> list[list[Record]]:
        """Records as the job's privacy units."""

    def unit_gradients(self, units: PublicUnits) -> Tensor:
        """(n, P), before they are bounded."""

    def bounded_sum(self, units: PublicUnits) -> Tensor:
        """(P,), as a step adds them up."""

    def release(self, units: PublicUnits, mechanism: Mechanism, round_: int, step: int) -> Tensor:
        """(P,) float32, a step under ``mechanism`` at a site that has ``units``."""

    def change(self, units: PublicUnits, mechanism: Mechanism) -> NDArray[np.float32]:
        """(P,), a round under ``mechanism`` at a site that has ``units``."""

    def reread(self, change: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P,), ``change`` as it comes back from a saved adapter."""

    def require_agreement(self) -> None:
        """Let independent accountants compute what the job will cost."""


def check_gradients(subject: Subject) -> None:
    """Every trainable tensor has a gradient, moves in a round, and is in the saved adapter."""
    gradient = subject.unit_gradients(_units(subject, 1))[0].cpu().numpy()
    change = subject.change(_units(subject, 3), _without_chance(subject.mechanism))
    kept = subject.reread(change)
    if not any("lora_" in name for name, _ in subject.tensors):
        raise SelfCheckFailed("gradients: the adapter must be trainable, got a frozen one")
    for name, place in _places(subject.tensors):
        for what, vector in (("have a gradient", gradient), ("move in a round", change)):
            if not vector[place].any():
                raise SelfCheckFailed(f"gradients: {name} must {what}, got none")
        if not np.allclose(kept[place], change[place], atol=1e-6):
            raise SelfCheckFailed(f"gradients: {name} must be saved as it was trained, got another")


def check_dropout(subject: Subject) -> None:
    """Nothing is dropped at random, so that what is clipped is what is added."""
    if subject.has_dropout():
        raise SelfCheckFailed("dropout: every module must keep all activations, got dropout")
    if not torch.equal(
        subject.unit_gradients(_units(subject, 2)), subject.unit_gradients(_units(subject, 2))
    ):
        raise SelfCheckFailed("dropout: a gradient must be the same twice, got two")


def check_sensitivity(subject: Subject) -> None:
    """A record whose gradient is a million clip norms long moves the sum by no more than stated."""
    other, adversary = PublicRecord(0), _adversary(subject, 1)
    _require_bounded(subject, "sensitivity: one record", [[other]], [adversary])
    # Against a neighbour that points the other way, a sum clipped as a whole would move by 2 C.
    opposed = PublicRecord(1, -adversary.weight)
    twice = PublicRecord(4, _adversary(subject, 4).weight)
    _require_bounded(subject, "sensitivity: one record", [[opposed]], [twice])
    _require_bounded(subject, "sensitivity: one record", [[other]], [PublicRecord(1)])


def check_unit(subject: Subject) -> None:
    """All records of one unit together move the sum by no more than one record may."""
    if subject.mechanism.unit_cap is not None:
        unit = [_adversary(subject, seed) for seed in (1, 2, 4)]
        _require_bounded(subject, "unit: one unit", [[PublicRecord(0)]], unit)
    units = subject.group(
        [Record(f"text {i}", "label", unit="a" if i % 2 else "b") for i in (1, 2, 3)]
    )
    found = sorted(len(unit) for unit in units)
    wanted = [1, 1, 1] if subject.mechanism.unit_cap is None else [1, 2]
    if found != wanted:
        raise SelfCheckFailed(
            f"unit: three records of two must make units of {wanted}, got {found}"
        )


def check_duplicates(subject: Subject) -> None:
    """What one unit's records say drops none of another's."""
    units = subject.group([Record("the same text", "label", unit=unit) for unit in ("a", "b", "c")])
    if len(units) != 3:
        raise SelfCheckFailed(
            f"duplicates: three units with one text must stay three, got {len(units)}"
        )


def check_neighbours(subject: Subject) -> None:
    """A unit adds the same whole numbers whoever else is in the batch, on this device and dtype."""
    everyone = _units(subject, subject.rows + 3)
    total = subject.bounded_sum(everyone)
    for left_out in (0, subject.rows // 2, subject.rows + 2):
        rest = [unit for i, unit in enumerate(everyone) if i != left_out]
        if not torch.equal(
            total - subject.bounded_sum(rest), subject.bounded_sum([everyone[left_out]])
        ):
            raise SelfCheckFailed(
                "neighbours: removing a unit must leave the others' sum as it is, bit for bit, "
                "got another (a loss or a layer that mixes records, or a device whose sums depend "
                "on a row's place: runtime.physical_batch = 1 helps the latter)"
            )


def check_whole_batch(subject: Subject) -> None:
    """Units too many for memory are all added up."""
    everyone = _units(subject, 3 * subject.rows + 2)
    total = sum(subject.bounded_sum([unit]) for unit in everyone)
    if not torch.equal(subject.bounded_sum(everyone), torch.as_tensor(total)):
        raise SelfCheckFailed("whole batch: every sampled unit must be added, got another sum")


def check_finite(subject: Subject) -> None:
    """A unit whose gradient is not a number counts as zero and spoils no other."""
    whole = subject.bounded_sum(_units(subject, 2))
    spoilt = subject.bounded_sum([*_units(subject, 2), [PublicRecord(2, math.nan)]])
    if not torch.equal(whole, spoilt):
        raise SelfCheckFailed("finite: a gradient that is not a number must count as 0, got other")


def check_noise(subject: Subject) -> None:
    """Every coordinate gets noise of the deviation accounted for, and no two draws are alike."""
    mechanism, size = subject.mechanism, _size(subject)
    deviation = (
        mechanism.noise_multiplier * (mechanism.clip_norm or 0) * sensitivity(size) / LATTICE
    )
    draws = max(4, -(-_NOISE_DRAWS // size) + 1)
    scale = subject.public_divisor / deviation
    # A batch that is not empty and adds nothing: noise alone.
    still, sure = [[PublicRecord(0, 0.0)]], replace(mechanism, sampling_rate=1.0)
    released = [
        subject.release(still, sure, *_place(i)).double().cpu().numpy() * scale
        for i in range(draws)
    ]
    noise = np.concatenate(released)
    zeros = int(np.count_nonzero(noise == 0))
    # Few draws round to the lattice point 0: one in 2.5 million at a deviation of C.
    if zeros > binom.isf(
        FALSE_ALARM, noise.size, 1 / (deviation * LATTICE / (mechanism.clip_norm or 1))
    ):
        raise SelfCheckFailed(f"noise: every coordinate must get some, got {zeros} without")
    if len({draw.tobytes() for draw in released}) < draws:
        raise SelfCheckFailed("noise: every draw must be fresh, got one twice")
    _require_chi_square("noise: variance over the accounted one", float(noise @ noise), noise.size)
    for earlier, later in pairwise(released):
        overlap = float(earlier @ later) / math.sqrt(size)
        # Products of independent normals have heavier tails in few coordinates.
        if abs(overlap) > 7 + 50 / math.sqrt(size):
            raise SelfCheckFailed(
                f"noise: successive draws must be independent, got overlap {overlap:.1f} "
                "standard deviations"
            )


def check_empty(subject: Subject) -> None:
    """A step that samples nobody releases noise all the same."""
    if not subject.release([], subject.mechanism, *_place(0)).any():
        raise SelfCheckFailed(
            "empty batch: a step that samples nobody must release noise, got none"
        )


def check_sampler(subject: Subject) -> None:
    """Each unit enters each step by its own coin at the public rate.

    Batch sizes and units' counts must both spread as coins do; shuffled or fixed-size batches do
    not.
    """
    rate = subject.mechanism.sampling_rate
    units = steps = min(math.ceil(40 / rate), 4000)
    everyone = [[unit] for unit in range(units)]
    included = np.zeros((steps, units), dtype=bool)
    for step in range(steps):
        sampled = subject.mechanism.sample(everyone, *_place(step))
        included[step, [unit for (unit,) in sampled]] = True
    if rate == 1:
        if not included.all():
            raise SelfCheckFailed(
                "sampler: every unit must be included at rate 1, got some left out"
            )
        return
    _require_rate(int(included.sum()), rate, included.size)
    for what, counts in (("batch sizes", included.sum(1)), ("units", included.sum(0))):
        trials = included.size // counts.size
        spread = _dispersion(counts, trials, rate)
        # Few expected inclusions spread wider than a chi-square of ``counts.size`` degrees: one of
        # the same mean and variance has fewer (Satterthwaite 1946).
        widening = 1 + (1 - 6 * rate * (1 - rate)) / (2 * trials * rate * (1 - rate))
        _require_chi_square(
            f"sampler: spread of {what} over that of coins",
            spread / widening,
            counts.size / widening,
        )


def check_cap(subject: Subject) -> None:
    """A step sees at most the public number of a unit's records, and all of them by turns."""
    cap = subject.mechanism.unit_cap
    if cap is None:
        return
    sure, seen = replace(subject.mechanism, sampling_rate=1.0), set()
    for step in range(40):
        (sampled,) = sure.sample([range(cap + 1)], *_place(step))
        seen.update(sampled)
        if len(set(sampled)) != cap:
            raise SelfCheckFailed(f"cap: a unit must give {cap} records, got {len(set(sampled))}")
    if cap >= 1 and len(seen) == cap:
        raise SelfCheckFailed("cap: a unit's records must be chosen anew, got the same ones")


def check_divisor(subject: Subject) -> None:
    """A step's sum is divided by rate times declared population, whoever was sampled."""
    sure = _without_chance(subject.mechanism)
    unit = (sure.clip_norm or 1.0) / LATTICE
    for count in (1, 5):
        units = _units(subject, count)
        released = subject.release(units, sure, *_place(count)).double()
        wanted = subject.bounded_sum(units).double() * (unit / subject.public_divisor)
        if not torch.allclose(released, wanted, rtol=1e-6, atol=0):
            raise SelfCheckFailed(
                f"divisor: a step's sum must be divided by {subject.public_divisor:g}, got other"
            )


def check_weight(subject: Subject) -> None:
    """What a site hands out does not depend on how many records or units it has."""
    sure, still = _without_chance(subject.mechanism), [[PublicRecord(50, 0.0)]] * 2
    alone = subject.change(_units(subject, 2), sure)
    with_others = subject.change([*_units(subject, 2), *still], sure)
    if alone.tobytes() != with_others.tobytes():
        raise SelfCheckFailed("weight: an update must not scale with a site's records, but it does")


def check_accountants(subject: Subject) -> None:
    """Independent accountants agree on what the whole job costs."""
    subject.require_agreement()


def _units(subject: Subject, count: int) -> list[list[PublicRecord]]:
    """Public units; every other one has two records where units have several."""
    several = subject.mechanism.unit_cap is not None
    return [
        [PublicRecord(i), PublicRecord(1000 + i)] if several and i % 2 else [PublicRecord(i)]
        for i in range(count)
    ]


def _adversary(subject: Subject, seed: int) -> PublicRecord:
    """A record whose gradient is ``ADVERSARY`` clip norms long."""
    clip_norm = subject.mechanism.clip_norm or 1.0
    norm = float(torch.linalg.vector_norm(subject.unit_gradients([[PublicRecord(seed)]]).double()))
    if not norm > 0:
        raise SelfCheckFailed("sensitivity: a record's gradient must be positive in norm, got 0")
    adversary = PublicRecord(seed, ADVERSARY * clip_norm / norm)
    reached = float(torch.linalg.vector_norm(subject.unit_gradients([[adversary]]).double()))
    if reached < ADVERSARY * clip_norm / 2:
        raise SelfCheckFailed(
            f"sensitivity: the adversarial gradient must reach {ADVERSARY:g} C, got "
            f"{reached / clip_norm:g} C"
        )
    return adversary


def _require_bounded(
    subject: Subject, what: str, others: PublicUnits, unit: Sequence[PublicRecord]
) -> None:
    moved = subject.bounded_sum([*others, unit]) - subject.bounded_sum(others)
    distance, bound = float(torch.linalg.vector_norm(moved.double())), sensitivity(len(moved))
    if not distance <= bound:
        raise SelfCheckFailed(
            f"{what} must move the sum by at most {bound / LATTICE:.6g} C, got "
            f"{distance / LATTICE:.6g} C"
        )


def _without_chance(mechanism: Mechanism) -> Mechanism:
    """Everybody is sampled, and nothing is added."""
    return replace(mechanism, sampling_rate=1.0, noise_multiplier=0.0)


def _size(subject: Subject) -> int:
    return sum(size for _, size in subject.tensors)


def _places(tensors: Sequence[tuple[str, int]]) -> list[tuple[str, slice]]:
    ends = np.cumsum([size for _, size in tensors]).tolist()
    return [(name, slice(end - size, end)) for (name, size), end in zip(tensors, ends, strict=True)]


def _place(draw: int) -> tuple[int, int]:
    """Round and step of a check's draw: two rounds in turn, so that neither alone makes it new."""
    return _ROUND - draw % 2, draw // 2


def _require_rate(found: int, rate: float, coins: int) -> None:
    low, high = binom.ppf([FALSE_ALARM, 1 - FALSE_ALARM], coins, rate)
    if not low <= found <= high:
        raise SelfCheckFailed(f"sampler: inclusion rate must be {rate:g}, got {found / coins:g}")


def _dispersion(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    return float(((counts - trials * rate) ** 2).sum() / (trials * rate * (1 - rate)))


def _require_chi_square(what: str, statistic: float, degrees: float) -> None:
    low, high = chi2.ppf([FALSE_ALARM, 1 - FALSE_ALARM], degrees)
    if not low <= statistic <= high:
        raise SelfCheckFailed(
            f"{what} must be in [{low / degrees:.3f}, {high / degrees:.3f}], "
            f"got {statistic / degrees:.3f}"
        )


# What a run without noise and clipping still has to keep.
WITHOUT_PRIVACY = ("gradients", "dropout", "sampler")

CHECKS: dict[str, Callable[[Subject], None]] = {
    "gradients": check_gradients,
    "dropout": check_dropout,
    "neighbours": check_neighbours,
    "sensitivity": check_sensitivity,
    "unit": check_unit,
    "duplicates": check_duplicates,
    "whole batch": check_whole_batch,
    "finite": check_finite,
    "noise": check_noise,
    "empty batch": check_empty,
    "sampler": check_sampler,
    "cap": check_cap,
    "divisor": check_divisor,
    "weight": check_weight,
    "accountants": check_accountants,
}


def run_checks(subject: Subject) -> tuple[str, ...]:
    """Run every check that applies; the names of those that passed.

    Raises:
        SelfCheckFailed: by the first that did not.
    """
    is_private = subject.mechanism.clip_norm is not None
    names = tuple(name for name in CHECKS if is_private or name in WITHOUT_PRIVACY)
    for name in names:
        CHECKS[name](subject)
    return names
