from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InvalidInput
from common.privacy.clipping import LATTICE, clip_and_sum, sensitivity

batches = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 40), st.integers(1, 9)),
    elements=st.one_of(
        st.floats(-2, 2, width=32),
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.sampled_from([0.0, 1e-45, -1e-38, 3e38, float("inf"), float("nan")]),
    ),
)
clip_norms = st.floats(1e-6, 1e6)


def summed(rows: NDArray[np.float32], clip_norm: float) -> Tensor:
    return clip_and_sum(torch.from_numpy(rows.copy()), clip_norm)


def reference(rows: NDArray[np.float32], clip_norm: float) -> NDArray[np.float64]:
    """One row after the other, in extended precision, in lattice units."""
    total = np.zeros(rows.shape[1], dtype=np.longdouble)
    for row in rows.astype(np.longdouble):
        if not np.isfinite(row).all():
            continue
        norm = np.sqrt((row**2).sum())
        total += row * min(1.0, clip_norm / norm) if norm > 0 else row
    return (total * LATTICE / clip_norm).astype(np.float64)


@given(batches, clip_norms)
def test_the_sum_is_that_of_the_clipped_rows(rows: NDArray[np.float32], clip_norm: float) -> None:
    # Each row is rounded by a half, and stays a millionth below C: a lattice unit and a half.
    ours = summed(rows, clip_norm).numpy()
    assert np.allclose(ours, reference(rows, clip_norm), rtol=0, atol=1.7 * len(rows))


@settings(max_examples=200)
@given(batches.filter(len), clip_norms, st.data())
def test_one_row_moves_the_sum_by_its_own_vector_within_the_sensitivity(
    rows: NDArray[np.float32], clip_norm: float, data: st.DataObject
) -> None:
    removed = data.draw(st.integers(0, len(rows) - 1))
    rest = np.delete(rows, removed, axis=0)
    moved = summed(rows, clip_norm) - summed(rest, clip_norm)
    assert moved.tolist() == summed(rows[removed : removed + 1], clip_norm).tolist()
    # Integers: squares and their sum are exact.
    square = sum(int(x) ** 2 for x in moved.tolist())
    assert square <= (LATTICE + 0.5 * np.sqrt(rows.shape[1])) ** 2


@given(batches, clip_norms, st.randoms())
def test_the_order_of_rows_changes_no_bit(
    rows: NDArray[np.float32],
    clip_norm: float,
    random: Random,
) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    assert torch.equal(summed(rows, clip_norm), summed(rows[order], clip_norm))


@pytest.mark.parametrize("size", [5, 16_384, 40_000])
def test_many_full_rows_add_up_exactly(size: int) -> None:
    # All of C in one coordinate: what a float32 sum of more than 16 such rows would round.
    rows = torch.zeros(67, size)
    rows[:, -2] = torch.linspace(3.0, 9.0, 67)
    (one,) = {int(clip_and_sum(rows[i : i + 1].clone(), 0.7)[-2]) for i in range(67)}
    assert LATTICE - 2 <= one <= LATTICE
    total = clip_and_sum(rows, 0.7)
    assert (int(total[-2]), int(total.abs().sum())) == (67 * one, 67 * one)


def test_the_sensitivity_is_c_and_half_a_unit_a_coordinate() -> None:
    assert sensitivity(331_776) == LATTICE + 288


def test_rounding_can_use_the_whole_sensitivity_and_no_more() -> None:
    size = 10_000
    row = torch.full((1, size), 0.7 / np.sqrt(size) * (1 + 1e-7))
    norm = float(torch.linalg.vector_norm(clip_and_sum(row, 0.7).double()))
    assert LATTICE - 60 < norm <= sensitivity(size)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e10, 1e38])
def test_a_row_of_any_size_stays_within_c_and_keeps_its_direction(scale: float) -> None:
    row = torch.tensor([[3.0, -2.0, 1.0]]) * scale
    norm = float(torch.linalg.vector_norm(row.double()))
    direction = row[0].double() / norm
    clipped = clip_and_sum(row, 0.7).double() * (0.7 / LATTICE)
    assert float(torch.linalg.vector_norm(clipped)) == pytest.approx(min(0.7, norm), rel=1e-3)
    assert torch.allclose(clipped / torch.linalg.vector_norm(clipped), direction, rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_zero_and_spoils_no_other(bad: float) -> None:
    sound = torch.tensor([[0.3, 0.4], [0.0, -0.2]])
    spoilt = torch.tensor([[0.3, 0.4], [bad, 1.0], [0.0, -0.2]])
    assert torch.equal(clip_and_sum(spoilt, 9.0), clip_and_sum(sound, 9.0))


def test_a_double_row_whose_norm_overflows_counts_as_zero() -> None:
    rows = torch.tensor([[1e200, 1e200], [0.5, 0.0]], dtype=torch.float64)
    assert clip_and_sum(rows, 2.0).tolist() == [LATTICE // 4, 0]


def test_a_double_row_that_float32_cannot_hold_is_clipped_as_any_other() -> None:
    total = clip_and_sum(torch.tensor([[3e39, -4e39]], dtype=torch.float64), 2.0)
    assert total.tolist() == pytest.approx([0.6 * LATTICE, -0.8 * LATTICE], abs=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_few_digits_are_scaled_and_rounded_in_float32(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.30, -0.21, 0.07]]).to(dtype)
    expected = rows.double() * (LATTICE / 0.7)
    assert torch.allclose(clip_and_sum(rows, 0.7).double(), expected[0], rtol=2e-6, atol=0.5)


def test_no_rows_sum_to_zero() -> None:
    assert clip_and_sum(torch.zeros(0, 4), 0.7).tolist() == [0] * 4


@pytest.mark.parametrize("clip_norm", [0.0, -0.5, 1e-31, float("nan"), float("inf")])
def test_a_clip_norm_that_no_lattice_fits_is_refused(clip_norm: float) -> None:
    with pytest.raises(InvalidInput, match="clip_norm must be at least"):
        clip_and_sum(torch.ones(2, 3), clip_norm)
