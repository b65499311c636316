"""What a round's messages to sites weigh: as Flower serialises each, to every site of its own.

Not covered: what a grid puts around a message (frames, TLS, what is sent again when a connection
breaks), offers and the job's end.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from flwr.app import Message

from common.flower import message_to_parts


@dataclass
class Sent:
    """The bytes of messages that were handed to a grid."""

    bytes: int = 0

    def add(self, messages: Iterable[Message], kept_back: Container[int] = ()) -> None:
        """Count messages, but for those to nodes that the grid kept them from."""
        for message in messages:
            if message.metadata.dst_node_id not in kept_back:
                self.bytes += sum(map(len, message_to_parts(message)))
