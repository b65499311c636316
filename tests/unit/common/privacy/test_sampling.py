import os
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.privacy.sampling import choose_records, poisson_sample
from common.privacy.stream import Stream


def draws(units: int, rate: float, steps: int) -> NDArray[np.bool]:
    table = np.zeros((steps, units), dtype=bool)
    for step in range(steps):
        table[step, poisson_sample(units, rate, Stream(os.urandom(32)))] = True
    return table


@pytest.mark.parametrize("rate", [0.03, 0.4, 0.97])
def test_each_unit_enters_at_the_rate_whatever_the_others_do(rate: float) -> None:
    table = draws(200, rate, 400)
    assert stats.binomtest(int(table.sum()), table.size, rate).pvalue > 1e-9
    # Batch sizes are binomial, and a unit's neighbour tells nothing of it.
    sizes = table.sum(axis=1)
    assert stats.chi2.sf(((sizes - 200 * rate) ** 2).sum() / (200 * rate * (1 - rate)), 400) > 1e-9
    both = int((table[:, :-1] & table[:, 1:]).sum())
    assert abs(both - 199 * 400 * rate**2) < 7 * np.sqrt(3 * 199 * 400 * rate**2)


@given(units=st.integers(0, 300), rate=st.floats(1e-6, 1))
def test_indices_are_distinct_ascending_and_in_range(units: int, rate: float) -> None:
    chosen = poisson_sample(units, rate, Stream(os.urandom(32)))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert all(0 <= index < units for index in chosen)


def test_at_rate_1_everybody_enters() -> None:
    assert poisson_sample(50, 1.0, Stream(os.urandom(32))).tolist() == list(range(50))


def test_a_unit_more_leaves_the_coins_of_the_others_alone() -> None:
    key = os.urandom(32)
    fewer, more = (poisson_sample(n, 0.3, Stream(key)) for n in (400, 401))
    assert [i for i in more if i < 400] == fewer.tolist()


def test_a_coin_rounds_the_rate_down_and_never_up() -> None:
    class Last(Stream):
        """Words just at a rate of three in 2^53, and one below."""

        def words(self, size: int) -> NDArray[np.uint64]:
            return np.array([3 << 11, (3 << 11) - 1], dtype=np.uint64)

    assert poisson_sample(2, 3.9 / 2**53, Last(os.urandom(32))).tolist() == [1]


@pytest.mark.parametrize(("records", "cap"), [(5, 2), (4, 3), (7, 1)])
def test_each_subset_of_a_units_records_is_as_likely(records: int, cap: int) -> None:
    stream = Stream(os.urandom(32))
    drawn = [tuple(choose_records(records, cap, stream).tolist()) for _ in range(20_000)]
    subsets = list(combinations(range(records), cap))
    assert set(drawn) == set(subsets)
    assert stats.chisquare([drawn.count(subset) for subset in subsets]).pvalue > 1e-9


@pytest.mark.parametrize("cap", [3, 9])
def test_a_unit_within_the_cap_gives_all_its_records(cap: int) -> None:
    assert choose_records(3, cap, Stream(os.urandom(32))).tolist() == [0, 1, 2]
