"""Grids for many sites on one machine.

``InProcessGrid`` calls each site's ClientApp in turn, in this process. Messages are serialised both
ways, so that what a site sees is what the link would bring it. ``StackedGrid`` hands a round's
orders to sites that train together (simulations/engine/). ``AbsentGrid`` keeps some of either's
sites away.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from common.errors import InvalidInput
from common.flower import (
    Run,
    arrived,
    message_from_bytes,
    message_to_bytes,
    set_arrival,
    set_message_id,
)
from common.messages import TRAIN
from common.phases import RELEASE
from simulations.absence import Absence
from simulations.engine.grid import StackedSites


class LocalGrid(Grid):
    """Flower's Grid over functions of this process: what all of ours have in common."""

    def __init__(self) -> None:
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

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver the messages and keep their replies."""
        replies = {r.metadata.reply_to_message_id: r for r in self.send_and_receive(messages)}
        self._replies |= replies
        return list(replies)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, once each."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def number(self, message: Message) -> Message:
        """The message under the next id, which Flower's own SuperLink would give it."""
        self._sent += 1
        set_message_id(message, f"{self._sent:064x}")
        return message


class InProcessGrid(LocalGrid):
    """Each site's ClientApp in turn.

    Args:
        sites: node id -> the site's ClientApp and its context.
    """

    def __init__(self, sites: Mapping[int, tuple[ClientApp, Context]]) -> None:
        super().__init__()
        self._sites = dict(sites)

    def get_node_ids(self) -> Iterable[int]:
        """Every site: none is ever away."""
        return list(self._sites)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Deliver one message after the other; each reply as it is made.

        ``timeout`` is not kept: a site that trains cannot be left behind in one process.
        """
        for message in messages:
            yield self._deliver(message)

    def _deliver(self, message: Message) -> Message:
        received = message_from_bytes(message_to_bytes(self.number(message)))
        app, context = self._sites[message.metadata.dst_node_id]
        body = message_to_bytes(app(received, context))
        reply = message_from_bytes(body)
        set_arrival(reply, arrived([body]))
        return reply


class StackedGrid(LocalGrid):
    """Sites that train together.

    Args:
        sites: what they answer.
    """

    def __init__(self, sites: StackedSites) -> None:
        super().__init__()
        self._sites = sites

    def get_node_ids(self) -> Sequence[int]:
        """Every site: none is ever away."""
        return self._sites.nodes

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Deliver all messages; each reply as it is made, in whatever order.

        ``timeout`` is not kept: a site that trains cannot be left behind in one process.
        """
        return self._sites.answer([self.number(message) for message in messages])


class AbsentGrid(LocalGrid):
    """A grid some of whose sites are away.

    Args:
        grid: of all sites.
        absence: the model.
        seed: of the draws.
    """

    def __init__(self, grid: LocalGrid, absence: Absence, seed: int) -> None:
        super().__init__()
        self._grid, self._absence, self._seed = grid, absence, seed
        self._attempts: dict[int, int] = {}
        self._late: set[int] = set()
        self.kept_back: set[int] = set()  # whom the last messages did not reach
        self._late_in = ""  # the group of the round that they are late in

    def get_node_ids(self) -> Iterable[int]:
        """Every site: who is away in a round is there in another."""
        return self._grid.get_node_ids()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Deliver what reaches its site; the replies of those that are in time."""
        reached = list(messages)
        orders = [message for message in reached if message.metadata.message_type == TRAIN]
        self.kept_back = set()
        if orders:
            trains = self._begin(int(orders[0].metadata.group_id))
            self.kept_back = {m.metadata.dst_node_id for m in orders} - trains
            reached = [m for m in reached if m not in orders or m.metadata.dst_node_id in trains]
        yield from self._grid.send_and_receive(filter(self._is_in_time, reached), timeout=timeout)

    def _begin(self, round_: int) -> set[int]:
        """Draw anew for a round that is asked, perhaps again; who trains."""
        attempt = self._attempts[round_] = self._attempts.get(round_, 0) + 1
        nodes = sorted(self.get_node_ids())
        trains, self._late = self._absence.draw(nodes, self._seed, round_, attempt)
        self._late_in = str(round_)
        return trains

    def _is_in_time(self, message: Message) -> bool:
        sent = message.metadata
        # Counts leave by a release too, after the rounds: nobody is late in those.
        is_update = sent.message_type == RELEASE and sent.group_id == self._late_in
        return not (is_update and sent.dst_node_id in self._late)
