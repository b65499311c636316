"""What the sites of a simulation answer when they train together: a round's orders are one cohort.

Messages are not serialised on the way, as all of a round's orders carry one buffer; what is counted
as sent is what they would be if they were (server/round.py).

Not covered: a site that is away or slow; what each of them says (simulations/engine/site.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from flwr.app import Message, RecordDict

from common import messages
from common.adapter import Vector, vector_sha256
from common.errors import Refusal
from common.messages import Order
from common.metric_messages import METRICS
from common.phases import RELEASE, charged, ended, read_confirm
from common.receipt import SignedConfirmation
from simulations.engine.cohort import Lane
from simulations.engine.site import SimulatedSite

# (lanes of one start, start, round) -> each one's change, cohort by cohort.
Train = Callable[[Sequence[Lane], Vector, int], Iterable[Vector]]


Waiting = tuple[Message, Order, Vector, str]  # an order, its state and that state's hash


class StackedSites:
    """The nodes of a simulation.

    Args:
        sites: node id -> site.
        train: trains them together.
    """

    def __init__(self, sites: Mapping[int, SimulatedSite], train: Train) -> None:
        self._sites, self._train = dict(sites), train
        self._last: tuple[object, Vector, str] | None = None
        self._acts: dict[str, Callable[[Message, list[Waiting]], RecordDict | None]] = {
            messages.OFFER: self._offer,
            messages.TRAIN: self._order,
            messages.CLOSE: self._close,
            messages.SITE: lambda message, _: messages.site_name(self._site(message).name),
            METRICS: self._count,
            RELEASE: self._release,
        }

    @property
    def nodes(self) -> list[int]:
        """Their ids."""
        return list(self._sites)

    def answer(self, asked: Iterable[Message]) -> Iterator[Message]:
        """A reply to each message; those to a round's orders come as their cohorts are done."""
        waiting: list[Waiting] = []
        for message in asked:
            try:
                said = self._acts[message.metadata.message_type](message, waiting)
            except Refusal as error:
                said = messages.verdict(accepted=False, reason=str(error))
            if said is not None:
                yield Message(said, reply_to=message)
        yield from self._trained(waiting)

    def _offer(self, message: Message, _: list[Waiting]) -> RecordDict:
        site = self._site(message)
        site.consider()
        return messages.verdict(accepted=True, head=site.ledger.head())

    def _order(self, message: Message, waiting: list[Waiting]) -> RecordDict | None:
        """Charge an order's round, which then waits to be trained; or what was charged before."""
        site, order = self._site(message), messages.read_order(message.content)
        site.consider()
        state, digest = self._state(message.content, site)
        if site.is_charged(order.round):
            return _charge(site, order)
        site.reserve(order, digest)
        waiting.append((message, order, state, digest))
        return None

    def _trained(self, waiting: Sequence[Waiting]) -> Iterator[Message]:
        if not waiting:
            return
        sites = [self._site(message) for message, *_ in waiting]
        lanes = [Lane(site.consider(), site=site.name) for site in sites]
        _, first, start, _ = waiting[0]
        changes = self._train(lanes, start, first.round)
        for (message, order, _, digest), change in zip(waiting, changes, strict=True):
            yield Message(_kept(self._site(message), order, digest, change), reply_to=message)

    def _count(self, message: Message, _: list[Waiting]) -> RecordDict:
        site = self._site(message)
        order = messages.read_order(message.content)
        state, digest = self._state(message.content, site)
        if not site.is_charged(order.round):
            site.reserve(order, digest)
            site.count(order.round, digest, state)
        return _charge(site, order)

    def _site(self, message: Message) -> SimulatedSite:
        return self._sites[message.metadata.dst_node_id]

    def _state(self, content: RecordDict, site: SimulatedSite) -> tuple[Vector, str]:
        """The state in an order and its hash, read once where orders share the buffer."""
        arrays = content["arrays"]
        if self._last is None or self._last[0] is not arrays:
            state = messages.read_global(content, site.adapter.table)
            self._last = arrays, state, vector_sha256(state)
        return self._last[1], self._last[2]

    def _release(self, message: Message, _: list[Waiting]) -> RecordDict:
        said = read_confirm(message.content)
        confirmation = said.confirmation if isinstance(said, SignedConfirmation) else said
        return self._site(message).release(confirmation.round)

    def _close(self, message: Message, _: list[Waiting]) -> RecordDict:
        site, closing = self._site(message), messages.read_close(message.content)
        site.end(closing)
        ending = site.ledger.ending(site.job.sha256, closing.prove)
        return ended(messages.verdict(accepted=True, head=site.ledger.head()), ending)


def _kept(site: SimulatedSite, order: Order, digest: str, change: Vector) -> RecordDict:
    """The charge of a change that was kept, or why the site will not send it."""
    try:
        site.keep(order.round, digest, change)
    except Refusal as error:
        return messages.verdict(accepted=False, reason=str(error))
    return _charge(site, order)


def _charge(site: SimulatedSite, order: Order) -> RecordDict:
    return charged(site.ledger.charge(site.job.sha256, order.round, order.prove))
