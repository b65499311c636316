"""How numbers are written on the wire: raw little-endian buffers, float32 or bfloat16.

bfloat16 is the upper half of a float32, rounded to nearest, ties to even: half the bytes, 8 bits of
precision. A codec is one entry of ``CODECS``; a job names it.

Not covered: whether the numbers are finite (payload.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to write a float32 vector, ``itemsize`` bytes a number."""

    name: str
    dtype: str
    itemsize: int
    encode: Callable[[Vector], bytes]
    decode: Callable[[bytes], Vector]


def _encode_fp32(vector: Vector) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _decode_fp32(data: bytes) -> Vector:
    return np.frombuffer(data, "<f4").astype(np.float32)  # a copy: the buffer is read-only


def _encode_bf16(vector: Vector) -> bytes:
    bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
    tie_breaker = (bits >> np.uint32(16)) & np.uint32(1)
    # Adding just under half of the last place carries exactly when rounding up is nearer, or when
    # it is a tie and the kept part is odd. Past the largest value the carry makes infinity.
    upper = ((bits + (np.uint32(0x7FFF) + tie_breaker)) >> np.uint32(16)).astype("<u2")
    # The carry would turn some NaNs into infinity or zero; they all become the quiet one.
    upper[np.isnan(vector)] = 0x7FC0
    return upper.tobytes()


def _decode_bf16(data: bytes) -> Vector:
    upper = np.frombuffer(data, "<u2").astype(np.uint32)
    return (upper << np.uint32(16)).view(np.float32)


CODECS: dict[str, Codec] = {
    "fp32": Codec("fp32", "float32", 4, _encode_fp32, _decode_fp32),
    "bf16": Codec("bf16", "bfloat16", 2, _encode_bf16, _decode_bf16),
}
