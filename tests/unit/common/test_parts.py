import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.flower import become_server, message_from_bytes, message_to_bytes
from common.parts import MOST_PARTS, require_few_parts

KIND = ProtoMessage.DESCRIPTOR


def record(**values: object) -> bytes:
    become_server()
    content = ConfigRecord({**values})  # type: ignore[dict-item]
    return message_to_bytes(Message(RecordDict({"r": content}), 5, "train", group_id="3"))


@pytest.mark.parametrize(
    "values",
    [
        {"floats": [0.5] * 513},  # eight bytes each
        {"words": [""] * 4097},
        {f"k{n}": 1 for n in range(1500)},  # an item, its key, its value and the number in it
    ],
    ids=["packed", "strings", "items"],
)
def test_more_parts_than_a_message_has_are_refused_before_it_is_parsed(
    values: dict[str, object],
) -> None:
    with pytest.raises(UpdateRejected, match="message must have at most 4096 fields, got more"):
        message_from_bytes(record(**values))


def test_bytes_and_text_of_any_length_are_one_part() -> None:
    data = record(blob=bytes(3_000_000), text="x" * 100_000)
    assert message_from_bytes(data).content.config_records["r"]["blob"] == bytes(3_000_000)


def test_the_limit_is_on_all_fields_together() -> None:
    unknown = b"\xf8\x07\x01"  # field 127, which the schema does not have: 1
    require_few_parts(unknown * MOST_PARTS, KIND)
    with pytest.raises(UpdateRejected, match="at most 4096 fields"):
        require_few_parts(unknown * (MOST_PARTS + 1), KIND)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x05ab", "must end within its message, got 3 bytes more"),
        (b"\x09ab", "must end within its message, got 6 bytes more"),
        (b"\x0b", "must be of a known wire type, got 3"),
        (b"\x08" + b"\xff" * 11, "must be a varint of at most 10 bytes"),
        (b"\x08", "must be a varint"),
        (b"\x12\x02\x0a\x05abcde", "must end within its message"),  # within its submessage
    ],
)
def test_what_is_no_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        require_few_parts(data, KIND)


@given(st.binary(max_size=200))
def test_what_protobuf_parses_without_groups_is_walked_to_its_end(data: bytes) -> None:
    try:
        require_few_parts(data, KIND)
    except ValueError as error:
        walked = str(error)
        if "wire type" in walked or "varint" in walked:  # protobuf skips groups and cuts varints
            return
        with pytest.raises(Exception, match="parsing"):
            ProtoMessage.FromString(data)
