"""A server's optimisers against the papers' formulas, written out here."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from common.aggregation import AggregationSection
from common.errors import StorageFailed
from common.flower import become_server
from server.strategies.optimizer import ServerOptimizer

START = np.array([0.5, -1.0, 2.0], np.float32)
STEPS = [np.array(step, np.float32) for step in ([0.1, 0.2, -0.3], [-0.05, 0.4, 0.0], [1, 1, 1])]


@pytest.fixture(autouse=True)
def server() -> Iterator[None]:
    become_server()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def run(asked: AggregationSection, *, restarts: bool) -> NDArray[np.float64]:
    """Three rounds whose middles are a step away; with a new object each round, or one."""
    optimizer, state = ServerOptimizer(asked, 3), START
    for round_, step in enumerate(STEPS, start=1):
        state = optimizer.step(state, state + step, round_)
        if restarts:
            optimizer = ServerOptimizer(asked, 3, optimizer.memory())
    return state.astype(np.float64)


@pytest.mark.parametrize("restarts", [False, True])
def test_fedavgm_is_momentum_on_the_mean_change(*, restarts: bool) -> None:
    """Hsu et al. (2019): v = beta v + step, x = x + rate v."""
    asked = AggregationSection(optimizer="fedavgm", learning_rate=0.5, momentum=0.9)
    expected, velocity = START.astype(np.float64), np.zeros(3)
    for step in STEPS:
        velocity = 0.9 * velocity + step
        expected = expected + 0.5 * velocity
    assert np.allclose(run(asked, restarts=restarts), expected, atol=1e-6)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_the_adaptive_ones_are_reddis(name: str, *, restarts: bool) -> None:
    """Reddi et al. (2021), Algorithm 2; Flower corrects FedAdam's rate for its zero start."""
    asked = AggregationSection(
        optimizer=name,  # type: ignore[arg-type]
        learning_rate=0.1,
        beta_1=0.9,
        beta_2=0.99,
        tau=1e-3,
    )
    expected, first, second = START.astype(np.float64), np.zeros(3), np.zeros(3)
    for round_, step in enumerate(STEPS, start=1):
        square = step.astype(np.float64) ** 2
        first = 0.9 * first + 0.1 * step
        if name == "fedadam":
            second = 0.99 * second + 0.01 * square
            rate = 0.1 * np.sqrt(1 - 0.99 ** (round_ + 1)) / (1 - 0.9 ** (round_ + 1))
        else:
            second = second - 0.01 * square * np.sign(second - square)
            rate = 0.1
        expected = expected + rate * first / (np.sqrt(second) + 1e-3)
    assert np.allclose(run(asked, restarts=restarts), expected, atol=1e-5)


def test_another_optimisers_memory_is_refused() -> None:
    asked = AggregationSection(optimizer="fedavgm", learning_rate=0.5, momentum=0.9)
    with pytest.raises(StorageFailed, match="must be 3 numbers, got 6"):
        ServerOptimizer(asked, 3, bytes(48))
