"""How numbers are written on the wire: raw little-endian buffers.

- ``bf16`` is the upper half of a float32, rounded to nearest, ties to even: 8 bits of precision.
- ``int8`` and ``int4`` are a float32 scale for each row, then whole numbers up to 127 or 7 that the
  scales multiply; of ``int4`` two in a byte, the first in the lower half.

A codec is one entry of ``CODECS``; a job names it. Rounding comes after the noise, so that it costs
no privacy; what a round's rounding left out is for the next one (``client/feedback.py``).

Not covered: whether the numbers are finite (payload.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.link.rows import Rows

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to write a float32 vector that falls into rows, in ``payload_bytes``.

    What ``decode`` gives may be a view of the bytes, and read-only.
    """

    name: str
    dtype: str
    payload_bytes: Callable[[Rows], int]
    encode: Callable[[Vector, Rows], bytes]
    decode: Callable[[bytes, Rows], Vector]


def _encode_fp32(vector: Vector, rows: Rows) -> bytes:
    del rows
    return vector.astype("<f4", copy=False).tobytes()


def _decode_fp32(data: bytes, rows: Rows) -> Vector:
    del rows
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def _encode_bf16(vector: Vector, rows: Rows) -> bytes:
    del rows
    bits = np.ascontiguousarray(vector, np.float32).view(np.uint32)
    tie_breaker = (bits >> np.uint32(16)) & np.uint32(1)
    # Adding just under half of the last place carries exactly when rounding up is nearer, or when
    # it is a tie and the kept part is odd. Past the largest value the carry makes infinity.
    upper = ((bits + (np.uint32(0x7FFF) + tie_breaker)) >> np.uint32(16)).astype("<u2")
    # The carry would turn some NaNs into infinity or zero; they all become the quiet one.
    upper[np.isnan(vector)] = 0x7FC0
    return upper.tobytes()


def _decode_bf16(data: bytes, rows: Rows) -> Vector:
    del rows
    upper = np.frombuffer(data, "<u2").astype(np.uint32)
    return (upper << np.uint32(16)).view(np.float32)


def _whole(most: int) -> Callable[[Vector, Rows], tuple[bytes, NDArray[np.int8]]]:
    """Whole numbers up to ``most``, nearest to each row over its scale, and the scales."""

    def split(vector: Vector, rows: Rows) -> tuple[bytes, NDArray[np.int8]]:
        ordered = vector[rows.order]
        scales = np.maximum.reduceat(np.abs(ordered), rows.begins) / np.float32(most)
        each = np.repeat(scales, rows.lengths)
        ratio = np.divide(ordered, each, out=np.zeros_like(ordered), where=each > 0)
        # A scale that underflows leaves a ratio above the most.
        nearest = np.clip(np.rint(ratio), -most, most)
        return scales.astype("<f4").tobytes(), nearest.astype(np.int8)

    return split


def _joined(scales: bytes, whole: NDArray[np.int8], rows: Rows) -> Vector:
    each = np.repeat(np.frombuffer(scales, "<f4"), rows.lengths)
    vector = np.empty(rows.size, np.float32)
    vector[rows.order] = whole * each
    return vector


_split_int8, _split_int4 = _whole(127), _whole(7)


def _encode_int8(vector: Vector, rows: Rows) -> bytes:
    scales, whole = _split_int8(vector, rows)
    return scales + whole.tobytes()


def _decode_int8(data: bytes, rows: Rows) -> Vector:
    cut = 4 * rows.begins.size
    return _joined(data[:cut], np.frombuffer(data[cut:], np.int8), rows)


def _encode_int4(vector: Vector, rows: Rows) -> bytes:
    scales, whole = _split_int4(vector, rows)
    nibbles = (np.append(whole, np.zeros(rows.size % 2, np.int8)) & 0xF).astype(np.uint8)
    return scales + (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def _decode_int4(data: bytes, rows: Rows) -> Vector:
    cut = 4 * rows.begins.size
    pairs = np.frombuffer(data[cut:], np.uint8)
    nibbles = np.stack([pairs & 0xF, pairs >> 4], axis=1).ravel()[: rows.size].astype(np.int8)
    return _joined(data[:cut], np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8), rows)


CODECS: dict[str, Codec] = {
    "fp32": Codec("fp32", "float32", lambda rows: 4 * rows.size, _encode_fp32, _decode_fp32),
    "bf16": Codec("bf16", "bfloat16", lambda rows: 2 * rows.size, _encode_bf16, _decode_bf16),
    "int8": Codec(
        "int8", "int8", lambda rows: 4 * rows.begins.size + rows.size, _encode_int8, _decode_int8
    ),
    "int4": Codec(
        "int4",
        "int4",
        lambda rows: 4 * rows.begins.size + (rows.size + 1) // 2,
        _encode_int4,
        _decode_int4,
    ),
}
