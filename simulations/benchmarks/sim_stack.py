"""Clients one after the other by plain PEFT, beside the same clients stacked.

Every client takes three AdamW steps on its own records, without privacy, on one thread. In each
round both ways end with the same adapters, within 1e-4 in float32; in bfloat16 the distance is
reported. ``ratio_bf16`` is PEFT in float32 over stacked in bfloat16.

Not covered: messages and aggregation (``sim-central``, ``sim-ray``).
"""

from importlib import metadata
from typing import Any

import numpy as np
import torch

from common.adapter import LoadedAdapter, Vector
from common.job import Job
from common.model import quiet_transformers
from simulations.benchmarks import sim_jobs
from simulations.benchmarks.timing import alternate, milliseconds, ratio, require_close
from simulations.engine.cohort import Lane, train_cohort

# sites, records of a step, tokens of a record
SHAPES = {"b1_t16": (64, 1, 16), "b2_t32": (16, 2, 32), "b8_t64": (8, 8, 64)}
_STEPS, _TOKENS = 3, 2048
_FLOAT32, _BFLOAT16 = 1e-4, 0.5


def benchmark(rounds: int = 7) -> dict[str, object]:
    """Times of both ways for each shape; ``ratio_fp32`` and ``ratio_bf16`` are those of B1 T16.

    Raises:
        SelfCheckFailed: the two ways end with other adapters.
    """
    quiet_transformers()
    torch.set_num_threads(1)
    shapes = {name: _measure(*shape, rounds) for name, shape in SHAPES.items()}
    first = shapes["b1_t16"]
    return {
        "ratio_fp32": first["fp32"]["ratio"],
        "ratio_bf16": first["bf16"]["ratio"],
        "shapes": shapes,
        "steps": _STEPS,
        "rounds": rounds,
        "has_bf16_products": _has_bf16(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def _measure(sites: int, batch: int, length: int, rounds: int) -> dict[str, Any]:
    found: dict[str, tuple[Job, LoadedAdapter, list[Any]]] = {}
    for dtype in ("float32", "bfloat16"):
        job = sim_jobs.make_job(sites, batch, length, dtype=dtype, local_steps=_STEPS)
        adapter = sim_jobs.load(job)
        records = sim_jobs.make_records(sites, batch, length)
        found[dtype] = job, adapter, sim_jobs.make_trainers(job, adapter, records)
    ends: dict[str, list[Vector]] = {}
    seconds = alternate(
        {
            "peft": lambda: ends.update(peft=_one_by_one(*found["float32"][1:])),
            "stacked": lambda: ends.update(stacked=_stacked(*found["float32"][1:])),
            "stacked_bf16": lambda: ends.update(stacked_bf16=_stacked(*found["bfloat16"][1:])),
        },
        rounds,
    )
    distance = {
        name: _distance(name, ends[name], ends["peft"], most)
        for name, most in (("stacked", _FLOAT32), ("stacked_bf16", _BFLOAT16))
    }
    return {
        "sites": sites,
        "batch": batch,
        "length": length,
        "fp32": ratio(seconds["peft"], seconds["stacked"]) | {"distance": distance["stacked"]},
        "bf16": ratio(seconds["peft"], seconds["stacked_bf16"])
        | {"distance": distance["stacked_bf16"]},
        "site_step": milliseconds(seconds, sites * _STEPS),
    }


def _one_by_one(adapter: LoadedAdapter, trainers: list[Any]) -> list[Vector]:
    return [
        sim_jobs.train_plainly(adapter, adapter.initial, [u[0] for u in trainer.units], _STEPS)
        for trainer in trainers
    ]


def _stacked(adapter: LoadedAdapter, trainers: list[Any]) -> list[Vector]:
    lanes = [Lane(trainer) for trainer in trainers]
    return train_cohort(lanes, adapter.initial, 1, tokens=_TOKENS)


def _distance(name: str, found: list[Vector], expected: list[Vector], most: float) -> float:
    return require_close(name, np.concatenate(found), np.concatenate(expected), most)


def _has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; else torch emulates it."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
