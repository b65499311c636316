"""Alternating runs: who is timed, what is checked when. Oracles: arithmetic by hand, a child's own
clock.
"""

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from common.errors import SelfCheckFailed
from simulations.benchmarks.sim_ray import compared
from simulations.benchmarks.timing import Distances, alternate, ratio

BURN = "import time\nwhile time.process_time() < 0.15: pass"


def test_every_round_is_checked_on_what_its_own_variants_made() -> None:
    counts, seen = iter(range(100)), list[Mapping[str, int]]()
    seconds = alternate({"one": lambda: next(counts), "two": lambda: -next(counts)}, 3, seen.append)
    # The first warms up: it is checked and not timed.
    assert seen == [{"one": 2 * i, "two": -2 * i - 1} for i in range(4)]
    assert {name: len(own) for name, own in seconds.items()} == {"one": 3, "two": 3}


def test_a_wrong_round_stops_the_benchmark_whichever_it_is() -> None:
    ends = iter([2.0, 2.01, 2.4, 2.0])
    distances = Distances({"two": 0.1})

    def check(made: Mapping[str, float]) -> None:
        distances.require("two", np.array([made["two"], 0.0]), np.array([made["one"], 0.0]))

    with pytest.raises(SelfCheckFailed, match=r"two must be within 0\.1 of the other's, got 0\.2"):
        alternate({"one": lambda: 2.0, "two": lambda: next(ends)}, 3, check)
    assert next(ends) == 2.0  # the third round was the last
    assert distances.greatest["two"] == pytest.approx(0.005)


def test_what_is_no_number_is_not_close() -> None:
    distances = Distances({"two": 0.1})
    with pytest.raises(SelfCheckFailed, match="got nan"):
        distances.require("two", np.array([np.nan, 1.0]), np.array([2.0, 1.0]))


def test_a_childs_time_counts_as_its_parents() -> None:
    def start() -> None:
        subprocess.run([sys.executable, "-c", BURN], check=True)

    (first, second) = alternate({"child": start}, 2, lambda _: None)["child"]
    assert min(first, second) >= 0.15


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    found = ratio([3.0, 4.4, 10.0], [2.0, 4.0, 5.0])
    assert found == {"ratio": 1.5, "quartiles": [1.3, 1.75]}  # of 1.5, 1.1 and 2


def test_stock_is_taken_in_the_setting_that_costs_it_less() -> None:
    seconds = {
        "ray_1": [54.0, 50.0, 52.0],
        "ray_2": [40.0, 60.0, 44.0],
        "stacked": [20.0, 20.0, 20.0],
        "stacked_bf16": [80.0, 100.0, 88.0],
    }
    found = compared(seconds, ["ray_1", "ray_2"])
    assert found["stock"] == "ray_2"
    assert (found["fp32"]["ratio"], found["bf16"]["ratio"]) == (2.2, 0.5)
