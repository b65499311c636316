from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from common.adapter import Vector
from common.flower import become_server, set_message_id
from common.job import SignedJob
from common.layout import AdapterTable, Layout, TensorSpec
from common.link.identity import node_id
from common.messages import TRAIN
from common.methods import Part
from server.aggregate import Change
from server.strategies import STRATEGIES
from server.strategies.base import global_record, read_global
from server.strategies.fedavg import FedAvg
from simulations.grids import InProcessGrid

START = np.linspace(-2, 3, 7, dtype=np.float32)
CHANGES = {
    "A": Change("A", np.full(7, 0.5, np.float32), 0.25),
    "B": Change("B", np.full(7, -0.1, np.float32), 0.75),
    "C": None,
}
LAYOUT = Layout("fedavg", 1, AdapterTable((TensorSpec("head", (7,)),)), (Part.HEAD,), ())


@pytest.fixture
def asked() -> list[tuple[str, int, bytes]]:
    become_server()
    return []


@pytest.fixture
def strategy(asked: list[tuple[str, int, bytes]], job: SignedJob) -> FedAvg:
    def ask(site: str, round_: int, vector: Vector) -> RecordDict:
        asked.append((site, round_, vector.tobytes()))
        return RecordDict({"site": ConfigRecord({"name": site})})

    def read(reply: Message) -> Change | None:
        return CHANGES[str(reply.content.config_records["site"]["name"])]

    made = STRATEGIES["fedavg"](ask, read, job.job, LAYOUT)
    assert isinstance(made, FedAvg)
    return made


def configure(strategy: FedAvg, sites: list[str]) -> list[Message]:
    config = ConfigRecord({"sites": sites})
    messages = list(strategy.configure_train(4, global_record(START), config, InProcessGrid({})))
    for number, message in enumerate(messages):
        set_message_id(message, f"{number:064x}")
    return messages


def replies(messages: list[Message]) -> Iterator[Message]:
    return (Message(message.content, reply_to=message) for message in messages)


def test_each_site_of_the_round_is_asked_once_from_the_global_adapter(
    strategy: FedAvg, asked: list[tuple[str, int, bytes]]
) -> None:
    messages = configure(strategy, ["A", "C"])
    assert asked == [("A", 4, START.tobytes()), ("C", 4, START.tobytes())]
    assert [m.metadata.dst_node_id for m in messages] == [node_id("A"), node_id("C")]
    assert {(m.metadata.message_type, m.metadata.group_id) for m in messages} == {(TRAIN, "4")}


@pytest.mark.parametrize("order", [["A", "B", "C"], ["C", "B", "A"], ["B", "A"]])
def test_the_new_adapter_is_the_start_plus_the_weighted_mean_of_usable_changes(
    strategy: FedAvg, order: list[str]
) -> None:
    arrays, metrics = strategy.aggregate_train(4, replies(configure(strategy, order)))
    assert arrays is not None
    assert metrics is None
    # 0.25 * 0.5 - 0.75 * 0.1 by hand
    assert np.allclose(read_global(arrays), START + 0.05, atol=3e-7)


def test_without_a_usable_change_there_is_no_new_adapter(strategy: FedAvg) -> None:
    assert strategy.aggregate_train(4, replies(configure(strategy, ["C"]))) == (None, None)


def test_no_site_is_asked_for_a_metric(strategy: FedAvg) -> None:
    grid = InProcessGrid({})
    assert list(strategy.configure_evaluate(4, global_record(START), ConfigRecord(), grid)) == []
    assert strategy.aggregate_evaluate(4, []) is None
