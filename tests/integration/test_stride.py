"""What a round moves, against the rules and optimisers themselves on updates made to go far."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from client.stride import stride
from common.aggregation import AggregationSection
from common.flower import become_server
from common.job import Job
from server.aggregate import Change
from server.strategies.optimizer import ServerOptimizer
from server.strategies.robust import chosen, middle_of

MakeJob = Callable[..., Job]
Floats = NDArray[np.float64]
BOUND = 0.75

ADAM = {"optimizer": "fedadam", "learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "fedavgm", "learning_rate": 0.5, "momentum": 0.95},
    {"optimizer": "fedavgm", "learning_rate": 2.0, "momentum": 0.0},
    ADAM,
    {**ADAM, "tau": 1e-9},
    {**ADAM, "beta_1": 0.5, "beta_2": 0.3, "tau": 1e-9},
    {**ADAM, "beta_1": 0.9, "beta_2": 0.5},  # no bound by the root
    {**ADAM, "optimizer": "fedyogi"},
    {**ADAM, "optimizer": "fedyogi", "tau": 1e-9},
    {**ADAM, "optimizer": "fedyogi", "beta_1": 0.3, "beta_2": 0.6, "tau": 1e-9},
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    become_server()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def allowed(job: MakeJob, size: int, quorum: int = 2, sites: int = 2, **asked: Any) -> float:  # noqa: ANN401
    made = job(
        training={"max_update_norm": BOUND, "quorum": quorum, "rounds": 500},
        data={"population": {f"S{i}": 30 for i in range(sites)}},
        adapter={"method": "fedavg"},
        aggregation=asked,
    )
    return stride(made, size)


def middle(rows: Floats, **asked: Any) -> Floats:  # noqa: ANN401
    section = AggregationSection(**asked)
    found = middle_of(section, rows.shape[1])
    came = (Change(f"S{i}", row.astype(np.float32), 1.0 + i) for i, row in enumerate(rows))
    for change in chosen(section, came):
        found.add(change.vector, change.weight)
    return found.mean()


def within(rows: Floats) -> Floats:
    """Every row as long as the bound, or zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows * BOUND / np.where(norms > 0, norms, 1.0))


# Few values, so that numbers agree across rows, as they have to for a middle to be long.
several = hnp.arrays(
    np.float64,
    st.tuples(st.integers(5, 9), st.integers(1, 7)),
    elements=st.sampled_from([-2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 2.0]),
)


@pytest.mark.parametrize(
    "asked",
    [
        {"rule": "mean"},
        {"rule": "median"},
        {"rule": "trimmed-mean", "byzantine": 1},
        {"rule": "trimmed-mean", "byzantine": 2},
        {"rule": "geometric-median"},
        {"rule": "krum", "byzantine": 1},
        {"rule": "multi-krum", "byzantine": 1},
        {"rule": "norm-bound", "norm_bound": 0.2},
    ],
    ids=str,
)
@settings(max_examples=30)
@given(rows=several)
def test_no_rule_goes_beyond_its_stride(job: MakeJob, asked: dict[str, Any], rows: Floats) -> None:
    farthest = allowed(job, rows.shape[1], quorum=5, sites=9, **asked)
    assert np.linalg.norm(middle(within(rows), **asked)) <= farthest * (1 + 1e-5)


@pytest.mark.parametrize(
    ("asked", "rows", "ratio"),
    [
        # Of each number two of three are 1: the median is 1 everywhere.
        ({"rule": "median"}, [[1, 1, 0], [1, 0, 1], [0, 1, 1]], np.sqrt(6 / 4)),
        ({"rule": "trimmed-mean", "byzantine": 1}, [[1, 1, 0], [1, 0, 1], [0, 1, 1]], np.sqrt(1.5)),
        ({"rule": "krum", "byzantine": 1}, [[1, 0]] * 5, 1.0),
        ({"rule": "norm-bound", "norm_bound": 0.25}, [[1, 0]] * 3, 1 / 3),
    ],
    ids=str,
)
def test_some_updates_go_as_far_as_the_stride(
    job: MakeJob, asked: dict[str, Any], rows: list[list[float]], ratio: float
) -> None:
    count = len(rows)
    found = middle(within(np.array(rows, float)), **asked)
    assert np.linalg.norm(found) == pytest.approx(ratio * BOUND)
    assert allowed(job, 3, quorum=count, sites=count, **asked) == pytest.approx(ratio * BOUND)


@pytest.mark.parametrize("asked", OPTIMIZERS, ids=str)
@settings(max_examples=20)
@given(
    rounds=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 25), st.integers(1, 5)),
        elements=st.sampled_from([-1.0, -0.01, 0.0, 0.0, 1e-4, 0.01, 1.0]),
    )
)
def test_no_optimiser_goes_beyond_its_stride(
    job: MakeJob, asked: dict[str, Any], rounds: Floats
) -> None:
    size = rounds.shape[1]
    farthest = allowed(job, size, **asked)
    optimizer = ServerOptimizer(AggregationSection(**asked), size)
    state = np.zeros(size, np.float32)
    for round_, step in enumerate(rounds, start=1):
        moved = (step * BOUND / max(1.0, float(np.linalg.norm(step)))).astype(np.float32)
        after = optimizer.step(state, state + moved, round_)
        reached = np.linalg.norm(after.astype(np.float64) - state)
        assert reached <= farthest * (1 + 1e-5) + 1e-6 * np.linalg.norm(after)
        state = after


@pytest.mark.parametrize(
    ("asked", "steps", "least"),
    [
        (OPTIMIZERS[0], [1.0] * 200, 0.999),
        # As long as tau is most of the divisor, a small step is a large one over tau.
        ({**ADAM, "tau": 1e3}, [1.0] * 400, 0.98),
        ({**ADAM, "tau": 1e3, "optimizer": "fedyogi"}, [1.0] * 400, 0.98),
        # The worst of the root: a growing step, each beta_2 / beta_1 times the last.
        ({**ADAM, "tau": 1e-9}, [1.1 ** (i - 499) for i in range(500)], 0.99),
        # Yogi's second moment falls by what comes just below it, faster than Adam's forgets.
        (OPTIMIZERS[-1], [1.0, 0.63], 0.88),
    ],
    ids=["fedavgm", "fedadam by tau", "fedyogi by tau", "fedadam by the root", "fedyogi falling"],
)
def test_some_steps_go_nearly_as_far(
    job: MakeJob, asked: dict[str, Any], steps: list[float], least: float
) -> None:
    optimizer = ServerOptimizer(AggregationSection(**asked), 1)
    zero = np.zeros(1, np.float32)
    for round_, step in enumerate(steps, start=1):
        found = optimizer.step(zero, np.array([BOUND * step], np.float32), round_)
    farthest = allowed(job, 1, **asked)
    assert least * farthest <= float(found[0]) <= farthest * (1 + 1e-5)
