import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.adapter import Vector
from server.aggregate import StreamingMean, length

vectors = hnp.arrays(np.float32, 5, elements=st.floats(-1e6, 1e6, width=32))
weights = st.floats(1e-6, 1, exclude_min=True)


def fold(pairs: list[tuple[Vector, float]]) -> Vector:
    mean = StreamingMean(5)
    for vector, weight in pairs:
        mean.add(vector, weight)
    return mean.mean().astype(np.float32)


@given(st.lists(st.tuples(vectors, weights), min_size=1, max_size=6))
def test_the_mean_is_the_closed_form(pairs: list[tuple[Vector, float]]) -> None:
    expected = np.average(
        np.array([v for v, _ in pairs], dtype=np.longdouble), axis=0, weights=[w for _, w in pairs]
    ).astype(np.float64)
    assert np.allclose(fold(pairs), expected, rtol=1e-6, atol=5e-7 * 1e6)


@given(st.lists(st.tuples(vectors, weights), min_size=2, max_size=4))
def test_the_order_of_arrival_reaches_no_more_than_the_last_bits(
    pairs: list[tuple[Vector, float]],
) -> None:
    orders = [fold(list(order)) for order in itertools.permutations(pairs)]
    largest = max(np.abs(v).max() for v, _ in pairs)
    assert all(np.abs(o - orders[0]).max() <= 5e-7 * largest for o in orders)


@given(vectors, weights)
def test_one_vector_is_its_own_mean(vector: Vector, weight: float) -> None:
    assert np.allclose(fold([(vector, weight)]), vector, rtol=3e-7, atol=1e-38)


def test_sites_that_are_absent_leave_the_weights_of_the_others_whole() -> None:
    pair = [(np.full(5, 3.0, np.float32), 0.2), (np.full(5, 7.0, np.float32), 0.3)]
    assert fold(pair).tolist() == pytest.approx([5.4] * 5)


def test_nothing_folded_in_is_zero_and_has_no_weight() -> None:
    mean = StreamingMean(5)
    assert mean.weight == 0
    assert mean.mean().tolist() == [0.0] * 5


def test_what_was_folded_in_may_change_afterwards() -> None:
    mean, vector = StreamingMean(5), np.full(5, 3.0, np.float32)
    mean.add(vector, 0.4)
    vector[:] = 99
    assert mean.mean().tolist() == pytest.approx([3.0] * 5)


@given(
    hnp.arrays(
        np.float32, st.integers(0, 300), elements=st.floats(-(2.0**120), 2.0**120, width=32)
    ),
    st.sampled_from([0, 65_535, 65_536, 200_000]),
)
def test_a_length_is_numpys_norm_in_float64_however_long_the_vector(
    few: Vector, zeros: int
) -> None:
    """Also where the squares are beyond float32, and over more than one piece."""
    vector = np.concatenate([few, np.zeros(zeros, np.float32), few])
    vector.flags.writeable = False
    assert length(vector) == pytest.approx(np.linalg.norm(vector.astype(np.float64)), rel=1e-12)
