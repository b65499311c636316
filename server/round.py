"""One round at the server: what was asked, what came back, what is used.

A round has two phases: a site that has trained shows its charge, and once its head is confirmed the
update comes. A reply that fails a check is dropped and logged once with the site and the reason,
never with its values, and never raised on.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import structlog
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import messages
from common.adapter import LoadedAdapter, Vector, vector_sha256
from common.errors import Refusal, UpdateRejected
from common.flower import arrival_of
from common.job import Job
from common.link.identity import node_id
from common.phases import RELEASE, is_charge
from common.trace import exchange_id
from server.aggregate import Change, length
from server.checkpoint import Receipt
from server.sent import Sent
from server.strategies.robust import is_cut

# Between two askings of a site that could not answer; less than a server that stops waits for.
ASK_AGAIN_S = 3.0
# A person takes longer, and then the job need not wait much longer still.
ASK_A_PERSON_AGAIN_S = 10.0

# (site, hash of the input adapter, its reply) -> the content that confirms the charge in it.
Confirm = Callable[[str, str, Message], RecordDict]

log = structlog.get_logger(__name__)


@dataclass
class RoundBook:
    """A round's replies as they come in.

    Attributes:
        job: its constants.
        adapter: whose table the updates must match.
        round: its number, from 1.
        input_sha256: of the global adapter that was sent.
        receipts: one for every update that arrived, used or not.
        refused: site -> why it did not train, in its own words.
        bytes_up: of all replies, as serialised.
        sent: all orders and confirmations.
        confirmed: sites whose charge was taken, and whose update may be.
    """

    job: Job
    adapter: LoadedAdapter
    round: int
    input_sha256: str
    receipts: list[Receipt] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    sent: Sent = field(default_factory=Sent)
    confirmed: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> int:
        """Updates that count."""
        return sum(receipt.accepted for receipt in self.receipts)

    def read(self, reply: Message) -> Change | None:
        """The change in a reply, or ``None`` when it is not to be used."""
        site = site_of(self.job, reply)
        size = self._count(reply)
        verdict = messages.read_verdict(reply.content)
        if verdict is not None:
            self.refused[site] = verdict.reason
            log.warning("no update", id=self._id(reply), site=site, reason=verdict.reason)
            return None
        return self._judge(site, reply, size)

    def take_charge(self, reply: Message, confirm: Confirm) -> Message | None:
        """The message that confirms the charge in a reply, or ``None`` where it is rejected."""
        site = site_of(self.job, reply)
        size = self._count(reply)
        try:
            said = confirm(site, self.input_sha256, reply)
        except UpdateRejected as error:
            self.refused[site] = str(error)
            reason = str(error)
            log.warning("charge rejected", id=self._id(reply), site=site, reason=reason, bytes=size)
            return None
        self.confirmed.add(site)
        log.info("charge taken", id=self._id(reply), site=site)
        return Message(
            said,
            dst_node_id=node_id(site),
            message_type=RELEASE,
            group_id=str(self.round),
        )

    def pass_over(self, reply: Message) -> None:
        """A reply that says no more than that the site cannot answer yet: it may do so later."""
        self._count(reply)
        site = site_of(self.job, reply)
        log.warning("no update", id=self._id(reply), site=site, reason=messages.not_yet(reply))

    def _id(self, reply: Message) -> str:
        asked = reply.metadata.reply_to_message_id
        return exchange_id(self.job.sha256, str(self.round), asked)

    def _count(self, reply: Message) -> int:
        size = arrival_of(reply).total_bytes
        self.bytes_up += size
        return size

    def _judge(self, site: str, reply: Message, size: int) -> Change | None:
        steps, charged, vector, was_cut = 0, 0, None, None
        try:
            if site not in self.confirmed:
                raise UpdateRejected("update must follow its confirmed charge, got none")
            trained = self.adapter.layout.trained(self.round, self.job.rank(site))
            update = messages.read_update(reply.content, self.job, trained.table)
            steps, charged = update.steps, update.charged_steps
            norm = self._require_fit(update)
            vector, was_cut = update.vector, is_cut(self.job.aggregation, norm) or None
        except UpdateRejected as error:
            self.refused[site] = str(error)
            log.warning(
                "update rejected", id=self._id(reply), site=site, reason=str(error), bytes=size
            )
        else:
            cut = {"cut_from": f"{norm:g}"} if was_cut else {}
            log.info("update taken", id=self._id(reply), site=site, steps=steps, **cut)
        self.receipts.append(
            Receipt(
                site=site,
                round=self.round,
                payload_sha256=arrival_of(reply).content_sha256,
                steps=steps,
                charged_steps=charged,
                bytes_up=size,
                accepted=vector is not None,
                was_cut=was_cut,
            )
        )
        return None if vector is None else Change(site, vector, self.job.weight(site))

    def _require_fit(self, update: messages.Update) -> float:
        """The norm of an update that may be used."""
        if update.round != self.round or update.input_sha256 != self.input_sha256:
            raise UpdateRejected(
                f"update must answer round {self.round} from {self.input_sha256[:12]}, got round "
                f"{update.round} from {update.input_sha256[:12]}"
            )
        norm = length(update.vector)
        bound = self.job.training.max_update_norm
        if norm > bound:
            raise UpdateRejected(f"update norm must be at most {bound:g}, got {norm:g}")
        return norm


def open_book(job: Job, adapter: LoadedAdapter, round_: int, vector: Vector) -> RoundBook:
    """An empty book for a round that starts from ``vector``."""
    return RoundBook(job, adapter, round_, vector_sha256(vector))


def collect(
    grid: Grid,
    orders: Iterable[Message],
    book: RoundBook,
    confirm: Confirm,
    latecomers: Callable[[], Iterable[Message]] = tuple,
    *,
    pause_s: float | None = None,
) -> Iterator[Message]:
    """Replies until all have come, or the quorum has and the deadline is over.

    Without a quorum at the deadline the sites that have not answered are asked again; they answer
    with the same bytes. Those that have come meanwhile are asked too. A site in trouble, or one
    where a person has yet to decide, has not answered: it is asked again after a pause, or not at
    all where the others make the quorum.

    Args:
        grid: how sites are reached.
        orders: to the sites that are asked first.
        book: what has come.
        confirm: checks and keeps the charge in a site's reply; the content that confirms it.
        latecomers: orders to accepting sites that are there now and were not asked before.
        pause_s: the least between two askings, if another than here; 0 where no time passes.

    Raises:
        Refusal: every site has answered and too few updates can be used.
    """
    waiting = {order.metadata.dst_node_id: order for order in orders}
    quorum = book.job.training.quorum
    while waiting:
        asked_s = time.monotonic()
        confirmed: dict[int, Message] = {}
        yield from _receive(grid, waiting, waiting, confirmed, book, confirm)
        if confirmed:  # small to ask, and the bytes are ready
            yield from _receive(grid, confirmed, waiting, {}, book, confirm)
        if book.accepted >= quorum:
            break
        if waiting:
            log.warning("quorum missed", round=book.round, have=book.accepted, need=quorum)
            least_s = ASK_AGAIN_S if pause_s is None else pause_s
            again_s = asked_s + min(least_s, book.job.training.deadline_s)
            time.sleep(max(0.0, again_s - time.monotonic()))
        waiting |= {order.metadata.dst_node_id: order for order in latecomers()}
    if book.accepted < quorum:
        raise Refusal(
            f"round {book.round} must have {quorum} usable updates, got {book.accepted}"
            f"{in_words(book.refused)}"
        )


def _receive(
    grid: Grid,
    asked: Mapping[int, Message],
    waiting: dict[int, Message],
    confirmed: dict[int, Message],
    book: RoundBook,
    confirm: Confirm,
) -> Iterator[Message]:
    """Answers to ``asked`` within the deadline.

    A charge that is taken is answered by the message put into ``confirmed``. Who has answered for
    good is no longer in ``waiting``.
    """
    messages_out, deadline_s = list(asked.values()), book.job.training.deadline_s
    for reply in grid.send_and_receive(messages_out, timeout=deadline_s):
        node = reply.metadata.src_node_id
        if node not in waiting or node in confirmed:  # a second reply would count twice
            log.warning("reply dropped", round=book.round, reason="nobody waits for it")
        elif messages.not_yet(reply):
            book.pass_over(reply)
        elif is_charge(reply.content):
            answer = book.take_charge(reply, confirm)
            if answer is None:
                del waiting[node]
            else:
                confirmed[node] = answer
        else:
            del waiting[node]
            yield reply
    # A simulation's grid keeps messages from sites that are away.
    book.sent.add(messages_out, getattr(grid, "kept_back", ()))


def in_words(refused: dict[str, str]) -> str:
    """`` (A: why; B: why)``, or nothing."""
    return (
        f" ({'; '.join(f'{site}: {why}' for site, why in sorted(refused.items()))})"
        if refused
        else ""
    )


def site_of(job: Job, reply: Message) -> str:
    """The site that a reply comes from, by the identity that the grid vouches for."""
    return job.site_of_node[reply.metadata.src_node_id]
