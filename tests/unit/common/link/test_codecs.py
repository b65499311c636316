import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.link.codecs import CODECS, Vector

ANY_BITS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)


def through_bf16(vector: Vector) -> Vector:
    codec = CODECS["bf16"]
    return codec.decode(codec.encode(vector))


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
    data = codec.encode(vector)
    assert data == np.array(bits, "<u4").tobytes()
    assert np.array_equal(codec.decode(data).view(np.uint32), vector.view(np.uint32))


@given(ANY_BITS)
def test_rounding_twice_is_rounding_once(bits: list[int]) -> None:
    once = through_bf16(np.array(bits, np.uint32).view(np.float32))
    assert np.array_equal(through_bf16(once).view(np.uint32), once.view(np.uint32))


def test_bf16_is_the_upper_half_of_a_little_endian_float() -> None:
    assert CODECS["bf16"].encode(np.array([1.0, -2.0], np.float32)).hex() == "803f00c0"


@pytest.mark.parametrize("name", list(CODECS))
def test_a_codec_writes_the_bytes_it_says(name: str) -> None:
    codec = CODECS[name]
    assert len(codec.encode(np.zeros(7, np.float32))) == 7 * codec.itemsize


def test_a_decoded_vector_is_the_caller_s_own() -> None:
    for codec in CODECS.values():
        codec.decode(codec.encode(np.ones(3, np.float32)))[0] = 2.0
