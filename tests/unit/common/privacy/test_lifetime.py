import doctest
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from common.errors import InvalidInput
from common.privacy import accounting, lifetime
from common.privacy.accounting import GaussianSteps
from common.privacy.lifetime import LifetimeCap, PldSchedule, cap_from_dict, cap_to_dict
from common.privacy.rdp_filter import RdpFilter

FIRST, SECOND, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
SCHEDULE = PldSchedule((FIRST, SECOND), 2.5, 1e-6)
FILTER = RdpFilter(6.5, 3.25, 1e-5)


def test_a_schedule_covers_its_own_jobs_alone_and_a_filter_any() -> None:
    assert [SCHEDULE.covers(job) for job in (FIRST, SECOND, THIRD)] == [True, True, False]
    assert FILTER.covers(THIRD)
    assert SCHEDULE.name == "pld-schedule of 2 jobs"
    assert PldSchedule((THIRD,), 2.5, 1e-6).name == "pld-schedule of 1 job"


def test_a_schedule_allows_up_to_its_cap_by_pld_at_its_delta() -> None:
    job = GaussianSteps(0.02, 1.3, 400)
    cost = accounting.epsilon([job, job], 1e-6)
    for cap, allowed in ((cost, True), (cost * 0.999, False)):
        schedule = PldSchedule((FIRST,), cap, 1e-6)
        assert schedule.epsilon([job, job]) == cost
        assert schedule.allows([job, job]) is allowed


def test_a_schedule_of_the_same_cap_admits_what_a_filter_does_not() -> None:
    noise = accounting.calibrate(epsilon=3.0, delta=1e-5, sampling_rate=0.01, steps=3000)
    events = [GaussianSteps(0.01, noise, 3000)]
    caps: list[LifetimeCap] = [PldSchedule((FIRST,), 3.0, 1e-5), RdpFilter.for_cap(3.0, 1e-5)]
    assert [cap.allows(events) for cap in caps] == [True, False]
    assert caps[0].epsilon(events) < 3.0 < caps[1].epsilon(events)


@pytest.mark.parametrize("cap", [SCHEDULE, FILTER, replace(SCHEDULE, max_epsilon=0.5)])
def test_what_a_ledger_stored_comes_back(cap: RdpFilter | PldSchedule) -> None:
    stored = json.loads(json.dumps(cap_to_dict(cap), allow_nan=False))
    assert cap_from_dict(stored) == cap


FILTER_ROW = {"kind": "rdp-filter", "order": 6.5, "epsilon": 3.25, "delta": 1e-5}
SCHEDULE_ROW = {"kind": "pld-schedule", "jobs": [FIRST, SECOND], "epsilon": 2.5, "delta": 1e-6}


def test_the_stored_form_is_this_one() -> None:
    assert cap_to_dict(FILTER) == FILTER_ROW
    assert cap_to_dict(SCHEDULE) == SCHEDULE_ROW


@pytest.mark.parametrize(
    ("row", "change", "complaint"),
    [
        (FILTER_ROW, {"kind": "pld"}, "kind must be .*, got 'pld'"),
        (FILTER_ROW, {"kind": None}, "kind must be"),
        (FILTER_ROW, {"orders": 3}, "cap must hold kind, order, epsilon and delta"),
        (FILTER_ROW, {"order": "6.5"}, "order must be a number, got '6.5'"),
        (FILTER_ROW, {"epsilon": True}, "epsilon must be a number, got True"),
        (FILTER_ROW, {"delta": None}, "delta must be a number"),
        (FILTER_ROW, {"delta": 1.5}, "delta must be in"),
        (SCHEDULE_ROW, {"jobs": FIRST}, "jobs must be a list"),
        (SCHEDULE_ROW, {"jobs": [3]}, "jobs must be a list"),
        (SCHEDULE_ROW, {"jobs": []}, "jobs must be one or more"),
        (SCHEDULE_ROW, {"jobs": [FIRST, FIRST]}, "jobs must be one or more, each once"),
        (SCHEDULE_ROW, {"jobs": [FIRST, "AB" * 32]}, "jobs must be SHA-256"),
        (SCHEDULE_ROW, {"jobs": [FIRST + "\n"]}, "jobs must be SHA-256"),
        (SCHEDULE_ROW, {"epsilon": 0}, "epsilon must be in"),
        (SCHEDULE_ROW, {"epsilon": math.inf}, "epsilon must be in"),
        (SCHEDULE_ROW, {"delta": 2.0**-41}, "delta must be more than"),
    ],
)
def test_a_row_that_is_no_cap_is_refused(
    row: dict[str, Any], change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        cap_from_dict(row | change)


@pytest.mark.parametrize("key", ["kind", "order", "epsilon", "delta"])
def test_a_row_with_a_key_missing_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="must"):
        cap_from_dict({name: value for name, value in FILTER_ROW.items() if name != key})


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(lifetime).failed == 0
