"""Robust rules against Flower's own, scipy's minimiser and closed forms."""

import logging
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum, MultiKrum
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.optimize import minimize

from common.aggregation import AggregationSection
from common.flower import become_server
from common.link.identity import node_id
from server.aggregate import Change
from server.strategies.robust import chosen, middle_of

Floats = NDArray[np.float64]

rows_of = hnp.arrays(
    np.float32,
    st.tuples(st.integers(7, 11), st.integers(1, 4)),
    elements=st.floats(-100, 100, width=32),
    unique=True,
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def flower(strategy: FedMedian | FedTrimmedAvg | Krum | MultiKrum, rows: Floats) -> Floats:
    """What Flower's strategy makes of the rows."""
    become_server()
    replies = []
    for row in rows:
        content = RecordDict(
            {
                "arrays": ArrayRecord({"x": Array(row)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        asked = Message(RecordDict(), dst_node_id=node_id("A"), message_type="train")
        replies.append(Message(content, reply_to=asked))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return np.asarray(arrays["x"].numpy(), dtype=np.float64)


def ours(asked: AggregationSection, rows: Floats) -> Floats:
    middle = middle_of(asked, rows.shape[1])
    changes = (Change(f"s{i:02}", row.astype(np.float32), 1.0) for i, row in enumerate(rows))
    for change in chosen(asked, changes):
        middle.add(change.vector, change.weight)
    return middle.mean()


@given(rows_of)
def test_the_median_is_flowers(rows: Floats) -> None:
    assert np.allclose(ours(AggregationSection(rule="median"), rows), flower(FedMedian(), rows))


@given(rows_of)
def test_the_trimmed_mean_is_flowers(rows: Floats) -> None:
    found = ours(AggregationSection(rule="trimmed-mean", byzantine=2), rows)
    # Flower cuts a share of n at each end, rounded down.
    expected = flower(FedTrimmedAvg(beta=2.2 / len(rows)), rows)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


@given(rows_of)
def test_krum_is_flowers(rows: Floats) -> None:
    found = ours(AggregationSection(rule="krum", byzantine=2), rows)
    expected = flower(Krum(num_malicious_nodes=2), rows)
    assert _score(rows, found, 2) == pytest.approx(_score(rows, expected, 2), rel=1e-4, abs=1e-3)


@given(rows_of)
def test_multi_krum_is_flowers(rows: Floats) -> None:
    found = ours(AggregationSection(rule="multi-krum", byzantine=2), rows)
    select = len(rows) - 2
    expected = flower(MultiKrum(num_malicious_nodes=2, num_nodes_to_select=select), rows)
    scores = sorted(_score(rows, row, 2) for row in rows)
    if scores[select] - scores[select - 1] > 1e-2 * (1 + scores[select]):  # no tie at the edge
        assert np.allclose(found, expected, atol=1e-3)


def _score(rows: Floats, row: Floats, byzantine: int) -> float:
    """The sum of squared distances to the nearest n - f - 2 others."""
    squares = np.sort(np.sum((rows.astype(np.float64) - row) ** 2, axis=1))
    return float(squares[1 : len(rows) - byzantine - 1].sum())


@settings(max_examples=40)
@given(rows_of, st.integers(0, 2**32 - 1))
def test_the_geometric_median_is_scipys_minimum(rows: Floats, seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(rows))
    middle = middle_of(AggregationSection(rule="geometric-median"), rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        middle.add(row, float(weight))

    def cost(point: Floats) -> float:
        return float(weights @ np.linalg.norm(rows - point, axis=1))

    best = min(
        minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).fun
        for start in (rows.mean(axis=0), np.median(rows, axis=0))
    )
    assert cost(middle.mean()) <= best * (1 + 1e-3) + 1e-6


@settings(max_examples=40)
@given(
    st.integers(3, 12),
    st.sampled_from([2, 40, 5000]),
    st.sampled_from([0.0, 1e6]),
    st.sampled_from([1.0, 1e4, 1e20]),
    st.integers(0, 2**32 - 1),
)
def test_the_rows_pulls_cancel_at_the_geometric_median(
    count: int, size: int, offset: float, away: float, seed: int
) -> None:
    """The condition for a least sum of distances; far from zero, and with a row that is far off."""
    rng = np.random.default_rng(seed)
    rows = (offset + rng.normal(size=(count, size))).astype(np.float32)
    rows[0] *= np.float32(away)
    weights = rng.uniform(0.5, 1, count)
    middle = middle_of(AggregationSection(rule="geometric-median"), size)
    for row, weight in zip(rows, weights, strict=True):
        middle.add(row, float(weight))
    apart = rows.astype(np.float64) - middle.mean()
    distances = np.linalg.norm(apart, axis=1)
    nearest = int(distances.argmin())
    far = np.arange(count) != nearest
    others = (weights[far] / distances[far]) @ apart[far]
    if distances[nearest] < 1e-3 * np.median(distances):  # a row: the others pull less than it
        assert np.linalg.norm(others) <= weights[nearest] * (1 + 1e-3)
    else:
        own = weights[nearest] * apart[nearest] / distances[nearest]
        assert np.linalg.norm(others + own) < 1e-5 * weights.sum()


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "geometric-median"])
def test_a_middle_takes_less_memory_than_the_vectors_that_it_is_of(rule: str) -> None:
    count, size = 24, 300_000
    byzantine = 2 if rule == "trimmed-mean" else None
    middle = middle_of(AggregationSection(rule=rule, byzantine=byzantine), size)  # type: ignore[arg-type]
    rng = np.random.default_rng(2)
    for _ in range(count):
        middle.add(rng.standard_normal(size, np.float32), 1.0)
    tracemalloc.start()
    found = middle.mean()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.shape == (size,)
    assert peak < count / 3 * 4 * size


RULES: list[dict[str, object]] = [
    {"rule": "median"},
    {"rule": "trimmed-mean", "byzantine": 2},
    {"rule": "geometric-median"},
    {"rule": "krum", "byzantine": 2},
    {"rule": "multi-krum", "byzantine": 2},
]


@pytest.mark.parametrize("attack", [-1.0, -100.0, 100.0, 1e30])
@pytest.mark.parametrize("asked", RULES, ids=[str(rule["rule"]) for rule in RULES])
def test_two_of_ten_move_a_robust_rule_no_further_than_honest_sites_differ(
    asked: dict[str, object], attack: float
) -> None:
    rng = np.random.default_rng(5)
    honest = 1.0 + 0.1 * rng.normal(size=(8, 20))
    rows = np.concatenate([honest, np.full((2, 20), attack)])
    found = ours(AggregationSection(**asked), rows)  # type: ignore[arg-type]
    spread = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    assert np.linalg.norm(found - honest.mean(axis=0)) < 1.5 * spread
    assert np.linalg.norm(rows.mean(axis=0) - honest.mean(axis=0)) > 1.5 * spread


def test_a_norm_bound_cuts_what_is_longer_and_leaves_the_rest() -> None:
    asked = AggregationSection(rule="norm-bound", norm_bound=5.0)
    came = [
        Change("A", np.array([3.0, 4.0], np.float32), 0.5),
        Change("B", np.array([300.0, 400.0], np.float32), 0.5),
    ]
    short, cut = chosen(asked, iter(came))
    assert short.vector.tolist() == [3.0, 4.0]
    assert cut.vector.tolist() == pytest.approx([3.0, 4.0])


@pytest.mark.parametrize("rule", ["median", "geometric-median"])
def test_the_order_of_arrival_is_in_no_bit(rule: str) -> None:
    rows = np.random.default_rng(1).normal(size=(9, 50))
    asked = AggregationSection(rule=rule)  # type: ignore[arg-type]
    assert np.array_equal(ours(asked, rows), ours(asked, rows[::-1]))
