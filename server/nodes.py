"""A job's sites found among the nodes of Flower's own runtime.

On our link a node's number follows from the site's name, and its certificate vouches for both.
Flower's SuperLink deals numbers out, so each node is asked for its name once.

Not covered: whether a node is who it says. Stock Flower knows no names; who may register a node may
take any, so this is for simulations and for SuperLinks whose nodes are all trusted.
"""

from collections.abc import Iterable, Iterator

import structlog
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import messages
from common.flower import Run, set_source
from common.link.identity import node_id

_ASK_TIMEOUT_S = 60.0

log = structlog.get_logger(__name__)


class NamedGrid(Grid):
    """A grid whose nodes are numbered as on the link.

    Args:
        grid: Flower's own.
        sites: the names that count; other nodes, and a second one of the same name, are left out.
    """

    def __init__(self, grid: Grid, sites: Iterable[str]) -> None:
        self._grid = grid
        self._sites = frozenset(sites)
        self._theirs: dict[int, int] = {}  # our number -> the grid's
        self._ours: dict[int, int] = {}  # and back; a node without a site has none
        self._asked: set[int] = set()

    def set_run(self, run: Run) -> None:
        """Hand the run on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The grid's run."""
        return self._grid.run

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
        """Every site that is connected."""
        nodes = set(self._grid.get_node_ids())
        self._ask(nodes - self._asked)
        return [self._ours[node] for node in sorted(nodes) if node in self._ours]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message to its site."""
        return self._grid.push_messages([self._addressed(message) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come, under the sites' numbers."""
        return [self._signed(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send each message to its site; the replies, under the sites' numbers."""
        addressed = [self._addressed(message) for message in messages]
        for reply in self._grid.send_and_receive(addressed, timeout=timeout):
            yield self._signed(reply)

    def _ask(self, nodes: set[int]) -> None:
        """Learn who is there; who does not answer in time is asked again by the next call."""
        if not nodes:
            return
        questions = [
            Message(RecordDict(), dst_node_id=node, message_type=messages.SITE, group_id="site")
            for node in sorted(nodes)
        ]
        for reply in self._grid.send_and_receive(questions, timeout=_ASK_TIMEOUT_S):
            node = reply.metadata.src_node_id
            name = messages.read_site_name(reply.content) if reply.has_content() else None
            self._asked.add(node)
            self._know(node, name)

    def _know(self, node: int, name: str | None) -> None:
        if name not in self._sites or name is None:
            log.warning("node left out", node=node, reason="no site of this job")
        elif (ours := node_id(name)) in self._theirs:
            log.warning("node left out", node=node, site=name, reason="another node has its name")
        else:
            self._theirs[ours], self._ours[node] = node, ours
            log.info("site found", node=node, site=name)

    def _addressed(self, message: Message) -> Message:
        wanted = message.metadata.dst_node_id
        message.metadata.dst_node_id = self._theirs.get(wanted, wanted)
        return message

    def _signed(self, reply: Message) -> Message:
        source = reply.metadata.src_node_id
        set_source(reply, self._ours.get(source, source))
        return reply
