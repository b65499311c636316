"""Cohorts on Ray's actors: as many as there may be, a run ends with the same adapter."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import load_adapter
from common.data.records import Record
from common.job import Job
from common.model import require_base
from common.result import read_result
from common.saved import read_adapter
from simulations import runs
from simulations.engine.ray_engine import dealt_out
from simulations.scenario import Scenario

MakeJob = Callable[..., Job]
Rows = Callable[..., list[tuple[str, str]]]
COUNTS = {"A": 30, "B": 12, "C": 21, "D": 5, "E": 17}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is in the dev extra")
def test_one_worker_two_workers_and_none_end_with_the_same_adapter(
    make_job: MakeJob, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "rehearse", lambda *_, **__: ("skipped",))
    training = {"rounds": 2, "local_steps": 2, "learning_rate": 0.2, "momentum": 0.4}
    job = make_job(data={"population": dict.fromkeys(COUNTS, 24)}, training=training)
    records = {
        site: [Record(*row) for row in rows(count, offset=50 * i)]
        for i, (site, count) in enumerate(COUNTS.items())
    }
    made = Scenario(job, records, seed=5)
    adapter = load_adapter(job, require_base(job))
    ends: list[Any] = []
    for workers in (0, 1, 2):
        work = tmp_path / str(workers)
        if workers:
            outcome = runs.on_ray(made, work, lambda *_: None, workers=workers)
        else:
            outcome = runs.stacked(made, work, lambda *_: None)
        result = read_result(outcome / "result.json")
        assert result.grid == ("ray" if workers else "stacked")
        assert not result.private
        ends.append(read_adapter(adapter, outcome / "adapter") - adapter.initial)
    for other in ends[1:]:
        assert np.linalg.norm(other - ends[0]) <= 1e-4 * np.linalg.norm(ends[0])


def test_work_is_dealt_out_evenly() -> None:
    costs = [7.0, 1.0, 5.0, 4.0, 4.0, 2.0]
    parts = dealt_out(costs, 3)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4, 5]
    assert sorted(sum(costs[i] for i in part) for part in parts) == [7.0, 8.0, 8.0]
    assert dealt_out([3.0], 2) == [[0], []]
