"""Flower's Grid over the link: what a ServerApp sees of the sites of one job.

A message's id follows from its group, type, receiver and content, so a server that was killed asks
again under the same id. Messages to a site that is away wait for it; what is unanswered when a
session ends is sent again in the next.

Not covered: quorum (the server app counts what came), the sites' own account of what they sent.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Iterator

import structlog
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import InvalidInput, JobStopped
from common.flower import Run, content_to_parts, new_run, set_message_id
from common.link.identity import node_id
from common.phases import PROVE
from common.privacy.ledger import WITNESSED
from server.link import LinkServer
from server.mailbox import Letter

_MAY_GROW = (WITNESSED, PROVE)

log = structlog.get_logger(__name__)


class LinkGrid(Grid):
    """The sites of one job, over a running ``LinkServer``.

    Args:
        link: shared with other grids.
        sites: the job's sites; whether they are connected or not.
        cap_bytes: the most that a reply may have (``common.link.payload.message_cap``).
        job_sha256: what sites look up their own cap by before they take a message.
    """

    def __init__(
        self, link: LinkServer, sites: Iterable[str], cap_bytes: int, job_sha256: str
    ) -> None:
        self._link = link
        self._job_sha256 = job_sha256
        self._site_of = {node_id(site): site for site in sites}
        self._cap_bytes = cap_bytes
        self._run: Run = new_run()
        self._arrival = threading.Condition()
        self._asked: dict[str, str] = {}  # message id -> site, until answered, pulled or withdrawn
        self._arrived: dict[str, Message] = {}
        self._is_stopped = False

    def set_run(self, run: Run) -> None:
        """Set the run that Flower's runtime knows this job as."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that Flower's runtime knows this job as."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message; Flower's own constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Node ids of the job's sites that are connected now.

        Raises:
            JobStopped: the grid was stopped, so that a job that only waits for sites hears of it.
        """
        with self._arrival:
            self._require_running()
        connected = self._link.connected()
        return [number for number, site in self._site_of.items() if site in connected]

    def site_of(self, number: int) -> str:
        """The site with that node id.

        Raises:
            InvalidInput: the job has none.
        """
        if number not in self._site_of:
            raise InvalidInput(f"dst_node_id must be one of the job's sites, got {number}")
        return self._site_of[number]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages to the link; a site that is away gets them when it comes back.

        Raises:
            InvalidInput: a receiver that is not the job's, or the same message twice.
            JobStopped: the grid was stopped.
        """
        digests: dict[int, bytes] = {}
        ids: list[str] = []
        try:
            for message in messages:
                ids.append(self._push(message, digests))
        except (InvalidInput, JobStopped):
            self._withdraw(ids)
            raise
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that have arrived for ``message_ids``, each once."""
        with self._arrival:
            found = [i for i in message_ids if i in self._arrived]
            for message_id in found:
                self._asked.pop(message_id, None)
            return [self._arrived.pop(message_id) for message_id in found]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Send and yield each reply as it arrives, until all have replied or the deadline.

        What is unanswered then is withdrawn: a reply that comes later is dropped by the link.

        Args:
            messages: at most one for each site and content.
            timeout: seconds from the first reply asked for to the deadline; None for no deadline.

        Yields:
            Replies, in the order of arrival.

        Raises:
            InvalidInput: as ``push_messages``.
            JobStopped: ``stop`` was called.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        try:
            while waiting:
                arrived = self._wait(waiting, deadline)
                if not arrived:
                    self._log_missing(waiting)
                    return
                for message_id in arrived:  # one at a time: who has read it lets go of it
                    waiting.discard(message_id)
                    yield from self.pull_messages([message_id])
        finally:
            self._withdraw(waiting)

    def stop(self) -> None:
        """End the job: whoever waits in ``send_and_receive`` gets JobStopped, now and later."""
        with self._arrival:
            self._is_stopped = True
            self._arrival.notify_all()

    def _push(self, message: Message, digests: dict[int, bytes]) -> str:
        site = self.site_of(message.metadata.dst_node_id)
        message_id = message.metadata.message_id or _message_id(message, digests)
        set_message_id(message, message_id)
        letter = Letter(site, message_id, self._job_sha256, message, self._cap_bytes, self._deliver)
        with self._arrival:
            self._require_running()
            if message_id in self._asked:
                raise InvalidInput(f"message must be sent once, got {message_id[:12]} twice")
            self._asked[message_id] = site
        if not self._link.mailbox.post(letter):
            with self._arrival:
                del self._asked[message_id]
            raise InvalidInput(f"message must be new and site {site} not flooded, got neither")
        return message_id

    def _deliver(self, reply: Message) -> None:
        with self._arrival:
            message_id = reply.metadata.reply_to_message_id
            if message_id in self._asked:
                self._arrived[message_id] = reply
                self._arrival.notify_all()

    def _wait(self, waiting: set[str], deadline: float | None) -> list[str]:
        """Ids among ``waiting`` that have arrived, first to last; empty at the deadline."""
        with self._arrival:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._arrival.wait_for(
                lambda: self._is_stopped or not waiting.isdisjoint(self._arrived), remaining
            )
            self._require_running()
            return [message_id for message_id in self._arrived if message_id in waiting]

    def _withdraw(self, message_ids: Iterable[str]) -> None:
        with self._arrival:
            sites = {i: self._asked.pop(i) for i in message_ids if i in self._asked}
            for message_id in sites:
                self._arrived.pop(message_id, None)
        for message_id, site in sites.items():
            self._link.mailbox.withdraw(site, message_id)

    def _require_running(self) -> None:
        if self._is_stopped:
            raise JobStopped("job must be running to send and receive, got a stop")

    def _log_missing(self, waiting: set[str]) -> None:
        with self._arrival:
            sites = sorted(self._asked[i] for i in waiting if i in self._asked)
        log.warning("deadline passed", missing=" ".join(sites))


def _message_id(message: Message, digests: dict[int, bytes]) -> str:
    """sha256 over group, type, receiver and content.

    Heads that were witnessed are left out: they may have grown when a restarted server asks again.
    ``digests`` holds content digests by identity, as one round's messages share their content.
    """
    content = message.content
    if id(content) not in digests:
        asked = RecordDict({name: r for name, r in content.items() if name not in _MAY_GROW})
        digest = hashlib.sha256()
        for part in content_to_parts(asked):
            digest.update(part)
        digests[id(content)] = digest.digest()
    metadata = message.metadata
    fields = (metadata.group_id, metadata.message_type, str(metadata.dst_node_id))
    text = "".join(f"{len(field)}:{field}" for field in fields)
    return hashlib.sha256(text.encode() + digests[id(content)]).hexdigest()
