"""Who is away follows the model and its seed; what the server sees is what a deployment's would."""

from collections.abc import Iterable, Iterator

import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from common.flower import become_server
from common.messages import OFFER, TRAIN
from simulations.absence import NOBODY, Absence
from simulations.grids import AbsentGrid, LocalGrid
from simulations.scenario import DEFAULT, Options, load_scenario

shares = st.floats(0.05, 0.95)


@given(st.integers(1, 40), shares, st.integers(0, 99), st.integers(1, 50))
def test_a_round_asks_its_share_of_the_sites(
    sites: int, participation: float, seed: int, round_: int
) -> None:
    model = Absence(participation=participation)
    trains, late = model.draw(range(sites), seed, round_, 1)
    assert len(trains) == model.asked(sites) >= 1
    assert abs(len(trains) - participation * sites) <= 1
    assert not late
    assert trains == model.draw(range(sites), seed, round_, 1)[0]


def test_every_site_is_asked_as_often_in_the_long_run() -> None:
    model, rounds = Absence(participation=0.25), 4000
    times = [0] * 8
    for round_ in range(rounds):
        for node in model.draw(range(8), 3, round_, 1)[0]:
            times[node] += 1
    # Binomial(4000, 1/4) has a standard deviation of 27.
    assert all(abs(count - rounds / 4) < 5 * 27.4 for count in times)


def test_so_many_drop_out_and_so_many_are_late() -> None:
    model, rounds, sites = Absence(dropout=0.2, stragglers=0.3), 2000, 10
    drawn = [model.draw(range(sites), 1, round_, 1) for round_ in range(rounds)]
    there = sum(len(trains) for trains, _ in drawn)
    late = sum(len(tardy) for _, tardy in drawn)
    assert all(tardy <= trains for trains, tardy in drawn)
    assert there / (rounds * sites) == pytest.approx(0.8, abs=0.015)
    assert late / there == pytest.approx(0.3, abs=0.02)


def test_a_round_that_is_asked_again_finds_others() -> None:
    model = Absence(dropout=0.5)
    first, second = (model.draw(range(64), 1, 1, attempt)[0] for attempt in (1, 2))
    assert first != second


@pytest.mark.slow
def test_a_scenario_says_it_and_a_sweep_may() -> None:
    assert load_scenario(DEFAULT, Options()).absence == NOBODY
    values = {"simulation.dropout": 0.25, "simulation.partition": "quantity:0.5"}
    made = load_scenario(DEFAULT, Options(sites=12, values={**values, "training.quorum": 2}))
    assert made.absence == Absence(dropout=0.25)
    sizes = [len(rows) for rows in made.records.values()]
    assert len(sizes) == 12
    assert max(sizes) > 5 * min(sizes)


class Reached(LocalGrid):
    """Sites that take messages and say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        return range(2, 12)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        self.nodes = {message.metadata.dst_node_id for message in messages}
        return iter(())


def test_a_grid_says_from_whom_it_kept_an_order() -> None:
    become_server()
    inner = Reached()
    grid = AbsentGrid(inner, Absence(participation=0.6, dropout=0.3), seed=4)
    for round_ in (1, 1, 2):
        orders = [Message(RecordDict(), n, TRAIN, group_id=str(round_)) for n in range(2, 12)]
        assert list(grid.send_and_receive(orders)) == []
        assert len(grid.kept_back) >= 4
        assert grid.kept_back == set(range(2, 12)) - inner.nodes
    list(grid.send_and_receive([Message(RecordDict(), 2, OFFER, group_id="offer")]))
    assert (grid.kept_back, inner.nodes) == (set(), {2})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"simulation.dropout": 1.0}, "simulation.dropout|dropout must be less than 1"),
        ({"simulation.lateness": 1}, "lateness"),
        (
            {"simulation.participation": 0.4, "training.quorum": 3},
            "training.quorum must be at most the 2 sites that simulation.participation 0.4 asks",
        ),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        load_scenario(DEFAULT, Options(sites=6, values=values))
