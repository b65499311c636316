"""An adapter vector as a message carries it: one raw buffer, its manifest table and its sha256.

The receiver knows the table and the codec from the job, so nothing in a payload decides how much is
read or what it becomes. Every difference from what the job says is refused with its reason before
the numbers are used; numbers that are not finite are refused on both sides.

Not covered: how large an update may be (the strategy's norm bound), who sent it (the link).
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.contents import arrays_in, config_in
from common.errors import UpdateRejected
from common.link.codecs import Codec, Vector
from common.link.rows import Rows, rows_of

ARRAYS, MANIFEST, VECTOR = "arrays", "manifest", "adapter"
STYPE = "veiltune.raw-le"
_ENVELOPE_BYTES = 64 * 1024  # metadata and the other records of a message


class Spec(Protocol):
    """A tensor's place, as common.adapter.TensorSpec has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102


class Table(Protocol):
    """A manifest table, as common.adapter.AdapterTable is (which imports torch; this must not)."""

    @property
    def tensors(self) -> Sequence[Spec]: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    def to_json(self) -> bytes: ...  # noqa: D102


def message_cap(table: Table, codec: Codec) -> int:
    """The most bytes that a message with this adapter may have."""
    return codec.payload_bytes(_rows(table)) + len(table.to_json()) + _ENVELOPE_BYTES


def pack(vector: Vector, table: Table, codec: Codec) -> dict[str, ArrayRecord | ConfigRecord]:
    """The records of a message that carry ``vector``.

    Args:
        vector: (P,) float32, in the table's order.
        table: names, shapes and dtypes of the tensors in it.
        codec: how the job says to write it.

    Returns:
        Two records, to be put into a ``RecordDict`` beside others.

    Raises:
        UpdateRejected: the vector is not the table's, or not finite once encoded.
    """
    if vector.shape != (table.size,) or vector.dtype != np.float32:
        raise UpdateRejected(
            f"vector must be float32 of shape ({table.size},), got {vector.dtype} {vector.shape}"
        )
    rows = _rows(table)
    data = codec.encode(vector, rows)
    _require_finite(codec.decode(data, rows))  # a large float32 may round to infinity
    array = Array(dtype=codec.dtype, shape=(table.size,), stype=STYPE, data=data)
    manifest = {
        "codec": codec.name,
        "table": table.to_json().decode(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return {ARRAYS: ArrayRecord({VECTOR: array}), MANIFEST: ConfigRecord({**manifest})}


def unpack(content: RecordDict, table: Table, codec: Codec) -> Vector:
    """The vector that a message carries, after every check.

    Returns:
        (P,) float32; of ``fp32`` the message's own bytes, read-only.

    Raises:
        UpdateRejected: with the first thing that differs from the job's table and codec.
    """
    manifest = _manifest(content)
    if manifest.get("codec") != codec.name:
        raise UpdateRejected(f"codec must be {codec.name}, got {_short(manifest.get('codec'))}")
    _require_table(manifest.get("table"), table)
    array = _array(content)
    data = _buffer(array, table, codec)
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise UpdateRejected("payload sha256 must be the manifest's, got another")
    vector = codec.decode(data, _rows(table))
    _require_finite(vector)
    return vector


def rounded(vector: Vector, table: Table, codec: Codec) -> Vector:
    """The vector as its receiver will have it, (P,)."""
    return codec.decode(codec.encode(vector, _rows(table)), _rows(table))


def _rows(table: Table) -> Rows:
    return rows_of(tuple(spec.shape) for spec in table.tensors)


def _manifest(content: RecordDict) -> ConfigRecord:
    record = config_in(content, MANIFEST)
    if record is None:
        raise UpdateRejected(f"message must hold a record {MANIFEST!r}, got none")
    return record


def _array(content: RecordDict) -> Array:
    record = arrays_in(content, ARRAYS)
    if record is None or list(record) != [VECTOR]:
        names = [] if record is None else [_short(name) for name in list(record)[:3]]
        raise UpdateRejected(f"arrays must be just {VECTOR!r}, got {', '.join(names) or 'none'}")
    return record[VECTOR]


def _buffer(array: Array, table: Table, codec: Codec) -> bytes:
    if array.stype != STYPE:
        raise UpdateRejected(f"array encoding must be {STYPE}, got {_short(array.stype)}")
    if array.dtype != codec.dtype:
        raise UpdateRejected(f"array dtype must be {codec.dtype}, got {_short(array.dtype)}")
    if tuple(array.shape) != (table.size,):
        raise UpdateRejected(
            f"array shape must be ({table.size},), got {_short(tuple(array.shape))}"
        )
    expected = codec.payload_bytes(_rows(table))
    if len(array.data) != expected:
        raise UpdateRejected(f"array must have {expected} bytes, got {len(array.data)}")
    return array.data


def _require_table(claimed: object, table: Table) -> None:
    expected = table.to_json()
    if not isinstance(claimed, str) or len(claimed) > 2 * len(expected) + _ENVELOPE_BYTES:
        raise UpdateRejected("manifest must hold a table of the job's size, got none")
    if claimed.encode(errors="replace") != expected:
        raise UpdateRejected(_first_difference(claimed, table))


def _first_difference(claimed: str, table: Table) -> str:
    try:
        rows = json.loads(claimed)["tensors"]
        found = [(row["name"], tuple(row["shape"]), row["dtype"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "adapter table must be a list of tensors, got something else"
    if len(found) != len(table.tensors):
        return f"adapter table must have {len(table.tensors)} tensors, got {len(found)}"
    for (name, shape, dtype), spec in zip(found, table.tensors, strict=True):
        if name != spec.name:
            return f"tensor name must be {spec.name!r}, got {_short(name)}"
        if shape != tuple(spec.shape):
            return f"shape of {spec.name} must be {tuple(spec.shape)}, got {_short(shape)}"
        if dtype != spec.dtype:
            return f"dtype of {spec.name} must be {spec.dtype}, got {_short(dtype)}"
    return "adapter table must be the job's (same tensors, another start), got another"


def _require_finite(vector: Vector) -> None:
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(vector, vector)):  # not so for one that is large enough, either
            return
    wrong = vector.size - int(np.count_nonzero(np.isfinite(vector)))
    if wrong:
        raise UpdateRejected(f"adapter must be finite, got {wrong} of {vector.size} not finite")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
