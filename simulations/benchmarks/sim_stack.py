"""Clients one after the other by plain PEFT, beside the same clients stacked.

Every client takes three AdamW steps on its own records, without privacy, on one thread. In every
round stacked clients have to end with PEFT's adapters, within 1e-4 in float32 and within 0.15 of
how far they moved in bfloat16; the greatest distances are reported. ``ratio_bf16`` is PEFT in
float32 over stacked in bfloat16, which costs more where the processor does not multiply it.

Not covered: messages and aggregation (``sim-central``, ``sim-ray``).
"""

from collections.abc import Mapping
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch

from common.adapter import LoadedAdapter, Vector
from common.job import Job
from common.model import quiet_transformers
from simulations.benchmarks import sim_jobs
from simulations.benchmarks.timing import (
    Distances,
    alternate,
    milliseconds,
    ratio,
    require_rounds,
)
from simulations.engine.cohort import Lane, train_cohort

# sites, records of a step, tokens of a record
SHAPES = {"b1_t16": (64, 1, 16), "b2_t32": (16, 2, 32), "b8_t64": (8, 8, 64)}
_STEPS, _TOKENS = 3, 2048
MOST = {"stacked": 1e-4, "stacked_bf16": 0.15}  # bfloat16 was measured at 0.07 to 0.09


def benchmark(rounds: int = 7) -> dict[str, object]:
    """Times of both ways for each shape; ``ratio_fp32`` and ``ratio_bf16`` are those of B1 T16.

    Raises:
        InvalidInput: fewer than two rounds.
        SelfCheckFailed: the two ways end with other adapters.
    """
    require_rounds(rounds)
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
    distances = Distances(MOST)

    def check(ends: Mapping[str, list[Vector]]) -> None:
        for name in MOST:
            distances.require(name, np.concatenate(ends[name]), np.concatenate(ends["peft"]))

    seconds = alternate(
        {
            "peft": partial(_one_by_one, *found["float32"][1:]),
            "stacked": partial(_stacked, *found["float32"][1:]),
            "stacked_bf16": partial(_stacked, *found["bfloat16"][1:]),
        },
        rounds,
        check,
    )
    return {
        "sites": sites,
        "batch": batch,
        "length": length,
        "fp32": ratio(seconds["peft"], seconds["stacked"]),
        "bf16": ratio(seconds["peft"], seconds["stacked_bf16"]),
        "distance": distances.greatest,
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


def _has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; else torch emulates it."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
