"""What every aggregation rule of ours is on Flower's strategy interface.

A strategy handles vectors, sites and public weights alone: ``ask`` and ``read`` translate messages.
The sites of a round come in the round's configuration under ``sites``.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.adapter import Vector
from common.job import Job
from common.layout import Layout
from common.link.identity import node_id
from common.messages import TRAIN
from server.aggregate import Change
from server.strategies.robust import chosen

GLOBAL = "adapter"

# (site, round, state) -> what the site is asked.
Ask = Callable[[str, int, Vector], RecordDict]
# A reply -> its change, or None when it is not to be used.
Read = Callable[[Message], Change | None]


class Folding(Protocol):
    """A round's changes as they are put together."""

    def add(self, change: Change) -> None:
        """Fold one in."""

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""

    def state(self) -> Vector:
        """The next state, (P,) float32."""


@dataclass(frozen=True)
class Round:
    """What a round starts with.

    Attributes:
        number: from 1.
        start: the state, (P,) float32.
        job: its constants.
        layout: of the state.
    """

    number: int
    start: Vector
    job: Job
    layout: Layout


class LoraStrategy(Strategy):
    """One method: a subclass says what a round's changes make of the state."""

    def __init__(self, ask: Ask, read: Read, job: Job, layout: Layout) -> None:
        self._ask, self._read = ask, read
        self._job, self._layout = job, layout
        self._start: Vector = np.zeros(0, dtype=np.float32)

    @staticmethod
    @abstractmethod
    def folding(begun: Round) -> Folding:
        """What puts a round's changes together."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One order for each site of the round."""
        self._start = read_global(arrays)
        sites = config["sites"]
        return [
            Message(
                self._ask(str(site), server_round, self._start),
                dst_node_id=node_id(str(site)),
                message_type=TRAIN,
                group_id=str(server_round),
            )
            for site in (sites if isinstance(sites, list) else [])
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next state, folded as replies arrive; ``None`` without any."""
        folding = self.folding(Round(server_round, self._start, self._job, self._layout))
        changes = (change for reply in replies if (change := self._read(reply)) is not None)
        for change in chosen(self._job.aggregation, changes):
            folding.add(change)
        if not folding.weight:
            return None, None
        return global_record(folding.state()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nobody: a site's metric would be a release."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate."""
        return None

    def summary(self) -> None:
        """The job says it all."""


def global_record(vector: Vector) -> ArrayRecord:
    """The state as Flower's strategies hold it."""
    return ArrayRecord({GLOBAL: Array(vector)})


def read_global(arrays: ArrayRecord) -> Vector:
    """The (P,) vector of ``global_record``."""
    return np.asarray(arrays[GLOBAL].numpy(), dtype=np.float32)
