"""What simulated sites answer an order, where a real one would refuse it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from client.step import require_step
from common import messages
from common.adapter import LoadedAdapter, Vector, load_adapter
from common.data.records import Record
from common.flower import become_server
from common.job import Job, SignedJob, sign_job
from simulations.engine.cohort import Lane
from simulations.engine.grid import StackedSites
from simulations.engine.site import SimulatedSite
from simulations.seeded import seeded_keys

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
BOUND = 3.0
NODES = {1: "A", 2: "B", 3: "C"}


@pytest.fixture
def signed(make_job: MakeJob, operator: Ed25519PrivateKey) -> SignedJob:
    training = {"rounds": 4, "max_update_norm": BOUND}
    population = dict.fromkeys(NODES.values(), 20)
    adapter = {"method": "ffa", "init": "uniform"}
    return sign_job(
        make_job(training=training, data={"population": population}, adapter=adapter), operator
    )


@pytest.fixture
def adapter(signed: SignedJob) -> LoadedAdapter:
    become_server()
    return load_adapter(signed.job, Path(signed.job.model.base), "cpu")


def still(lanes: Sequence[Lane], start: Vector, round_: int) -> Iterator[Vector]:
    """Trains nothing: changes of zero."""
    return (np.zeros(lane.trainer.trained(round_).size, np.float32) for lane in lanes)


@pytest.fixture
def sites(signed: SignedJob, adapter: LoadedAdapter, rows: Rows) -> dict[int, SimulatedSite]:
    return {
        node: SimulatedSite(
            name, signed, adapter, [Record(*row) for row in rows(9)], seeded_keys(3, name)
        )
        for node, name in NODES.items()
    }


def asked(
    stacked: StackedSites, signed: SignedJob, state: Vector, round_: int, nodes: Sequence[int]
) -> dict[int, str]:
    """Each node's word on an order: why it refuses, or nothing where it shows its charge."""
    table = load_adapter(signed.job, Path(signed.job.model.base), "cpu").table
    packed = messages.pack_global(state, table)
    orders = [
        Message(
            messages.order(signed, table, state, round_, None, packed=packed),
            dst_node_id=node,
            message_type=messages.TRAIN,
            group_id=str(round_),
        )
        for node in nodes
    ]
    said = {}
    for reply in stacked.answer(orders):
        verdict = messages.read_verdict(reply.content)
        said[reply.metadata.src_node_id] = "" if verdict is None else verdict.reason
    return said


def away(state: Vector, distance: float) -> Vector:
    moved = state.copy()
    moved[:4] += np.float32(distance / 2)
    return moved


def test_a_state_too_far_from_the_known_one_is_refused_and_costs_nothing(
    signed: SignedJob, adapter: LoadedAdapter, sites: dict[int, SimulatedSite]
) -> None:
    """The bound is a round's for who trained in the last, two rounds' for who was away in it."""
    stacked, job = StackedSites(sites, still), signed.job
    assert asked(stacked, signed, away(adapter.initial, 0.5), 1, [1])[1].startswith(
        "global adapter must be within 0 of the one this site knows, got 0.5"
    )
    assert asked(stacked, signed, adapter.initial, 1, [1, 2, 3]) == {1: "", 2: "", 3: ""}
    second = away(adapter.initial, 0.9 * BOUND)
    assert asked(stacked, signed, second, 2, [1, 2]) == {1: "", 2: ""}
    third = away(second, 1.05 * BOUND)
    said = asked(stacked, signed, third, 3, [1, 2, 3])
    for node in (1, 2):
        assert said[node].startswith("global adapter must be within 3 of the one this site knows")
    assert said[3] == ""
    rounds = {node: [r for _, r in site.ledger.account.rounds] for node, site in sites.items()}
    assert rounds == {1: [1, 2], 2: [1, 2], 3: [1, 3]}
    assert sites[1].ledger.account.charged_steps(job.sha256) == 2 * job.training.local_steps
    assert sites[3].ledger.account.charged_steps(job.sha256) == 2 * job.training.local_steps


def test_sites_that_know_the_same_share_one_check_and_one_state(
    signed: SignedJob,
    adapter: LoadedAdapter,
    sites: dict[int, SimulatedSite],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[int] = []
    check = require_step

    def counted(*given: Any, **more: Any) -> None:  # noqa: ANN401
        times.append(1)
        check(*given, **more)

    monkeypatch.setattr("simulations.engine.grid.require_step", counted)
    stacked = StackedSites(sites, still)
    asked(stacked, signed, adapter.initial, 1, [1, 2, 3])
    assert len(times) == 1
    second = away(adapter.initial, 0.5)
    asked(stacked, signed, second, 2, [1, 2])
    assert len(times) == 2
    asked(stacked, signed, away(second, 0.5), 3, [1, 2, 3])
    assert len(times) == 4  # what A and B know, and what C knows
    starts = [site.latest[1] for site in sites.values() if site.latest is not None]
    assert len(starts) == 3
    assert all(start is starts[0] for start in starts)
