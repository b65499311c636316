"""What rounding leaves out is carried on: what was sent and what is left add up to what was."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.feedback import Feedback
from common.adapter import Vector
from common.layout import AdapterTable, TensorSpec, Trained
from common.link.codecs import CODECS
from common.link.rows import rows_of
from common.methods import METHODS

Floats = NDArray[Any]
TABLE = AdapterTable((TensorSpec("b", (9, 4)), TensorSpec("c", (5,))))


class Section:
    def __init__(self, **values: Any) -> None:  # noqa: ANN401
        self.__dict__ |= values


class Site:
    """As much of a trainer as is asked."""

    def __init__(self, codec: str, method: str) -> None:
        training, adapter = Section(codec=codec), Section(method=method)
        self.job = Section(sha256="aa", training=training, adapter=adapter)

    def trained(self, _: int) -> Trained:
        return Trained(TABLE, np.arange(41))


def received(vector: Vector, codec: str) -> Vector:
    rows = rows_of(spec.shape for spec in TABLE.tensors)
    return CODECS[codec].decode(CODECS[codec].encode(vector, rows), rows)


def run(codec: str, method: str = "ffa", rounds: int = 12) -> tuple[Floats, Floats, Floats]:
    """All changes of some rounds together, all that arrived, and the last round's scales."""
    site: Any = Site(codec, method)
    feedback, rng = Feedback(), np.random.default_rng(3)
    made, arrived = np.zeros(41), np.zeros(41)
    for round_ in range(1, rounds + 1):
        change = rng.normal(0, 1, 41).astype(np.float32)
        carried = feedback.carried(site, round_, change)
        made += change
        arrived += received(carried, codec)
    return made, arrived, np.abs(carried)


@pytest.mark.parametrize(("codec", "most"), [("int8", 127), ("int4", 7)])
def test_after_many_rounds_one_rounding_is_missing(codec: str, most: int) -> None:
    made, arrived, last = run(codec)
    assert np.abs(made - arrived).max() <= last.max() / most * 0.5 * 1.01 + 1e-5


def test_without_feedback_roundings_add_up() -> None:
    """What the test above would find if nothing were carried."""
    made, arrived, last = run("int4", method="fedsvd", rounds=60)
    assert np.abs(made - arrived).max() > last.max() / 7 * 0.5 * 1.5


class Turning(Site):
    """Trains one table in odd rounds and another in even ones."""

    def trained(self, round_: int) -> Trained:
        kept = AdapterTable((TensorSpec("a" if round_ % 2 else "b", (9, 4)), TABLE.tensors[1]))
        return Trained(kept, np.arange(41))


def test_where_tensors_take_turns_each_gets_its_own_rounding_back() -> None:
    site: Any = Turning("int4", "rolora")
    feedback, rng = Feedback(), np.random.default_rng(3)
    made, arrived, last = np.zeros((2, 41)), np.zeros((2, 41)), np.zeros((2, 41))
    for round_ in range(1, 61):
        change = rng.normal(0, 1, 41).astype(np.float32)
        carried, turn = feedback.carried(site, round_, change), round_ % 2
        made[turn] += change
        arrived[turn] += received(carried, "int4")
        last[turn] = np.abs(carried)
    for turn in range(2):
        most = last[turn].max() / 7 * 0.5
        assert np.abs(made[turn] - arrived[turn]).max() <= most * 1.01 + 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_what_keeps_its_meaning_is_carried(method: str) -> None:
    site: Any = Site("int4", method)
    feedback, change = Feedback(), np.linspace(-1, 1, 41, dtype=np.float32)
    first, second = (feedback.carried(site, round_, change).copy() for round_ in (1, 2))
    turned = {"fedsvd", "flora", "flexlora"}
    assert np.array_equal(first, second) == (method in turned)


@pytest.mark.parametrize("codec", ["fp32", "bf16"])
def test_finer_codecs_carry_nothing(codec: str) -> None:
    site: Any = Site(codec, "ffa")
    change = np.linspace(-1, 1, 41, dtype=np.float32)
    feedback = Feedback()
    assert feedback.carried(site, 1, change) is change
    assert feedback.carried(site, 2, change) is change


def test_a_round_that_overflowed_does_not_spoil_the_next() -> None:
    site: Any = Site("int8", "ffa")
    feedback, change = Feedback(), np.linspace(-1, 1, 41, dtype=np.float32)
    feedback.carried(site, 1, change)
    expected = feedback.carried(site, 2, change).copy()
    again = Feedback()
    again.carried(site, 1, change)
    for wrong in (np.inf, np.nan):
        with np.errstate(all="ignore"):
            again.carried(site, 2, np.full(41, wrong, np.float32))
    assert np.array_equal(again.carried(site, 3, change), expected)


def test_an_ended_job_leaves_nothing() -> None:
    site: Any = Site("int4", "ffa")
    feedback, change = Feedback(), np.linspace(-1, 1, 41, dtype=np.float32)
    first = feedback.carried(site, 1, change).copy()
    assert not np.array_equal(feedback.carried(site, 2, change), first)
    feedback.forget("aa")
    assert np.array_equal(feedback.carried(site, 3, change), first)
