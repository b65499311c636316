"""Dishonest sites send what the attack says, and honest ones what they trained."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from common import messages
from common.aggregation import AggregationSection
from common.config import parse
from common.data.records import Record
from common.errors import UpdateRejected
from common.flower import become_server
from common.job import Job
from common.layout import AdapterTable, TensorSpec
from common.link.identity import node_id
from common.privacy.ledger import Head
from simulations.grids import LocalGrid
from simulations.scenario import Scenario
from simulations.studies import poisoning
from simulations.studies.poisoning import (
    ATTACKS,
    DISHONEST,
    RULES,
    TARGET,
    TRIGGER,
    DishonestGrid,
    Outcome,
    poisoned,
    run_name,
)

HEAD = Head(7, "ab" * 32, "cd" * 72, "ef" * 91)
TABLE = AdapterTable((TensorSpec("head", (2,)),))

CHANGES = {"A": [1.0, -2.0], "D": [3.0, 0.5], "H": [-1.0, 4.0]}
SENT = {
    "none": 1.0,
    "sign flipped": -1.0,
    "x 100": 100.0,
    "NaN": float("nan"),
    "backdoor": 1.0,
    "backdoor x 5": 5.0,
}


def scenario(job: Job, text: str = "w1 w2") -> Scenario:
    return Scenario(job, {site: [Record(text, "surgery")] for site in job.sites}, seed=0)


def test_a_finished_run_stands_for_the_same_attack_job_and_records_alone(
    plain_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = scenario(plain_job())
    others = [
        ("x 100", scenario(plain_job())),
        ("none", scenario(plain_job(training={"learning_rate": 0.4}))),
        ("none", scenario(plain_job(), "w3")),
    ]
    kept = tmp_path / run_name("none", "mean", made)
    kept.mkdir()
    found = Outcome("none", "mean", 0.625, 0.25)
    (kept / "poisoning.json").write_text(json.dumps(asdict(found)))

    def stopped(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.runs.stacked", stopped)
    monkeypatch.setattr(poisoning, "_scenario", lambda attack, rule: made)
    assert poisoning._once("none", "mean", tmp_path, lambda *_: None) == found
    for attack, other in others:
        monkeypatch.setattr(poisoning, "_scenario", lambda *_, other=other: other)
        with pytest.raises(KeyboardInterrupt):
            poisoning._once(attack, "mean", tmp_path, lambda *_: None)


class Replies(LocalGrid):
    """A grid that has these replies ready."""

    def __init__(self, replies: list[Message]) -> None:
        super().__init__()
        self._ready = replies

    def get_node_ids(self) -> Iterable[int]:
        return [reply.metadata.src_node_id for reply in self._ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        yield from self._ready


def reply_of(job: Job, site: str, change: list[float]) -> Message:
    """An honest site's update."""
    become_server()
    made = messages.Update(np.array(change, np.float32), 1, "ab" * 32, 2, 2, HEAD)
    asked = Message(RecordDict(), dst_node_id=node_id(site), message_type="train", group_id="1")
    return Message(messages.update(job, TABLE, made), reply_to=asked)


@pytest.mark.parametrize("name", ATTACKS)
def test_dishonest_sites_alone_send_something_else(make_job: Callable[..., Job], name: str) -> None:
    job = make_job()
    grid = DishonestGrid(
        Replies([reply_of(job, *one) for one in CHANGES.items()]), ATTACKS[name].send
    )
    for (site, change), reply in zip(CHANGES.items(), grid.send_and_receive([]), strict=True):
        factor = SENT[name] if site in DISHONEST else 1.0
        if np.isnan(factor):
            with pytest.raises(UpdateRejected, match="adapter must be finite, got 2 of 2 not"):
                messages.read_update(reply.content, job, TABLE)
        else:
            sent = messages.read_update(reply.content, job, TABLE).vector
            np.testing.assert_array_equal(sent, np.float32(factor) * np.array(change, np.float32))


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
