"""Checks of what is added up: gradients, units, bounds, divisor, the saved adapter.

Where rows or sums are compared bit for bit, the same kernel must run on rows of the same alignment:
physical batches of a fixed shape and the buffer's aligned rows see to it, and the check on
neighbours that they do on the device and dtype in use.

Not covered: padded lengths between those that are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from common.data.records import Record
from common.errors import SelfCheckFailed
from common.privacy.clipping import LATTICE, sensitivity
from common.privacy.drawcheck import place, require_whole_samples
from common.privacy.mechanism import Mechanism
from common.privacy.subject import PublicRecord, PublicUnits, Subject, places

ADVERSARY = 1e6  # gradient norm of the adversarial record, in clip norms

_MOST_OF_A_UNIT = 2000  # records that are grouped
_MOST_BATCHES = 16  # physical ones, of those that must all be added up
_RARE = 1e-6  # of steps sample more units

_REMEDY = (
    "a loss or a layer that mixes records, or a device whose sums depend on a row's place: "
    "runtime.physical_batch = 1 helps the latter"
)


def check_gradients(subject: Subject) -> None:
    """Every trainable tensor has a gradient, moves in a round, and is in the saved adapter."""
    _require_trainables(subject)
    try:
        gradient = subject.unit_gradients(_units(subject, 1))[0].cpu().numpy()
    except SelfCheckFailed as error:
        raise SelfCheckFailed(f"gradients: {error}") from error
    change = subject.change(_units(subject, 3), _without_chance(subject.mechanism))
    kept = subject.reread(change)
    for name, columns in places(subject.tensors):
        _require_moved(name, gradient[columns], change[columns], kept[columns])


def _require_trainables(subject: Subject) -> None:
    """What is trained is what the job's flat vector holds: nothing was frozen or added since."""
    if not subject.tensors:
        raise SelfCheckFailed("gradients: something must be trainable, got nothing that is")
    for name, _ in set(subject.tensors) - set(subject.trainables):
        raise SelfCheckFailed(f"gradients: {name} must be trainable, got it frozen or reshaped")
    for name, _ in set(subject.trainables) - set(subject.tensors):
        raise SelfCheckFailed(f"gradients: {name} must be frozen, got it trainable")
    if subject.trainables != subject.tensors:
        raise SelfCheckFailed("gradients: trainable tensors must keep their order, got another")


def _require_moved(
    name: str,
    gradient: NDArray[np.float32],
    change: NDArray[np.float32],
    kept: NDArray[np.float32],
) -> None:
    for what, vector in (("have a gradient", gradient), ("move in a round", change)):
        if not vector.any():
            raise SelfCheckFailed(
                f"gradients: {name} must {what}, got none (a lattice of 2^20 units "
                "in a clip norm far above the gradients?)"
            )
    if not np.allclose(kept, change, atol=1e-6):
        raise SelfCheckFailed(f"gradients: {name} must be saved as it was trained, got another")


def check_dropout(subject: Subject) -> None:
    """Nothing is dropped at random, so that what is clipped is what is added."""
    if subject.has_dropout():
        raise SelfCheckFailed("dropout: every module must keep all activations, got dropout")
    if not torch.equal(
        subject.unit_gradients(_units(subject, 2)), subject.unit_gradients(_units(subject, 2))
    ):
        raise SelfCheckFailed("dropout: a gradient must be the same twice, got two")


def check_neighbours(subject: Subject) -> None:
    """A unit's row and what it adds are the same bits whoever else is in the batch, and where.

    On this device and dtype, at the least and greatest padded length and one between.
    """
    for length in subject.lengths:
        _require_own_rows(subject, length)
    everyone = _units(subject, subject.rows + 3)
    total = subject.bounded_sum(everyone)
    for left_out in (0, subject.rows + 1):
        rest = [unit for i, unit in enumerate(everyone) if i != left_out]
        if not torch.equal(
            total - subject.bounded_sum(rest), subject.bounded_sum([everyone[left_out]])
        ):
            raise SelfCheckFailed(
                "neighbours: removing a unit must leave the others' sum as it is, bit for bit, "
                f"got another ({_REMEDY})"
            )


