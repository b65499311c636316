"""Shares and intervals of noised counts: against Wilson's, and by simulation for coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from common.estimates import estimates, share
from common.histograms import Histogram
from common.privacy.counts import variance

ACCURACY = (Histogram("accuracy", ("all",), ("right", "wrong")),)


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.9, 0.95, 0.999]))
def test_without_noise_it_is_wilsons_interval(right: int, wrong: int, confidence: float) -> None:
    found = share(right, wrong, variance=0.0, confidence=confidence)
    if right + wrong == 0:
        assert (found.value, found.low, found.high) == (None, 0.0, 1.0)
        return
    wanted = binomtest(right, right + wrong).proportion_ci(confidence, method="wilson")
    assert found.value == right / (right + wrong)
    assert found.low == pytest.approx(wanted.low, abs=1e-9)
    assert found.high == pytest.approx(wanted.high, abs=1e-9)


@given(st.integers(-500, 500), st.integers(-500, 500), st.floats(0, 1e4), st.integers(1, 9))
def test_an_interval_holds_its_estimate_and_stays_within_0_and_1(
    right: int, wrong: int, noise: float, agree: int
) -> None:
    found = share(right, wrong, variance=noise, agree=agree)
    assert 0 <= found.low <= found.high <= 1
    assert found.value is None or found.low <= found.value <= found.high


def simulated(
    truth: dict[str, float], units: int, deviation: float, seed: int, cap: int = 1
) -> dict[str, np.ndarray]:
    """Sites' noised counts; the records of a unit all agree, which is the worst for an interval."""
    rng = np.random.default_rng(seed)
    counts = {}
    for site, p in truth.items():
        right = cap * rng.binomial(units, p)
        noise = np.rint(rng.normal(0, deviation, 2))
        counts[site] = np.array([right, cap * units - right]) + noise.astype(np.int64)
    return counts


@pytest.mark.parametrize(
    ("truth", "units", "deviation", "cap"),
    [
        pytest.param({"A": 0.8, "B": 0.8, "C": 0.8}, 200, 12.0, 1, marks=pytest.mark.slow),
        ({"A": 0.9, "B": 0.55, "C": 0.7}, 60, 5.0, 1),
        ({"A": 0.5}, 40, 12.0, 1),  # the noise is as large as the counts
        ({"A": 0.97, "B": 0.97}, 300, 9.0, 1),
        ({"A": 0.6, "B": 0.7}, 150, 12.0, 4),
        # each site's own say little
        pytest.param({f"S{n}": 0.75 for n in range(8)}, 30, 12.0, 1, marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    truth: dict[str, float], units: int, deviation: float, cap: int
) -> None:
    tries, together, everywhere = 1500, 0, 0
    mean = float(np.mean(list(truth.values())))
    for seed in range(tries):
        counts = simulated(truth, units, deviation, seed, cap)
        (found,) = estimates(counts, ACCURACY, variance=variance(deviation), cap=cap)
        together += found.together.low <= mean <= found.together.high
        worst = truth.get(found.worst_site)
        everywhere += worst is None or found.worst.low <= worst <= found.worst.high
    # 95 % less three standard errors of 1,500 tries and one point for the normal approximation.
    assert together / tries > 0.923
    assert everywhere / tries > 0.923


def test_noise_is_in_the_interval_or_it_would_hold_far_too_seldom() -> None:
    truth, deviation, tries = {"A": 0.8}, 25.0, 600
    held = 0
    for seed in range(tries):
        counts = simulated(truth, 200, deviation, seed)
        (found,) = estimates(counts, ACCURACY, variance=0.0, cap=1)
        held += found.together.low <= 0.8 <= found.together.high
    assert held / tries < 0.8


def test_counts_are_added_up_before_anything_is_clipped() -> None:
    counts = {"A": np.array([10, -6]), "B": np.array([10, 8])}
    (found,) = estimates(counts, ACCURACY, variance=4.0, cap=1)
    assert found.together.value == pytest.approx(20 / 22)


def test_the_worst_site_is_the_one_with_the_lowest_share() -> None:
    counts = {"A": np.array([90, 10]), "B": np.array([60, 40]), "C": np.array([-3, 2])}
    (found,) = estimates(counts, ACCURACY, variance=4.0, cap=1)
    assert found.worst_site == "B"  # of C noise leaves nothing
    assert found.worst.low < 0.6 < found.worst.high
    (alone,) = estimates({"C": counts["C"]}, ACCURACY, variance=4.0, cap=1)
    assert (alone.worst_site, alone.worst.value) == ("", None)


def test_precision_and_recall_are_of_each_kind() -> None:
    kinds = (Histogram("entities", ("Drug", "Sign"), ("found", "missed", "spurious"), most=3),)
    counts = {"A": np.array([60, 20, 15, 30, 10, 90])}
    found = {
        (e.row, e.measure): e.together.value for e in estimates(counts, kinds, variance=1.0, cap=1)
    }
    assert found == {
        ("Drug", "precision"): 0.8, ("Drug", "recall"): 0.75,
        ("Sign", "precision"): 0.25, ("Sign", "recall"): 0.75,
    }  # fmt: skip
