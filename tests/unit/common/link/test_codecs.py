import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.link.codecs import CODECS, Vector
from common.link.rows import rows_of

ANY_BITS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)


def through(name: str, vector: Vector, *shapes: tuple[int, ...]) -> Vector:
    codec, rows = CODECS[name], rows_of(shapes or (vector.shape,))
    return codec.decode(codec.encode(vector, rows), rows)


def through_bf16(vector: Vector) -> Vector:
    return through("bf16", vector)


@pytest.mark.parametrize("pattern", range(8))
def test_bf16_rounds_as_torch_does(pattern: int) -> None:
    import torch  # the oracle: a second implementation of the same rounding

    # Every upper half there is (all exponents, both signs, infinities, NaNs, denormals) with lower
    # halves around the tie.
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    low = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x4000, 0xC001][pattern]
    vector = (upper | np.uint32(low)).view(np.float32)

    ours = through_bf16(vector)
    theirs = torch.from_numpy(vector).to(torch.bfloat16).to(torch.float32).numpy()

    is_nan = np.isnan(vector)
    assert np.array_equal(np.isnan(ours), is_nan)
    assert np.array_equal(ours[~is_nan].view(np.uint32), theirs[~is_nan].view(np.uint32))


@given(ANY_BITS)
@example([0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0x7FC00001, 0x00000001, 0x80000000])
def test_fp32_gives_back_the_same_bits(bits: list[int]) -> None:
    codec = CODECS["fp32"]
    vector = np.array(bits, np.uint32).view(np.float32)
    rows = rows_of([vector.shape])
    data = codec.encode(vector, rows)
    assert data == np.array(bits, "<u4").tobytes()
    assert np.array_equal(codec.decode(data, rows).view(np.uint32), vector.view(np.uint32))


@given(ANY_BITS)
def test_rounding_twice_is_rounding_once(bits: list[int]) -> None:
    once = through_bf16(np.array(bits, np.uint32).view(np.float32))
    assert np.array_equal(through_bf16(once).view(np.uint32), once.view(np.uint32))


def test_bf16_is_the_upper_half_of_a_little_endian_float() -> None:
    assert (
        CODECS["bf16"].encode(np.array([1.0, -2.0], np.float32), rows_of([(2,)])).hex()
        == "803f00c0"
    )


SHAPES = ((3, 5), (7, 2), (4,))  # 15 + 14 + 4 numbers in 3 + 2 + 1 rows


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fp32", 4 * 33), ("bf16", 2 * 33), ("int8", 4 * 6 + 33), ("int4", 4 * 6 + 17)],
)
def test_a_codec_writes_the_bytes_it_says(name: str, expected: int) -> None:
    codec, rows = CODECS[name], rows_of(SHAPES)
    assert codec.payload_bytes(rows) == expected
    assert len(codec.encode(np.ones(33, np.float32), rows)) == expected


def test_fp32_is_read_from_the_bytes_themselves() -> None:
    rows = rows_of([(3,)])
    data = CODECS["fp32"].encode(np.ones(3, np.float32), rows)
    assert np.shares_memory(CODECS["fp32"].decode(data, rows), np.frombuffer(data, np.uint8))


def test_rows_run_along_the_longer_side() -> None:
    rows = rows_of(((2, 3), (3, 2), (2,)))
    ordered = [part.tolist() for part in np.split(rows.order, rows.begins[1:])]
    assert ordered == [[0, 1, 2], [3, 4, 5], [6, 8, 10], [7, 9, 11], [12, 13]]
    assert rows.lengths.tolist() == [3, 3, 3, 3, 2]


def rows_by_hand(vector: Vector) -> list[Vector]:
    parts = [vector[:15].reshape(3, 5), vector[15:29].reshape(7, 2).T, vector[29:].reshape(1, 4)]
    return [row for part in parts for row in part]


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
@given(values=hnp.arrays(np.float32, 33, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_whole_numbers_are_the_nearest_of_their_row(name: str, most: int, values: Vector) -> None:
    """Each row on its own: half a step off at the most, and its largest number exact."""
    found = through(name, values, *SHAPES)
    for row, back in zip(rows_by_hand(values), rows_by_hand(found), strict=True):
        largest = float(np.abs(row).max())
        assert np.abs(row.astype(float) - back).max() <= largest / most * 0.5 * (1 + 1e-5) + 1e-44
