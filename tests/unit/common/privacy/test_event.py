import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from common.privacy import event
from common.privacy.event import MOST_STEPS, GaussianSteps, merged, noise_slack, usable_delta

mechanisms = st.builds(
    GaussianSteps,
    st.sampled_from([0.02, 0.3, 1.0]),
    st.sampled_from([0.0, 0.7, 2.5]),
    st.integers(0, 40),
)


@given(st.lists(mechanisms, max_size=12))
def test_merging_keeps_every_step_and_forgets_the_order(
    events: list[GaussianSteps],
) -> None:
    found = merged(events)
    assert found == merged(reversed(events)) == merged(found)
    assert sum(one.steps for one in found) == sum(one.steps for one in events)
    assert len({(one.sampling_rate, one.noise_multiplier) for one in found}) == len(found)
    assert all(one.steps > 0 for one in found)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (GaussianSteps(0.0, 1.3, 0), "sampling_rate must be in"),
        (GaussianSteps(1.01, 1.3, 2), "sampling_rate must be in"),
        (GaussianSteps(math.nan, 1.3, 2), "sampling_rate must be in"),
        (GaussianSteps(0.1, -0.1, 2), "noise_multiplier must be"),
        (GaussianSteps(0.1, math.nan, 2), "noise_multiplier must be"),
        (GaussianSteps(0.1, math.inf, 2), "noise_multiplier must be"),
        (GaussianSteps(0.1, 1.3, -1), "steps must be at least 0, got -1"),
        (GaussianSteps(0.1, 1.3, MOST_STEPS + 1), f"steps must be at most {MOST_STEPS}"),
    ],
)
def test_what_is_no_mechanism_is_refused_beside_good_ones(
    bad: GaussianSteps, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        merged([GaussianSteps(0.2, 1.7, 3), bad])


def test_the_edges_of_the_range_are_in_it() -> None:
    assert merged([GaussianSteps(1.0, 0.0, MOST_STEPS)]) == (GaussianSteps(1.0, 0.0, MOST_STEPS),)


def test_the_noise_generator_takes_its_share_of_delta_first() -> None:
    # 2^-128 a coordinate, 2^64 coordinates, seven steps.
    assert noise_slack(7) == 7 * 2.0**64 * 2.0**-128
    assert usable_delta(2.0**-50, 2**10) == 2.0**-50 - 2.0**-54
    assert usable_delta(0.25, 0) == 0.25


@pytest.mark.parametrize(
    ("delta", "steps", "complaint"),
    [
        (0.0, 1, r"in \(0, 1\), got 0.0"),
        (1.0, 1, r"in \(0, 1\), got 1.0"),
        (math.nan, 1, r"in \(0, 1\), got nan"),
        (2.0**-60, 16, "more than the"),
        (2.0**-61, 16, "more than the"),
    ],
)
def test_no_delta_is_left_below_the_generators_share(
    delta: float, steps: int, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=f"delta must be {complaint}"):
        usable_delta(delta, steps)


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(event).failed == 0
