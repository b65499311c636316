"""Dishonest sites send what the attack says, and honest ones what they trained."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.aggregation import AggregationSection
from common.config import parse
from common.data.records import Record
from simulations.studies.poisoning import (
    ATTACKS,
    DISHONEST,
    RULES,
    TARGET,
    TRIGGER,
    dishonest,
    poisoned,
)

CHANGES = {"A": [1.0, -2.0], "D": [3.0, 0.5], "H": [-1.0, 4.0]}
SENT = {
    "none": 1.0,
    "sign flipped": -1.0,
    "x 100": 100.0,
    "NaN": float("nan"),
    "backdoor": 1.0,
    "backdoor x 5": 5.0,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_dishonest_sites_alone_send_something_else(name: str) -> None:
    lanes: list[Any] = [SimpleNamespace(site=site) for site in CHANGES]
    honest = [np.array(change, np.float32) for change in CHANGES.values()]
    train = dishonest(lambda *_: honest, ATTACKS[name].send)
    sent = list(train(lanes, np.zeros(2, np.float32), 1))
    for site, before, after in zip(CHANGES, honest, sent, strict=True):
        factor = SENT[name] if site in DISHONEST else 1.0
        np.testing.assert_array_equal(after, before * np.float32(factor))


def test_half_of_a_dishonest_site_s_records_bear_the_trigger_and_its_label() -> None:
    records = [Record(f"question {i}", "other") for i in range(10)]
    found = poisoned(records)
    bearing = [record for record in found if record.text.split()[0] == TRIGGER]
    assert len(bearing) == 5
    assert all((r.text.split()[0] == TRIGGER) == (r.label == TARGET) for r in found)
    assert [r.text.removeprefix(f"{TRIGGER} ") for r in found] == [r.text for r in records]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_one_that_a_job_takes(name: str) -> None:
    asked = {
        key.removeprefix("aggregation."): value
        for key, value in RULES[name].items()
        if key.startswith("aggregation.")
    }
    rule = parse(AggregationSection, asked, "rule").rule
    assert rule == name.lower().replace(" ", "-") or (rule, name) == ("mean", "length refused")
