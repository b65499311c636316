"""Who takes part in a job: its sites are waited for, offered it, and asked again where they must.

Not covered: what they answer to a round's order (server/round.py).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import messages
from common.errors import JobRefused
from common.job import Job, SignedJob
from common.link.identity import node_id
from common.trace import exchange_id
from server.checkpoint import Checkpoints
from server.round import ASK_A_PERSON_AGAIN_S, ASK_AGAIN_S, in_words, site_of
from server.witness import witness

_POLL_S = 0.1
_OFFER_TIMEOUT_S = 60.0
_OFFERS = "offer"

log = structlog.get_logger(__name__)


@dataclass
class Participants:
    """The sites of a job under way.

    Attributes:
        signed: the job.
        grid: how its sites are reached.
        checkpoints: where the heads of their ledgers are kept.
        accepted: who said yes.
        refused: site -> why it said no.
        missed: who was asked in a round and did not answer.
    """

    signed: SignedJob
    grid: Grid
    checkpoints: Checkpoints
    accepted: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)
    _undecided: set[str] = field(default_factory=set)
    _not_before: dict[str, float] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The job's constants."""
        return self.signed.job

    def connected(self) -> set[str]:
        """The job's sites that the grid can reach now."""
        nodes = set(self.grid.get_node_ids())
        return {site for node, site in self.job.site_of_node.items() if node in nodes}

    def gather(self) -> None:
        """Wait for the job's sites and offer it to them.

        Until the deadline all are waited for, then those that make the quorum are enough.

        Raises:
            JobRefused: so many sites refuse that no quorum is left.
        """
        end = time.monotonic() + self.job.training.deadline_s
        while True:
            self.offer()
            missing = set(self.job.sites) - self.accepted - set(self.refused)
            enough = len(self.accepted) >= self.job.training.quorum
            if not missing or (enough and time.monotonic() > end):
                break
            self._require_possible()
            time.sleep(_POLL_S)
        self._require_possible()

    def present(self) -> set[str]:
        """Accepting sites, but for those that were away in a round and have not come back.

        A site that hangs on its offer holds up one round in every deadline, no more.

        Raises:
            JobRefused: so many sites refuse that no quorum is left.
        """
        while True:
            self.offer(self.job.training.deadline_s)
            connected = self.connected()
            present = self.accepted - (self.missed - connected)
            if len(present) >= self.job.training.quorum:
                return present
            self._require_possible()
            time.sleep(_POLL_S)

    def offer(self, silence_s: float = ASK_AGAIN_S) -> None:
        """Offer the job to connected sites that have not answered yet.

        One that is in trouble, or where a person has yet to decide, is offered it again after a
        pause, one that says nothing after ``silence_s``: it considers the same offer once, however
        often it comes.
        """
        now, connected = time.monotonic(), self.connected()
        # Who went away has perhaps been mended: it is offered the job as soon as it is back.
        late = {s: t for s, t in self._not_before.items() if now < t and s in connected}
        self._not_before = late
        new = connected - self.accepted - set(self.refused) - set(late)
        if not new:
            return
        silent = set(new)
        timeout = min(_OFFER_TIMEOUT_S, self.job.training.deadline_s)

        def content(site: str) -> RecordDict:
            return messages.offer(self.signed, self.checkpoints.head(site))

        for reply in self.send(new, messages.OFFER, content, _OFFERS, timeout):
            site = site_of(self.job, reply)
            silent.discard(site)
            self._take_verdict(site, reply)
        self._not_before |= dict.fromkeys(silent, time.monotonic() + silence_s)

    def send(
        self,
        sites: Iterable[str],
        message_type: str,
        content: Callable[[str], RecordDict],
        group_id: str,
        timeout_s: float,
    ) -> Iterable[Message]:
        """Send each site its content; the replies that come in time."""
        orders = [
            Message(
                content(site),
                dst_node_id=node_id(site),
                message_type=message_type,
                group_id=group_id,
            )
            for site in sorted(sites)
        ]
        return self.grid.send_and_receive(orders, timeout=timeout_s)

    def quarantine(self) -> None:
        """Ask no more of sites whose updates were rejected or cut as often as the job bears."""
        asked = self.job.aggregation
        if asked is None or asked.quarantine_after is None:
            return
        counted = Counter(
            r.site
            for r in self.checkpoints.receipts(self.job.sha256)
            if not r.accepted or r.was_cut
        )
        for site, times in counted.items():
            if times >= asked.quarantine_after and site not in self.refused:
                self.accepted.discard(site)
                self.refused[site] = f"quarantined after {times} rejected or cut updates"
                log.warning("site quarantined", site=site, updates=times)

    def _require_possible(self) -> None:
        possible, quorum = len(self.job.sites) - len(self.refused), self.job.training.quorum
        if possible < quorum:
            raise JobRefused(
                f"job must be accepted by {quorum} sites, got at most {possible}"
                f"{in_words(self.refused)}"
            )

    def _take_verdict(self, site: str, reply: Message) -> None:
        if reason := messages.not_yet(reply):
            self._postpone(site, reason, self._id(reply))
            return
        witness(self.checkpoints, site, reply)
        verdict = messages.read_verdict(reply.content)
        if verdict is not None and verdict.is_accepted:
            self.accepted.add(site)
            log.info("job accepted", id=self._id(reply), job=self.job.job.name, site=site)
        else:
            self.refused[site] = verdict.reason if verdict else "error"
            log.warning("job refused", id=self._id(reply), site=site, reason=self.refused[site])

    def _id(self, reply: Message) -> str:
        return exchange_id(self.job.sha256, _OFFERS, reply.metadata.reply_to_message_id)

    def _postpone(self, site: str, reason: str, identifier: str) -> None:
        """Ask again later; a site where a person decides is asked seldom, and noted once."""
        is_waiting = reason == messages.WAITING
        pause_s = ASK_A_PERSON_AGAIN_S if is_waiting else ASK_AGAIN_S
        self._not_before[site] = time.monotonic() + pause_s
        if site not in self._undecided:
            log.warning("offer not answered", id=identifier, site=site, reason=reason)
        if is_waiting:
            self._undecided.add(site)
