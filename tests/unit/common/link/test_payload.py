import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.link.codecs import CODECS, Vector
from common.link.payload import message_cap, pack, unpack
from common.link.rows import rows_of


@dataclass(frozen=True)
class Row:
    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Rows:
    tensors: tuple[Row, ...]

    @property
    def size(self) -> int:
        return sum(int(np.prod(row.shape)) for row in self.tensors)

    def to_json(self) -> bytes:
        rows = [{"name": r.name, "shape": r.shape, "dtype": r.dtype} for r in self.tensors]
        return json.dumps({"tensors": rows}).encode()


TABLE = Rows((Row("query.lora_B", (4, 2)), Row("head.weight", (3,))))
VECTOR = np.linspace(-2.5, 7.5, 11, dtype=np.float32)
FP32, BF16 = CODECS["fp32"], CODECS["bf16"]


def packed(vector: Vector = VECTOR) -> RecordDict:
    return RecordDict({**pack(vector, TABLE, FP32)})


def with_array(**changes: Any) -> RecordDict:  # noqa: ANN401 -- whatever an attacker puts there
    content = packed()
    array = content.array_records["arrays"]["adapter"]
    fields = {name: getattr(array, name) for name in ("dtype", "shape", "stype", "data")}
    content["arrays"] = ArrayRecord({"adapter": Array(**{**fields, **changes})})
    return content


def with_manifest(**changes: Any) -> RecordDict:  # noqa: ANN401 -- whatever an attacker puts there
    content = packed()
    content["manifest"] = ConfigRecord({**content.config_records["manifest"], **changes})
    return content


def test_a_vector_comes_back_bit_for_bit() -> None:
    assert np.array_equal(unpack(packed(), TABLE, FP32), VECTOR)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=11, max_size=11))
def test_bf16_comes_back_within_half_a_unit_in_the_last_place(values: list[float]) -> None:
    vector = np.array(values, np.float32)
    got = unpack(RecordDict({**pack(vector, TABLE, BF16)}), TABLE, BF16)
    # bfloat16 keeps 8 significant bits; below 2^-126 its spacing is 2^-133.
    assert np.all(np.abs(got - vector) <= np.maximum(np.abs(vector) * 2.0**-8, 2.0**-134))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_on_both_sides(value: float) -> None:
    vector = VECTOR.copy()
    vector[3] = value
    with pytest.raises(UpdateRejected, match="finite, got 1 of 11 not finite"):
        pack(vector, TABLE, FP32)
    data = FP32.encode(vector, rows_of([(vector.size,)]))
    content = with_array(data=data)
    content["manifest"] = ConfigRecord(
        {**content.config_records["manifest"], "sha256": hashlib.sha256(data).hexdigest()}
    )
    with pytest.raises(UpdateRejected, match="finite, got 1 of 11 not finite"):
        unpack(content, TABLE, FP32)


def test_a_number_that_bf16_rounds_to_infinity_is_refused() -> None:
    vector = VECTOR.copy()
    vector[0] = np.finfo(np.float32).max
    with pytest.raises(UpdateRejected, match="not finite"):
        pack(vector, TABLE, BF16)


@pytest.mark.parametrize("vector", [VECTOR[:-1], VECTOR.reshape(1, 11), VECTOR.astype(np.float64)])
def test_a_vector_that_is_not_the_table_s_is_not_packed(vector: Vector) -> None:
    with pytest.raises(UpdateRejected, match=r"vector must be float32 of shape \(11,\)"):
        pack(vector, TABLE, FP32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "bfloat16"}, "array dtype must be float32, got 'bfloat16'"),
        ({"shape": (12,)}, r"array shape must be \(11,\), got \(12,\)"),
        ({"shape": (11, 1)}, "array shape"),
        ({"stype": "numpy.ndarray"}, "array encoding must be veiltune.raw-le"),
        ({"data": VECTOR.tobytes()[:-1]}, "array must have 44 bytes, got 43"),
        ({"data": VECTOR.tobytes() + b"\0"}, "array must have 44 bytes, got 45"),
        ({"data": (VECTOR + 1).tobytes()}, "sha256 must be the manifest's"),
    ],
)
def test_an_array_that_differs_from_the_job_s_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        unpack(with_array(**change), TABLE, FP32)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (Rows((Row("base.weight", (4, 2)), TABLE.tensors[1])), "name must be 'query.lora_B'"),
        (Rows((Row("query.lora_B", (2, 4)), TABLE.tensors[1])), r"shape of .* must be \(4, 2\)"),
        (Rows((TABLE.tensors[0], replace(TABLE.tensors[1], dtype="int8"))), "dtype of head.weight"),
        (Rows(TABLE.tensors[:1]), "must have 2 tensors, got 1"),
        (Rows((*TABLE.tensors, Row("extra", (1,)))), "must have 2 tensors, got 3"),
    ],
)
def test_a_table_that_differs_from_the_job_s_is_refused(table: Rows, reason: str) -> None:
    with pytest.raises(UpdateRejected, match=reason):
        unpack(with_manifest(table=table.to_json().decode()), TABLE, FP32)


@pytest.mark.parametrize("table", ["", "[]", "{", '{"tensors": [1]}', "9" * 10_000, 7])
def test_a_table_that_is_none_is_refused(table: object) -> None:
    with pytest.raises(UpdateRejected, match="table"):
        unpack(with_manifest(table=table), TABLE, FP32)


def test_another_codec_than_the_job_s_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="codec must be bf16, got 'fp32'"):
        unpack(packed(), TABLE, BF16)


def test_another_hash_than_the_buffer_s_is_refused() -> None:
    with pytest.raises(UpdateRejected, match="sha256"):
        unpack(with_manifest(sha256="00" * 32), TABLE, FP32)


@pytest.mark.parametrize("missing", ["arrays", "manifest"])
def test_a_missing_record_is_refused(missing: str) -> None:
    content = packed()
    del content[missing]
    with pytest.raises(UpdateRejected, match=missing):
        unpack(content, TABLE, FP32)


def test_an_array_of_another_name_is_refused() -> None:
    content = packed()
    array = content.array_records["arrays"]["adapter"]
    content["arrays"] = ArrayRecord({"../../etc/x": array})
    with pytest.raises(UpdateRejected, match="arrays must be just 'adapter'"):
        unpack(content, TABLE, FP32)


def test_the_cap_leaves_room_for_the_message_around_the_vector() -> None:
    assert message_cap(TABLE, BF16) == 11 * 2 + len(TABLE.to_json()) + 64 * 1024
