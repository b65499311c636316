"""What a round's messages to sites weigh: as Flower serialises each, to every site of its own.

The orders of a round carry one adapter. Its bytes are measured once and counted for each, so that
counting costs nothing where a thousand sites are asked.

Not covered: what a grid puts around a message (frames, TLS, what is sent again when a connection
breaks), offers and the job's end.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from common.flower import content_to_bytes, metadata_to_bytes


@dataclass
class Sent:
    """The bytes of messages that were handed to a grid."""

    bytes: int = 0
    # A record's place in memory -> itself, lest another takes it, and its bytes.
    _known: dict[tuple[str, int], tuple[object, int]] = field(default_factory=dict)

    def add(self, messages: Iterable[Message], kept_back: Container[int] = ()) -> None:
        """Count messages, but for those to nodes that the grid kept them from."""
        for message in messages:
            if message.metadata.dst_node_id not in kept_back:
                self.bytes += self._size(message)

    def _size(self, message: Message) -> int:
        """The length of ``message_to_bytes``: metadata, a tag, a length, and the items.

        https://protobuf.dev/programming-guides/encoding
        """
        content = sum(self._item(name, message.content) for name in message.content)
        return len(metadata_to_bytes(message)) + 1 + _digits(content) + content

    def _item(self, name: str, content: RecordDict) -> int:
        record = content[name]
        found = self._known.get((name, id(record)))
        if found is None:
            found = record, len(content_to_bytes(RecordDict({name: record})))
            self._known[name, id(record)] = found
        return found[1]


def _digits(number: int) -> int:
    """Bytes of a varint."""
    return max(1, (number.bit_length() + 6) // 7)
