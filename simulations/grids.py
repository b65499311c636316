"""Grids for many sites on one machine.

``InProcessGrid`` calls each site's ClientApp in turn, in this process. Messages are serialised both
ways, so that what a site sees is what the link would bring it.
"""

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from common.errors import InvalidInput
from common.flower import Run, message_from_bytes, message_to_bytes, set_message_id


class InProcessGrid(Grid):
    """Flower's Grid over functions.

    Args:
        sites: node id -> the site's ClientApp and its context.
    """

    def __init__(self, sites: Mapping[int, tuple[ClientApp, Context]]) -> None:
        self._sites = dict(sites)
        self._replies: dict[str, Message] = {}
        self._sent = 0
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Keep the run that Flower hands over."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that Flower handed over.

        Raises:
            InvalidInput: none was.
        """
        if self._run is None:
            raise InvalidInput("run must be set before it is read, got none")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message from the server."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every site: none is ever away."""
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message and keep its reply."""
        identifiers = []
        for message in messages:
            reply = self._deliver(message)
            self._replies[reply.metadata.reply_to_message_id] = reply
            identifiers.append(reply.metadata.reply_to_message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, once each."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Deliver one message after the other; each reply as it is made.

        ``timeout`` is not kept: a site that trains cannot be left behind in one process.
        """
        for message in messages:
            yield self._deliver(message)

    def _deliver(self, message: Message) -> Message:
        self._sent += 1
        set_message_id(message, f"{self._sent:064x}")
        received = message_from_bytes(message_to_bytes(message))
        app, context = self._sites[message.metadata.dst_node_id]
        return message_from_bytes(message_to_bytes(app(received, context)))
