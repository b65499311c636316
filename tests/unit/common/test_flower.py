import hashlib
import os

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from common import flower
from common.errors import UpdateRejected


@pytest.fixture(scope="module", autouse=True)
def _server() -> None:
    flower.become_server()


def message() -> Message:
    arrays = ArrayRecord({"adapter": Array("float32", (2,), "veiltune.raw-le", b"12345678")})
    content = RecordDict({"arrays": arrays, "round": ConfigRecord({"round": 3, "x": [1.5, 2.0]})})
    made = Message(content, dst_node_id=77, message_type="train", group_id="3")
    flower.set_message_id(made, "ab" * 32)
    return made


def test_a_message_survives_its_bytes() -> None:
    sent = message()
    data = flower.message_to_bytes(sent)
    read = flower.message_from_bytes(data)
    assert flower.message_to_bytes(read) == data
    assert read.metadata.message_id == "ab" * 32
    assert read.metadata.dst_node_id == 77
    assert read.content.config_records["round"]["x"] == [1.5, 2.0]
    assert flower.content_to_bytes(read.content) == flower.content_to_bytes(sent.content)


def test_content_has_the_same_bytes_whatever_order_it_was_made_in() -> None:
    first = RecordDict({"a": ConfigRecord({"x": 1, "y": 2}), "b": ConfigRecord({"z": 3})})
    turned = RecordDict({"b": ConfigRecord({"z": 3}), "a": ConfigRecord({"y": 2, "x": 1})})
    once = flower.content_to_bytes(first)
    assert once == flower.content_to_bytes(flower.content_from_bytes(once))
    assert set(flower.content_from_bytes(flower.content_to_bytes(turned))) == {"a", "b"}


records = st.one_of(
    st.builds(
        lambda name, dtype, shape, stype, data: ArrayRecord(
            {name: Array(dtype, tuple(shape), stype, data)}
        ),
        st.text(max_size=3),
        st.text(max_size=5),
        st.lists(st.integers(0, 2**31 - 1), max_size=3),
        st.text(max_size=4),
        st.one_of(st.binary(max_size=200), st.integers(0, 70_000).map(bytes)),
    ),
    st.just(ArrayRecord({})),
    st.just(ArrayRecord({name: Array("f", (1,), "raw", b"12") for name in ("a", "b")})),
    st.builds(ConfigRecord, st.dictionaries(st.text(max_size=3), st.integers(-9, 2**40))),
    st.builds(MetricRecord, st.dictionaries(st.text(max_size=3), st.floats(0, 1))),
)


@given(st.dictionaries(st.text(max_size=3), records, max_size=4), st.integers(1, 300))
def test_the_pieces_are_what_protobuf_writes_and_an_arrays_bytes_are_its_own(
    content: dict[str, ArrayRecord | ConfigRecord | MetricRecord], first: int
) -> None:
    """The reference is Flower's own serialiser; what arrives may be cut anywhere."""
    sent = Message(RecordDict({**content}), dst_node_id=77, message_type="train", group_id="3")
    body = flower.message_to_bytes(sent)
    parts = flower.message_to_parts(sent)
    assert b"".join(parts) == body
    assert b"".join(flower.content_to_parts(sent.content)) == flower.content_to_bytes(sent.content)
    for record in content.values():
        if isinstance(record, ArrayRecord):
            for array in record.values():
                assert not array.data or any(part is array.data for part in parts)
    expected = hashlib.sha256(flower.content_to_bytes(sent.content)).hexdigest()
    begins = [body[: first + 100], body[first + 100 :]]
    for pieces in ([body], begins):
        came = flower.arrived(pieces)
        assert came is None or came == flower.Arrival(len(body), expected)
    assert flower.arrived([body]) is not None
    assert flower.arrival_of(sent) == flower.Arrival(len(body), expected)


def test_an_arrival_that_is_no_plain_message_is_not_read_off_its_bytes() -> None:
    """Protobuf puts a content that comes twice together, and takes one before its metadata."""
    body = flower.message_to_bytes(message())
    content = ProtoMessage(content=ProtoMessage.FromString(body).content).SerializeToString()
    for odd in (body + content, content + body, body + b"\x1a\x00", b"\x08", b""):
        assert flower.arrived([odd]) is None
    assert flower.arrived([]) is None
    # What it says is then hashed as it would be sent.
    read = flower.message_from_bytes(content + body)
    flower.set_arrival(read, flower.arrived([content + body]))
    twice = hashlib.sha256(flower.content_to_bytes(read.content)).hexdigest()
    assert flower.arrival_of(read).content_sha256 == twice


@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_are_rejected_and_never_raised_on(data: bytes) -> None:
    try:
        flower.message_from_bytes(data)
    except UpdateRejected as error:
        said = str(error)
        assert said.startswith("message must be a Flower message, got")


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_spoilt_message_is_a_message_or_a_rejection(changes: list[tuple[int, int]]) -> None:
    data = bytearray(flower.message_to_bytes(message()))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        flower.message_from_bytes(bytes(data))
    except UpdateRejected as error:
        said = str(error)
        assert "got" in said


def test_a_record_value_of_no_kind_is_rejected() -> None:
    proto = ProtoMessage.FromString(flower.message_to_bytes(message()))
    for item in proto.content.items:
        if item.HasField("config_record"):
            item.config_record.items[0].value.Clear()
    with pytest.raises(UpdateRejected, match="must be a Flower message"):
        flower.message_from_bytes(proto.SerializeToString())


def test_a_reply_goes_back_to_the_one_who_asked() -> None:
    asked = flower.message_from_bytes(flower.message_to_bytes(message()))
    reply = Message(RecordDict(), reply_to=asked)
    assert reply.metadata.reply_to_message_id == "ab" * 32
    assert reply.metadata.src_node_id == 77
    assert reply.metadata.dst_node_id == flower.SERVER_NODE_ID


def test_an_identity_that_flowers_own_runtime_gave_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TaskIdentity, "_task_id", 41)
    monkeypatch.setattr(TaskIdentity, "_node_id", 42)
    flower.become_server()
    assert (TaskIdentity._task_id, TaskIdentity._node_id) == (41, 42)


def test_a_context_is_empty_and_says_where_the_app_runs() -> None:
    context = flower.new_context(9, node_config={"site": "A"}, run_config={"out": "x"})
    assert (context.node_id, context.node_config, context.run_config) == (
        9, {"site": "A"}, {"out": "x"},
    )  # fmt: skip
    assert not context.state


def test_telemetry_and_update_checks_are_off() -> None:
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
