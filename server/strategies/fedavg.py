"""FedAvg: the mean of the sites' changes by public weights.

Source: McMahan et al. (2017), https://arxiv.org/abs/1602.05629, with the populations that a job
declares in place of record counts, which are private.

With A frozen (``ffa``) the mean of the changes of B is exactly the change of the mean product; with
``lora`` it is FedIT's rule, which is not.
"""

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.adapter import Vector
from common.link.identity import node_id
from common.messages import TRAIN
from server.aggregate import StreamingMean

GLOBAL = "adapter"

# (site, round, global vector) -> what the site is asked.
Ask = Callable[[str, int, Vector], RecordDict]
# A reply -> its change and public weight, or None when it is not to be used.
Read = Callable[[Message], tuple[Vector, float] | None]


class FedAvg(Strategy):
    """The streaming mean on Flower's strategy interface.

    ``ask`` and ``read`` translate messages, so that a strategy handles vectors and weights alone.
    The sites of a round come in the round's configuration under ``sites``.
    """

    def __init__(self, ask: Ask, read: Read) -> None:
        self._ask = ask
        self._read = read
        self._start: Vector = np.zeros(0, dtype=np.float32)

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
        """The start plus the mean change, folded in as replies arrive; ``None`` without any."""
        folded = StreamingMean(self._start.size)
        for reply in replies:
            change = self._read(reply)
            if change is not None:
                folded.add(*change)
        if not folded.weight:
            return None, None
        total = self._start.astype(np.float64) + folded.mean()
        return global_record(total.astype(np.float32)), None

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
    """The global adapter as Flower's strategies hold it."""
    return ArrayRecord({GLOBAL: Array(vector)})


def read_global(arrays: ArrayRecord) -> Vector:
    """The (P,) vector of ``global_record``."""
    return np.asarray(arrays[GLOBAL].numpy(), dtype=np.float32)
