import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from common.privacy.clipping import clip_and_sum

batches = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(1, 9)),
    elements=st.one_of(
        st.floats(-2, 2, width=32),
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.sampled_from([0.0, 1e-45, -1e-38, 3e38, float("inf"), float("nan")]),
    ),
)
clip_norms = st.floats(1e-6, 1e6)


def reference(rows: NDArray[np.float32], clip_norm: float) -> NDArray[np.float64]:
    """One row after the other, in extended precision."""
    total = np.zeros(rows.shape[1], dtype=np.longdouble)
    for row in rows.astype(np.longdouble):
        if not np.isfinite(row).all():
            continue
        norm = np.sqrt((row**2).sum())
        total += row * min(1.0, clip_norm / norm) if norm > 0 else row
    return total.astype(np.float64)


@given(batches, clip_norms)
def test_the_sum_is_that_of_the_clipped_rows(rows: NDArray[np.float32], clip_norm: float) -> None:
    ours = clip_and_sum(torch.from_numpy(rows), clip_norm).numpy()
    assert np.allclose(ours, reference(rows, clip_norm), rtol=0, atol=2e-6 * len(rows) * clip_norm)


@given(batches.filter(len), clip_norms, st.data())
def test_one_row_moves_the_sum_by_at_most_c(
    rows: NDArray[np.float32], clip_norm: float, data: st.DataObject
) -> None:
    removed = data.draw(st.integers(0, len(rows) - 1))
    with_it = clip_and_sum(torch.from_numpy(rows), clip_norm)
    without = clip_and_sum(torch.from_numpy(np.delete(rows, removed, axis=0)), clip_norm)
    assert float(torch.linalg.vector_norm(with_it - without)) <= clip_norm


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e-3, 1.0, 1e10, 1e38])
def test_a_row_of_any_size_stays_within_c_and_keeps_its_direction(scale: float) -> None:
    row = torch.tensor([[3.0, -2.0, 1.0]]) * scale
    clipped = clip_and_sum(row, 0.7)
    norm = float(torch.linalg.vector_norm(row.double()))
    assert float(torch.linalg.vector_norm(clipped)) <= 0.7
    assert float(torch.linalg.vector_norm(clipped)) == pytest.approx(min(0.7, norm), rel=2e-6)
    assert torch.allclose(
        clipped / torch.linalg.vector_norm(clipped), row[0].double() / norm, rtol=1e-6
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_zero_and_spoils_no_other(bad: float) -> None:
    rows = torch.tensor([[0.3, 0.4], [bad, 1.0], [0.0, -0.2]])
    assert torch.allclose(
        clip_and_sum(rows, 9.0), torch.tensor([0.3, 0.2], dtype=torch.float64), atol=1e-5
    )


def test_a_double_row_whose_norm_overflows_counts_as_zero() -> None:
    rows = torch.tensor([[1e200, 1e200], [0.5, 0.0]], dtype=torch.float64)
    assert torch.allclose(
        clip_and_sum(rows, 2.0), torch.tensor([0.5, 0.0], dtype=torch.float64), atol=1e-5
    )


def test_no_rows_sum_to_zero() -> None:
    assert clip_and_sum(torch.zeros(0, 4), 0.7).tolist() == [0.0] * 4
