"""A server's own optimiser over what a round's changes come to: Flower's, on one flat vector.

FedAvgM (Hsu et al. 2019, https://arxiv.org/abs/1909.06335), FedAdam and FedYogi (Reddi et al. 2021,
https://arxiv.org/abs/2003.00295). What they remember of earlier rounds is handed out and taken
back, so that a server which starts again goes on with it.

Not covered: local learning rates that follow the server's.
"""

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM, FedYogi, Strategy
from numpy.typing import NDArray

from common.adapter import Vector
from common.aggregation import AggregationSection
from common.errors import StorageFailed
from common.job import Job
from common.link.identity import node_id
from common.messages import TRAIN

_KEY, _WEIGHT = "state", "num-examples"


class ServerOptimizer:
    """The optimiser of a job; ``memory`` is what it was after the round before, empty at first.

    Raises:
        StorageFailed: the memory is not of this optimiser and size.
    """

    def __init__(self, asked: AggregationSection, size: int, memory: bytes = b"") -> None:
        self._size = size
        self._flower: Any = _flower(asked)
        if memory:
            self._remember(np.frombuffer(memory, "<f8"))

    def step(self, start: Vector, middle: Vector, round_: int) -> Vector:
        """The next state from ``start`` towards ``middle``, each (P,), in a round from 1."""
        optimizer = self._flower
        current = start.astype(np.float64)
        if isinstance(optimizer, FedAvgM):
            optimizer.current_arrays = ArrayRecord({_KEY: Array(current)})
        else:
            optimizer.current_arrays = {_KEY: current}
        arrays, _ = optimizer.aggregate_train(round_, [_reply(middle.astype(np.float64))])
        found: Vector = arrays[_KEY].numpy().astype(np.float32)
        return found

    def memory(self) -> bytes:
        """What it remembers, as little-endian float64: one vector of FedAvgM's, two of others."""
        optimizer = self._flower
        if isinstance(optimizer, FedAvgM):
            kept = [] if optimizer.momentum_vector is None else optimizer.momentum_vector
        else:
            kept = [optimizer.m_t[_KEY], optimizer.v_t[_KEY]] if optimizer.m_t else []
        return b"".join(np.asarray(vector, "<f8").tobytes() for vector in kept)

    def _remember(self, numbers: NDArray[np.float64]) -> None:
        optimizer, count = self._flower, 1 if isinstance(self._flower, FedAvgM) else 2
        if numbers.size != count * self._size:
            raise StorageFailed(
                f"optimizer's memory must be {count * self._size} numbers, got {numbers.size}"
            )
        vectors = numbers.reshape(count, self._size).copy()
        if isinstance(optimizer, FedAvgM):
            optimizer.momentum_vector = [vectors[0]]
        else:
            optimizer.m_t, optimizer.v_t = {_KEY: vectors[0]}, {_KEY: vectors[1]}


def optimized(
    job: Job, start: Vector, middle: Vector, round_: int, memory: bytes
) -> tuple[Vector, bytes]:
    """The next state and the optimiser's memory, where the job has one; else ``middle`` and none.

    Args:
        job: its constants.
        start: the round's, (P,).
        middle: what the strategy made of the changes, (P,).
        round_: from 1.
        memory: of the round before, empty in the first.
    """
    if job.aggregation is None or job.aggregation.optimizer == "none":
        return middle, b""
    optimizer = ServerOptimizer(job.aggregation, start.size, memory)
    return optimizer.step(start, middle, round_), optimizer.memory()


def _flower(asked: AggregationSection) -> Strategy:
    rate = asked.learning_rate or 1.0
    if asked.optimizer == "fedavgm":
        return FedAvgM(server_learning_rate=rate, server_momentum=asked.momentum or 0.0)
    kinds: dict[str, type[FedAdam] | type[FedYogi]] = {"fedadam": FedAdam, "fedyogi": FedYogi}
    return kinds[asked.optimizer](
        eta=rate, beta_1=asked.beta_1 or 0.0, beta_2=asked.beta_2 or 0.0, tau=asked.tau or 1e-3
    )


def _reply(middle: NDArray[np.float64]) -> Message:
    """One reply that stands for all, as Flower's strategies want it."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({_KEY: Array(middle)}),
            "metrics": MetricRecord({_WEIGHT: 1}),
        }
    )
    asked = Message(RecordDict(), dst_node_id=node_id("server"), message_type=TRAIN)
    return Message(content, reply_to=asked)