def _require_own_rows(subject: Subject, length: int) -> None:
    """Rows before they are rounded, which hides most of what neighbours can do to them."""
    rows = subject.rows
    batch = [[PublicRecord(i, length=length)] for i in range(rows)]
    # Everybody one place further, every third unit another one, the last places empty.
    origins = [None if i % 3 == 2 else i - 1 for i in range(max(1, rows * 3 // 4))]
    moved = [
        [PublicRecord(rows + i, length=length)] if origin is None else batch[origin]
        for i, origin in enumerate(origins)
    ]
    first, second = subject.unit_gradients(batch), subject.unit_gradients(moved)
    kept = [(i, origin) for i, origin in enumerate(origins) if origin is not None]
    if not all(torch.equal(first[origin], second[i]) for i, origin in kept):
        raise SelfCheckFailed(
            "neighbours: a unit's gradient must be the same bits beside others and elsewhere in "
            f"the batch, got others at {length} tokens ({_REMEDY})"
        )


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
    """A unit's records stay together, however many, and move the sum no more than one may."""
    cap = subject.mechanism.unit_cap
    if cap is not None:
        adversary, other = _adversary(subject, 1), _adversary(subject, 2)
        # More than a physical batch has rows, all pulling one way.
        many = [adversary] * min(cap, 2 * subject.rows + 1)
        for unit in (many, [adversary, other][:cap]):
            _require_bounded(subject, "unit: one unit", [[PublicRecord(0)]], unit)
    # As many records as a step sees of a unit, and more, with others' between them.
    several = min(cap or 1, _MOST_OF_A_UNIT) + 2
    mine = [Record(f"mine {i}", "label", unit="a") for i in range(several)]
    others = [Record(f"of another {i}", "label", unit=f"b{i}") for i in range(several)]
    mixed = [record for pair in zip(mine, others, strict=True) for record in pair]
    found = [{record.text for record in unit} for unit in subject.group(mixed)]
    wanted = [{record.text} for record in (mixed if cap is None else others)]
    wanted += [] if cap is None else [{record.text for record in mine}]
    if sorted(map(sorted, found)) != sorted(map(sorted, wanted)):
        raise SelfCheckFailed(
            f"unit: {several} records of one and as many of others must make {len(wanted)} units, "
            f"each with its own, got {len(found)} units"
        )


def check_duplicates(subject: Subject) -> None:
    """What one unit's records say drops none of another's."""
    units = subject.group([Record("the same text", "label", unit=unit) for unit in ("a", "b", "c")])
    if len(units) != 3:
        raise SelfCheckFailed(
            f"duplicates: three units with one text must stay three, got {len(units)}"
        )


def check_whole_batch(subject: Subject) -> None:
    """Every sampled unit is added up, also where units are too many for memory."""
    require_whole_samples(subject)
    rows, sure = subject.rows, _without_chance(subject.mechanism)
    rate, divisor = subject.mechanism.sampling_rate, subject.public_divisor
    largest = int(binom.isf(_RARE, math.ceil(divisor / rate), rate))
    count = max(3 * rows + 2, min(largest, _MOST_BATCHES * rows))
    everyone = [[PublicRecord(i, length=subject.lengths[0])] for i in range(count)]
    parts = [subject.bounded_sum(everyone[i : i + rows]) for i in range(0, count, rows)]
    released = subject.release(everyone, sure, *place(0)).double()
    wanted = torch.stack(parts).sum(dim=0).double() * _unit(sure) / divisor
    if not torch.allclose(released, wanted, rtol=1e-6, atol=0):
        raise SelfCheckFailed("whole batch: every sampled unit must be added, got another sum")


def check_finite(subject: Subject) -> None:
    """A unit whose gradient is not a number counts as zero and spoils no other."""
    whole = subject.bounded_sum(_units(subject, 2))
    spoilt = [[PublicRecord(2, math.nan)], [PublicRecord(3, math.inf)]]
    if subject.mechanism.unit_cap is not None:
        spoilt.append([PublicRecord(4), PublicRecord(5, math.nan), PublicRecord(6)])
    for unit in spoilt:
        if not torch.equal(whole, subject.bounded_sum([*_units(subject, 2), unit])):
            raise SelfCheckFailed(
                "finite: a unit with a gradient that is not a number must count as 0, got other"
            )


def check_divisor(subject: Subject) -> None:
    """A step's sum is divided by rate times declared population, whoever was sampled."""
    sure = _without_chance(subject.mechanism)
    for count in (1, 5):
        units = _units(subject, count)
        released = subject.release(units, sure, *place(count)).double()
        wanted = subject.bounded_sum(units).double() * (_unit(sure) / subject.public_divisor)
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


def _unit(mechanism: Mechanism) -> float:
    """A lattice unit, in numbers of a gradient."""
    return (mechanism.clip_norm or 1.0) / LATTICE
