"""Cohorts on Ray's actors: as many as there may be, a run ends with the same adapter."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.adapter import load_adapter
from common.data.records import Record
from common.errors import JobRefused, LinkDown
from common.job import Job, sign_job
from common.model import require_base
from common.result import read_result
from common.saved import read_adapter
from simulations import runs
from simulations.engine.cohort import Lane
from simulations.engine.engine import Engine
from simulations.engine.ray_engine import RayEngine, Worker, dealt_out
from simulations.engine.site import SimulatedSite
from simulations.scenario import Scenario
from simulations.seeded import seeded_keys

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


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is in the dev extra")
def test_a_worker_takes_each_sites_steps_and_its_errors_are_one_line(
    make_job: MakeJob, rows: Rows
) -> None:
    job = make_job(data={"population": dict.fromkeys(COUNTS, 24)}, training={"local_steps": 2})
    records = {site: [Record(*row) for row in rows(n)] for site, n in COUNTS.items()}
    signed = sign_job(job, Ed25519PrivateKey.generate())
    adapter = load_adapter(job, require_base(job))
    lanes = [
        Lane(SimulatedSite(s, signed, adapter, own, seeded_keys(5, s)).consider(), steps, s)
        for (s, own), steps in zip(records.items(), (1, None, 3, 2, 1), strict=True)
    ]
    expected = list(Engine(tokens=2048).train(lanes, adapter.initial, 1))
    model = job.model.model_copy(update={"sha256": "ab" * 32})
    other = sign_job(job.model_copy(update={"model": model}), Ed25519PrivateKey.generate())
    with RayEngine(signed, records, 5, workers=2) as engine:
        for change, alone in zip(engine.train(lanes, adapter.initial, 1), expected, strict=True):
            assert np.linalg.norm(change - alone) <= 1e-4 * np.linalg.norm(alone)
        ray = engine._ray
        sharing = [a.__ray_call__.remote(lambda self: self.sharing) for a in engine._actors]
        assert ray.get(sharing) == [2, 2]
        ray.kill(engine._actors[0])
        with pytest.raises(LinkDown) as lost:
            list(engine.train(lanes, adapter.initial, 1))
        assert str(lost.value) == (
            "ray workers must all be there until a run ends, got ActorDiedError"
        )
    with RayEngine(other, records, 5, workers=1) as engine, pytest.raises(JobRefused) as caught:
        list(engine.train(lanes, adapter.initial, 1))
    assert type(caught.value) is JobRefused  # not Ray's class of both
    assert str(caught.value).startswith("model.sha256 must be")
    assert "\n" not in str(caught.value)


def test_a_worker_trains_each_site_for_its_steps(make_job: MakeJob, rows: Rows) -> None:
    """As a worker without Ray, against sites that train one by one."""
    job = make_job(data={"population": dict.fromkeys(COUNTS, 24)}, training={"local_steps": 2})
    records = {site: [Record(*row) for row in rows(n)] for site, n in COUNTS.items()}
    signed = sign_job(job, Ed25519PrivateKey.generate())
    worker = Worker(signed.to_bytes(), records, 5)
    assert records["A"][0].text not in repr(worker)  # which Ray logs
    adapter = load_adapter(job, require_base(job))
    asked = list(zip(COUNTS, (1, None, 3, 2, 4), strict=True))
    for (site, steps), change in zip(asked, worker.train(asked, adapter.initial, 1), strict=True):
        own = SimulatedSite(site, signed, adapter, records[site], seeded_keys(5, site)).consider()
        training = job.training.model_copy(update={"local_steps": steps or 2})
        alone = replace(own, job=job.model_copy(update={"training": training}))
        expected = alone.train_round(adapter.initial, 1)
        assert np.linalg.norm(change - expected) <= 1e-4 * np.linalg.norm(expected)


def test_work_is_dealt_out_evenly() -> None:
    costs = [7.0, 1.0, 5.0, 4.0, 4.0, 2.0]
    parts = dealt_out(costs, 3)
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4, 5]
    assert sorted(sum(costs[i] for i in part) for part in parts) == [7.0, 8.0, 8.0]
    assert dealt_out([3.0], 2) == [[0], []]
