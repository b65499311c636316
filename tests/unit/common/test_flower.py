import os

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
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
