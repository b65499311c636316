"""Oracles: scikit-learn's ROC, counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from common.audit import membership
from common.audit.membership import Floats
from common.errors import InvalidInput


@given(seed=st.integers(0, 10_000), ties=st.booleans())
def test_the_area_is_scikit_learns(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    members, others = rng.normal(0.7, 1.3, 70), rng.normal(0, 1, 110)
    if ties:
        members, others = members.round(), others.round()
    found = membership.reached("loss", members, others)
    truth = np.r_[np.ones(70), np.zeros(110)]
    assert found.auc == pytest.approx(roc_auc_score(truth, np.r_[members, others]))


def test_rates_count_members_above_all_but_so_many_others() -> None:
    others = np.arange(2000.0)
    members = np.array([1998.5, 1997.5, 1990.0, 1979.5, 1978.5, 3.0])
    strict, loose = membership.reached("rmia", members, others).rates
    # Two of 2000 may be above: those of score 1998 and 1999. Twenty: 1980 and more.
    assert (strict.false_positives, strict.found) == (0.001, 2 / 6)
    assert (loose.false_positives, loose.found) == (0.01, 4 / 6)
    exact = binomtest(4, 6).proportion_ci(0.95, "exact")
    assert (loose.low, loose.high) == pytest.approx(tuple(exact))


def test_one_false_alarm_of_a_thousand_may_be_half_a_percent_of_all() -> None:
    strict, loose = membership.reached("loss", np.zeros(50), np.arange(1000.0)).rates
    for rate, alarms in ((strict, 1), (loose, 10)):
        exact = binomtest(alarms, 1000).proportion_ci(0.95, "exact")
        found = (rate.false_positives_low, rate.false_positives_high)
        assert found == pytest.approx(tuple(exact))
    assert strict.false_positives_high > 0.005


def test_the_rate_among_all_others_is_in_its_interval_though_some_of_them_chose_it() -> None:
    rng, missed = np.random.default_rng(3), np.zeros(2)
    for _ in range(400):
        others = rng.uniform(size=1000)
        for place, rate in enumerate(membership.reached("loss", np.ones(1), others).rates):
            # Of uniform scores the share above the threshold is known.
            truth = 1 - np.sort(others)[-round(1000 * rate.false_positives) - 1]
            missed[place] += not rate.false_positives_low <= truth <= rate.false_positives_high
    assert (missed / 400).max() <= 0.05


def test_scores_that_tie_with_the_threshold_find_nobody() -> None:
    for rate in membership.reached("loss", np.zeros(50), np.zeros(1000)).rates:
        assert rate.found == rate.false_positives_low == 0
        assert rate.false_positives_high > rate.false_positives


def test_a_rate_that_others_are_too_few_for_is_left_out() -> None:
    rates = membership.reached("loss", np.ones(10), np.zeros(999)).rates
    assert [rate.false_positives for rate in rates] == [0.01]


def test_nobody_to_tell_apart_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 1 each"):
        membership.reached("loss", np.ones(0), np.ones(3))


def by_definition(target: Floats, refs: Floats, others: Floats, other_refs: Floats) -> Floats:
    """Zarifzadeh et al., equation 2 with the offline prior of their section 3.2, in a loop."""
    a, scores = membership.OFFLINE, []
    for x in range(target.size):
        prior = 0.5 * ((1 + a) * np.mean([np.exp(-r[x]) for r in refs]) + 1 - a)
        mine, beaten = np.exp(-target[x]) / prior, 0
        for z in range(others.size):
            prior = 0.5 * ((1 + a) * np.mean([np.exp(-r[z]) for r in other_refs]) + 1 - a)
            beaten += mine / (np.exp(-others[z]) / prior) > membership.GAMMA
        scores.append(beaten / others.size)
    return np.array(scores)


def test_rmia_is_that_of_its_paper() -> None:
    rng = np.random.default_rng(5)
    target, refs = rng.exponential(1, 40), rng.exponential(1, (3, 40))
    others, other_refs = rng.exponential(1, 60), rng.exponential(1, (3, 60))
    found = membership.rmia(target, refs, others, other_refs)
    assert found == pytest.approx(by_definition(target, refs, others, other_refs), abs=1e-7)


def test_rmia_finds_a_record_that_only_the_audited_adapter_knows() -> None:
    target, refs = np.array([0.1, 2.0]), np.array([[2.0, 2.0]])
    others, other_refs = np.full(9, 1.5), np.full((1, 9), 1.5)
    known, unknown = membership.rmia(target, refs, others, other_refs)
    assert known > 0.9 > 0.1 > unknown
