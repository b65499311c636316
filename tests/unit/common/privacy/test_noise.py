"""Oracles: the Gaussian's distribution function (scipy), and mpmath's erfinv at 200 bits."""

import os

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri

from common.errors import InvalidInput, SelfCheckFailed
from common.privacy import noise
from common.privacy.noise import lattice_noise
from common.privacy.stream import Stream

ONES = 2**64 - 1


class Dealt(Stream):
    """A stream of words that a test chose."""

    def __init__(self, *words: int) -> None:
        self._left = list(words)

    def words(self, size: int) -> NDArray[np.uint64]:
        dealt, self._left = self._left[:size], self._left[size:]
        return np.array(dealt, dtype=np.uint64)


def fresh(size: int, deviation: float) -> NDArray[np.int64]:
    return lattice_noise(size, deviation, Stream(os.urandom(32)))


def exact(word: int, deviation: float) -> int:
    """The draw of a word, by the quantile function at 200 bits."""
    with mpmath.workprec(200):
        p = (mpmath.mpf(word >> 1) + mpmath.mpf(0.5)) / mpmath.mpf(2) ** 64
        z = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * p)
        magnitude = int(mpmath.floor(deviation * z + mpmath.mpf(0.5)))
    return -magnitude if word & 1 else magnitude


@pytest.mark.parametrize("deviation", [0.6, 1.0, 1.7, 11.3])
def test_small_deviations_give_each_integer_its_gaussian_share(deviation: float) -> None:
    drawn = fresh(400_000, deviation)
    assert drawn.dtype == np.int64
    reach = int(3 * deviation)
    edges = np.arange(-reach, reach + 1) + 0.5
    shares = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]) / deviation))
    counts = np.bincount(np.searchsorted(edges, drawn), minlength=shares.size)
    assert stats.chisquare(counts, shares * drawn.size).pvalue > 1e-9


@pytest.mark.parametrize("deviation", [2.0**20 * 0.6, 2.0**33])
def test_large_deviations_are_gaussian_in_every_moment(deviation: float) -> None:
    drawn = fresh(300_000, deviation) / deviation
    assert stats.kstest(drawn, "norm").pvalue > 1e-9
    root = np.sqrt(drawn.size)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(np.mean(drawn**power) - moment) < 6 * spread / root


@settings(max_examples=150)
@given(
    words=st.lists(st.integers(0, ONES), min_size=1, max_size=20),
    deviation=st.floats(0.3, 2.0**22),
)
def test_each_word_gives_the_draw_that_exact_arithmetic_gives(
    words: list[int], deviation: float
) -> None:
    more = [2**63, 0] * len(words)  # a doubtful draw's further digits: the middle of its cell
    drawn = lattice_noise(len(words), deviation, Dealt(*words, *more))
    assert drawn.tolist() == [exact(word, deviation) for word in words]


@pytest.mark.parametrize("deviation", [5.3, 2.0**20 * 1.3, 2.0**30])
@pytest.mark.parametrize("z", [0.01, 0.7, 2.9, 4.4])
def test_a_cell_on_a_threshold_is_decided_by_further_digits(deviation: float, z: float) -> None:
    k = max(1, int(z * deviation))
    with mpmath.workprec(200):
        tail = mpmath.erfc((k + mpmath.mpf(0.5)) / (deviation * mpmath.sqrt(2))) / 2
        cell = int(mpmath.floor(tail * mpmath.mpf(2) ** 64))
    far_out = lattice_noise(1, deviation, Dealt(2 * cell, 0, 0))
    near = lattice_noise(1, deviation, Dealt(2 * cell + 1, ONES, ONES))
    assert (far_out.tolist(), near.tolist()) == ([k + 1], [-k])


def test_the_farthest_tail_has_no_end_at_63_digits() -> None:
    deviation = 2.0**20
    (farthest,) = lattice_noise(1, deviation, Dealt(0, 0, 0)).tolist()
    (nearer,) = lattice_noise(1, deviation, Dealt(0, ONES, ONES)).tolist()
    assert nearer / deviation == pytest.approx(stats.norm.isf(2.0**-64), rel=1e-7)
    assert farthest / deviation == pytest.approx(stats.norm.isf(2.0**-193), rel=1e-7)


@pytest.mark.slow
def test_scipys_quantiles_are_as_good_as_is_assumed() -> None:
    rng = np.random.default_rng(5)
    p = np.concatenate([rng.uniform(2.0**-20, 0.5, 1500), 2.0 ** -rng.uniform(1, 20, 1500)])
    with mpmath.workprec(200):
        exactly = [-mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * mpmath.mpf(x)) for x in p.tolist()]
        worst = max(
            abs(mpmath.mpf(found) - z) / abs(z)
            for found, z in zip(ndtri(p).tolist(), exactly, strict=True)
        )
    assert worst < 2.0**-48


def test_few_draws_need_exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    sound = noise._decide

    def counted(cell: int, deviation: float, stream: Stream) -> int:
        asked.append(cell)
        return sound(cell, deviation, stream)

    monkeypatch.setattr(noise, "_decide", counted)
    fresh(300_000, 2.0**20)
    assert len(asked) < 20


def test_draws_share_nothing_with_each_other() -> None:
    first, second = fresh(50_000, 2.0**20), fresh(50_000, 2.0**20)
    for x, y in ((first, second), (first[1:], first[:-1])):
        assert abs(stats.pearsonr(x, y).statistic) < 6 / np.sqrt(50_000)


def test_no_deviation_is_no_noise() -> None:
    drawn = fresh(4, 0.0)
    assert drawn.tolist() == [0, 0, 0, 0]
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("deviation", [-0.5, 2.0**41, float("nan"), float("inf")])
def test_a_deviation_out_of_reach_is_refused(deviation: float) -> None:
    with pytest.raises(InvalidInput, match="deviation must be in"):
        fresh(3, deviation)


def test_a_forked_child_cannot_repeat_its_parents_draws() -> None:
    stream = Stream(os.urandom(32))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            stream.words(1)
            os.write(write, b"drawn")
        except SelfCheckFailed:
            os.write(write, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"refused"
    os.close(read)
    os.close(write)
