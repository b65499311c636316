"""The one place that touches Flower's private names (flwr is pinned to 1.41.0 for their sake).

Flower builds messages only inside a task of its own runtime (``TaskIdentity``), keeps message ids
private and hides its serialisers in ``flwr.common``. Everything else of ours uses the public API.
"""

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from common.errors import UpdateRejected
from common.parts import require_few_parts

__all__ = [
    "Run",
    "SERVER_NODE_ID",
    "become_server",
    "content_from_bytes",
    "content_to_bytes",
    "message_from_bytes",
    "message_to_bytes",
    "metadata_to_bytes",
    "new_context",
    "new_run",
    "set_message_id",
    "set_source",
]

SERVER_NODE_ID = 1
_RUN_ID = 1


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


def metadata_to_bytes(message: Message) -> bytes:
    """What of ``message_to_bytes`` is not its content."""
    bare = ProtoMessage(metadata=metadata_to_proto(message.metadata))
    return bytes(bare.SerializeToString(deterministic=True))


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


def content_to_bytes(content: RecordDict) -> bytes:
    """Serialise a message's content deterministically, as the outbox stores it."""
    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


def content_from_bytes(data: bytes) -> RecordDict:
    """Parse what ``content_to_bytes`` wrote."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))
