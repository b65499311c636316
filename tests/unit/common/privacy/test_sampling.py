import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.privacy.sampling import poisson_sample
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
