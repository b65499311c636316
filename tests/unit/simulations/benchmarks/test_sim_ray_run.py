"""Flower's simulation as a benchmark has to take it: with every client, or not at all."""

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from common.errors import LinkDown
from common.flower import become_server
from simulations.benchmarks.sim_ray_run import WholeFedAvg
from simulations.grids import LocalGrid


def reply(to: Message, value: float) -> Message:
    arrays = ArrayRecord({"adapter": Array(np.full(3, value, np.float32))})
    counts = MetricRecord({"num-examples": 2})
    return Message(RecordDict({"arrays": arrays, "metrics": counts}), reply_to=to)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_client_that_flower_would_leave_out_ends_the_run(is_told: bool) -> None:
    become_server()
    asked = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (3, 5)]
    strategy = WholeFedAvg(2)
    arrays, _ = strategy.aggregate_train(1, [reply(asked[0], 1.5), reply(asked[1], 4.5)])
    assert arrays is not None
    assert arrays["adapter"].numpy().tolist() == [3.0, 3.0, 3.0]
    lost = [Message(Error(7, "actor died"), reply_to=asked[1])] if is_told else []
    with pytest.raises(LinkDown, match="round 4 must have 2 clients' replies, got 1"):
        strategy.aggregate_train(4, [reply(asked[0], 1.5), *lost])


class ComingUp(LocalGrid):
    """Nobody is there at first."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self._seen: Iterator[list[int]] = iter([[], nodes, nodes])

    def get_node_ids(self) -> Iterable[int]:
        return next(self._seen)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        raise NotImplementedError


def test_every_client_is_asked_though_none_is_there_when_a_round_begins() -> None:
    become_server()
    nodes, arrays = [11, 12, 13, 14, 15], ArrayRecord({"adapter": Array(np.ones(3, np.float32))})
    asked = WholeFedAvg(5).configure_train(1, arrays, ConfigRecord(), ComingUp(nodes))
    assert sorted(message.metadata.dst_node_id for message in asked) == nodes
