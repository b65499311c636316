"""What the sites of a simulation answer when they train together: a round's orders are one cohort.

Messages are not serialised on the way, as all of a round's orders carry one buffer; what is counted
as sent is what they would be if they were (server/round.py).

Not covered: a site that is away or slow; what each of them says (simulations/engine/site.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from client.step import require_step
from common import messages
from common.adapter import Vector, vector_sha256
from common.errors import Refusal, RoundRefused
from common.messages import Order
from common.metric_messages import METRICS
from common.phases import RELEASE, charged, ended, read_confirm
from common.receipt import SignedConfirmation
from simulations.engine.cohort import Lane
from simulations.engine.site import Known, SimulatedSite

# (lanes of one start, start, round) -> each one's change, cohort by cohort.
Train = Callable[[Sequence[Lane], Vector, int], Iterable[Vector]]


@dataclass(frozen=True)
class Given:
    """A state as it came: read, hashed and judged once for all sites whose orders share its buffer.

    Attributes:
        arrays: the buffer.
        state: (P,).
        sha256: of the state.
        start: its bytes, that all sites keep by reference.
        refusals: for a round and what a site knows, why it would not train from here; empty if so.
    """

    arrays: object
    state: Vector
    sha256: str
    start: bytes
    refusals: dict[tuple[int, Known], str] = field(default_factory=dict)


Waiting = tuple[Message, Order, Given]


class StackedSites:
    """The nodes of a simulation.

    Args:
        sites: node id -> site.
        train: trains them together.
    """

    def __init__(self, sites: Mapping[int, SimulatedSite], train: Train) -> None:
        self._sites, self._train = dict(sites), train
        self._last: Given | None = None
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
        given = self._given(message.content, site)
        if site.is_charged(order.round):
            return _charge(site, order)
        _require_step(site, order.round, given)
        site.reserve(order, given.sha256, given.start)
        waiting.append((message, order, given))
        return None

    def _trained(self, waiting: Sequence[Waiting]) -> Iterator[Message]:
        if not waiting:
            return
        sites = [self._site(message) for message, *_ in waiting]
        lanes = [Lane(site.consider(), site=site.name) for site in sites]
        _, first, given = waiting[0]
        changes = self._train(lanes, given.state, first.round)
        for (message, order, given), change in zip(waiting, changes, strict=True):
            content = _kept(self._site(message), order, given.sha256, change)
            yield Message(content, reply_to=message)

    def _count(self, message: Message, _: list[Waiting]) -> RecordDict:
        site = self._site(message)
        order = messages.read_order(message.content)
        given = self._given(message.content, site)
        if not site.is_charged(order.round):
            site.reserve(order, given.sha256, given.start)
            site.count(order.round, given.sha256, given.state)
        return _charge(site, order)

    def _site(self, message: Message) -> SimulatedSite:
        return self._sites[message.metadata.dst_node_id]

    def _given(self, content: RecordDict, site: SimulatedSite) -> Given:
        """The state in an order, read once where orders share the buffer."""
        arrays = content["arrays"]
        if self._last is None or self._last.arrays is not arrays:
            state = messages.read_global(content, site.adapter.table)
            start = state.astype("<f4").tobytes()
            self._last = Given(arrays, state, vector_sha256(state), start)
        return self._last

    def _release(self, message: Message, _: list[Waiting]) -> RecordDict:
        said = read_confirm(message.content)
        confirmation = said.confirmation if isinstance(said, SignedConfirmation) else said
        return self._site(message).release(confirmation.round)

    def _close(self, message: Message, _: list[Waiting]) -> RecordDict:
        site, closing = self._site(message), messages.read_close(message.content)
        site.end(closing)
        ending = site.ledger.ending(site.job.sha256, closing.prove)
        return ended(messages.verdict(accepted=True, head=site.ledger.head()), ending)


def _require_step(site: SimulatedSite, round_: int, given: Given) -> None:
    """As client/site.py before it charges a round, once for all sites that know the same state.

    Raises:
        RoundRefused: the state is too far from the one that the site knows.
    """
    asked = round_, site.latest
    if asked not in given.refusals:
        try:
            require_step(site.job, site.adapter, round_, given.state, site.latest)
            given.refusals[asked] = ""
        except RoundRefused as error:
            given.refusals[asked] = str(error)
    if words := given.refusals[asked]:
        raise RoundRefused(words)


def _kept(site: SimulatedSite, order: Order, digest: str, change: Vector) -> RecordDict:
    """The charge of a change that was kept, or why the site will not send it."""
    try:
        site.keep(order.round, digest, change)
    except Refusal as error:
        return messages.verdict(accepted=False, reason=str(error))
    return _charge(site, order)


def _charge(site: SimulatedSite, order: Order) -> RecordDict:
    return charged(site.ledger.charge(site.job.sha256, order.round, order.prove))
