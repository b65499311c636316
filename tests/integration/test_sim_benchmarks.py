"""The benchmarks of simulations on shapes of a few sites: they run, and a wrong end stops them."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Vector
from common.errors import SelfCheckFailed
from simulations import runs
from simulations.benchmarks import (
    scale,
    sim_central,
    sim_dp,
    sim_jobs,
    sim_ray,
    sim_ray_run,
    sim_stack,
)
from simulations.engine.cohort import train_cohort
from simulations.engine.engine import Engine

pytestmark = pytest.mark.slow


def spoilt_at(call: int, train: Callable[..., list[Vector]]) -> Callable[..., list[Vector]]:
    """``train``, whose changes of one call are a fifth too long."""
    calls = iter(range(1, 100))

    def train_or_not(*args: Any, **more: Any) -> list[Vector]:  # noqa: ANN401
        factor = np.float32(1.2 if next(calls) == call else 1.0)
        return [factor * change for change in train(*args, **more)]

    return train_or_not


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_stack, "SHAPES", {"b1_t16": (3, 1, 16)})
    monkeypatch.setattr(sim_dp, "SHAPES", {"b8": (2, 2, 16), "b1": (3, 1, 16)})
    for name, value in (("SITES", 2), ("BATCH", 2), ("LENGTH", 16)):
        monkeypatch.setattr(sim_central, name, value)
    monkeypatch.setattr(scale, "SIZES", (2, 3, 5))
    monkeypatch.setattr(scale, "_ROUNDS", {2: 3, 3: 2, 5: 1})
    # Else it is measured which batch is fastest here, and kept in the user's cache.
    monkeypatch.setattr(runs, "Engine", lambda: Engine(tokens=256))


def test_stacked_clients_end_with_pefts_adapters_in_every_round(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = sim_stack.benchmark(2)
    json.dumps(found)
    shape = found["shapes"]["b1_t16"]
    assert found["ratio_fp32"] == shape["fp32"]["ratio"] > 0
    assert {name: len(own["ms"]) for name, own in shape["site_step"].items()} == {
        "peft": 2, "stacked": 2, "stacked_bf16": 2,
    }  # fmt: skip
    assert 0 < shape["distance"]["stacked"] <= 1e-4 < shape["distance"]["stacked_bf16"] <= 0.15
    # In the second round of three, float32 and then bfloat16.
    for call, name in ((3, "stacked"), (4, "stacked_bf16")):
        monkeypatch.setattr(sim_stack, "train_cohort", spoilt_at(call, train_cohort))
        with pytest.raises(SelfCheckFailed, match=f"^{name} must be within"):
            sim_stack.benchmark(2)


def test_private_sites_end_where_each_would_by_itself_in_every_round(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = sim_dp.benchmark(2)
    json.dumps(found)
    for shape in found["shapes"].values():
        assert set(shape["distance"]) == {"plain", "private", "noiseless"}
        assert 0 < max(shape["distance"].values()) <= 1e-4
        assert len(shape["site_step"]["private"]["ms"]) == 2
    for call, name in ((4, "plain"), (5, "private"), (6, "noiseless")):
        monkeypatch.setattr(sim_dp, "train_cohort", spoilt_at(call, train_cohort))
        with pytest.raises(SelfCheckFailed, match=f"^{name} must be within"):
            sim_dp.benchmark(2)


def test_a_simulation_ends_with_the_central_adapter_in_every_round(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = sim_central.benchmark(2)
    json.dumps(found)
    assert found["ratio_1_step"] == found["shapes"]["steps_1"]["ratio"]
    assert found["shapes"]["steps_1"]["distance"] <= 1e-3
    central, calls = sim_central._central, iter(range(1, 100))

    def other(*args: Any) -> Vector:  # noqa: ANN401
        change: Vector = central(*args) * np.float32(1.5 if next(calls) == 2 else 1.0)
        return change

    monkeypatch.setattr(sim_central, "_central", other)
    with pytest.raises(SelfCheckFailed, match=r"^federated must be within"):
        sim_central.benchmark(2)
    assert next(calls) == 3


def test_a_site_step_is_timed_in_federations_of_every_size(small: None) -> None:
    found: dict[str, Any] = scale.benchmark()
    json.dumps(found)
    assert {size: len(one["ms"]) for size, one in found["sites"].items()} == {
        "2": 3,
        "3": 2,
        "5": 1,
    }
    assert found["flatness"] >= found["flatness_from_64"] >= 1


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is in the dev extra")
def test_flowers_simulation_and_ours_end_with_the_mean_of_the_clients(
    small: None, tmp_path: Path
) -> None:
    """The oracle is plain PEFT, a client after the other."""
    shape, out = (2, 2, 16), tmp_path / "change"
    adapter = sim_jobs.load(sim_jobs.make_job(*shape))
    changes = [
        sim_jobs.train_plainly(adapter, adapter.initial, examples, sim_ray_run.STEPS)
        for examples in sim_jobs.make_examples(*shape)
    ]
    expected = np.mean(changes, axis=0)
    assert sim_ray_run.main(["stacked", str(out), "2", "1", "2", "16"]) == 0
    # As the benchmark starts it: a process whose actors have to find all that a client calls.
    stock = sim_ray.run(sim_ray.ray_kinds()[-1], (2, 1, 2, 16))
    for change in (np.frombuffer(out.read_bytes(), "<f4"), stock.change):
        assert np.linalg.norm(change - expected) <= 1e-4 * np.linalg.norm(expected)
    assert min(stock.cpu_s, stock.wall_s, stock.peak_mib) > 0
