"""The one place that touches Flower's private names (flwr is pinned to 1.41.0 for their sake).

Flower builds messages only inside a task of its own runtime (``TaskIdentity``), keeps message ids
private and hides its serialisers in ``flwr.common``. Everything else of ours uses the public API.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import ArrayRecord as ProtoArrayRecord
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from common.errors import UpdateRejected
from common.parts import require_few_parts, span_of, varint

__all__ = [
    "Arrival",
    "Run",
    "SERVER_NODE_ID",
    "arrival_of",
    "arrived",
    "become_server",
    "content_from_bytes",
    "content_to_bytes",
    "content_to_parts",
    "message_from_bytes",
    "message_to_bytes",
    "message_to_parts",
    "new_context",
    "new_run",
    "set_arrival",
    "set_message_id",
    "set_source",
]

SERVER_NODE_ID = 1
_RUN_ID = 1
# Numbers of fields in Flower's messages, down to where an array's bytes are.
_CONTENT = ProtoMessage.CONTENT_FIELD_NUMBER
_ITEMS = ProtoRecordDict.ITEMS_FIELD_NUMBER
_ARRAY_RECORD = ProtoRecordDict.Item.ARRAY_RECORD_FIELD_NUMBER
_ARRAYS = ProtoArrayRecord.ITEMS_FIELD_NUMBER
_ARRAY = ProtoArrayRecord.Item.VALUE_FIELD_NUMBER
_DATA = ProtoArray.DATA_FIELD_NUMBER


def become_server() -> None:
    """Let this process build instruction messages outside Flower's own runtime.

    A process that Flower's runtime started has its identity already and keeps it.
    """
    if TaskIdentity._task_id is None:
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = _RUN_ID
        TaskIdentity.node_id = SERVER_NODE_ID


def new_context(
    node_id: int,
    *,
    node_config: dict[str, str] | None = None,
    run_config: dict[str, str] | None = None,
) -> Context:
    """A Flower context with empty state, as an app run outside Flower's runtime receives."""
    return Context(
        run_id=_RUN_ID,
        node_id=node_id,
        node_config=dict(node_config or {}),
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )


def new_run() -> Run:
    """The run that a grid outside Flower's own runtime reports."""
    return Run.create_empty(_RUN_ID)


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message, which Flower's own SuperLink would do on receipt."""
    message.metadata.__dict__["_message_id"] = message_id


def set_source(message: Message, node_id: int) -> None:
    """Say which node a reply comes from, where ours are numbered in another way than Flower's."""
    message.metadata.__dict__["_src_node_id"] = node_id


def message_to_bytes(message: Message) -> bytes:
    """Serialise a message deterministically."""
    return bytes(message_to_proto(message).SerializeToString(deterministic=True))


def message_from_bytes(data: bytes) -> Message:
    """Parse what ``message_to_bytes`` wrote. The caller has checked length and hash.

    Raises:
        UpdateRejected: the bytes are no Flower message, or one of more fields than ours have.
    """
    try:
        require_few_parts(data, ProtoMessage.DESCRIPTOR)
        return message_from_proto(ProtoMessage.FromString(data))
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UpdateRejected(
            f"message must be a Flower message, got {len(data)} bytes that are none"
        ) from error


def message_to_parts(message: Message) -> list[bytes]:
    """What ``message_to_bytes`` writes, in pieces: an array's bytes are its own, and not copied."""
    if not message.has_content():
        return [message_to_bytes(message)]
    head = ProtoMessage(metadata=metadata_to_proto(message.metadata))
    before = bytes(head.SerializeToString(deterministic=True))
    return [before, *_field(_CONTENT, content_to_parts(message.content))]


def content_to_parts(content: RecordDict) -> list[bytes]:
    """What ``content_to_bytes`` writes, in pieces: an array's bytes are its own, and not copied."""
    parts: list[bytes] = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            key = ProtoRecordDict.Item(key=name).SerializeToString()
            arrays = [part for array in record.items() for part in _array_parts(*array)]
            parts += _field(_ITEMS, [key, *_field(_ARRAY_RECORD, arrays)])
        else:
            parts.append(content_to_bytes(RecordDict({name: record})))
    return parts


def _array_parts(name: str, array: Array) -> list[bytes]:
    bare = ProtoArray(dtype=array.dtype, shape=array.shape, stype=array.stype)
    numbers = _field(_DATA, [array.data]) if array.data else []
    key = ProtoArrayRecord.Item(key=name).SerializeToString()
    return _field(_ARRAYS, [key, *_field(_ARRAY, [bare.SerializeToString(), *numbers])])


def _field(number: int, parts: Sequence[bytes]) -> list[bytes]:
    """A field that holds these parts one after the other, as protobuf writes it."""
    return [varint(number << 3 | 2) + varint(sum(map(len, parts))), *parts]


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a message came: its bytes in all, and the sha256 over those of its content."""

    total_bytes: int
    content_sha256: str


def arrived(parts: Sequence[bytes]) -> Arrival | None:
    """How a message came in ``parts``; ``None`` where its content is not its end.

    The hash is that over ``content_to_bytes``, for whoever sends what that writes.
    """
    total = sum(map(len, parts))
    span = span_of(parts[0], _CONTENT, total) if parts else None
    if span is None:
        return None
    digest = hashlib.sha256(memoryview(parts[0])[span[0] :])
    for part in parts[1:]:
        digest.update(part)
    return Arrival(total, digest.hexdigest())


def set_arrival(message: Message, arrival: Arrival | None) -> None:
    """Note how a message came, for ``arrival_of``."""
    message.metadata.__dict__["_arrival"] = arrival


def arrival_of(message: Message) -> Arrival:
    """How a message came; where nobody noted it, how ``message_to_bytes`` would send it."""
    noted: Arrival | None = message.metadata.__dict__.get("_arrival")
    if noted is None:
        digest = hashlib.sha256()
        for part in content_to_parts(message.content) if message.has_content() else []:
            digest.update(part)
        noted = Arrival(sum(map(len, message_to_parts(message))), digest.hexdigest())
        set_arrival(message, noted)
    return noted


def content_to_bytes(content: RecordDict) -> bytes:
    """Serialise a message's content deterministically, as the outbox stores it."""
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


def content_from_bytes(data: bytes) -> RecordDict:
    """Parse what ``content_to_bytes`` wrote."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))
