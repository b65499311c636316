"""Stacked sites with privacy, beside the same sites without: what clipping and noise cost there.

Every site takes three steps of SGD with momentum on its own records, on one thread. ``private``
clips each record, adds each site's own lattice noise and divides; ``noiseless`` does the same
without noise, as ``dp-step`` does, since any private way needs noise alike. Noise is drawn a number
at a time from AES words, so that it weighs the more the smaller the step is beside the adapter.

In every round ``noiseless`` with a clip norm that clips nothing ends where ``plain`` does.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from common.adapter import Vector
from common.model import quiet_transformers
from simulations.benchmarks import sim_jobs
from simulations.benchmarks.timing import alternate, milliseconds, ratio, require_close
from simulations.engine.cohort import Lane, train_cohort

SHAPES = {"b8": (8, 8, 64), "b1": (64, 1, 16)}
_STEPS, _TOKENS = 3, 2048
_SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
_UNCLIPPED, _CLOSE = 64.0, 0.01  # of that the lattice of so large a norm takes 0.003


def benchmark(rounds: int = 9) -> dict[str, object]:
    """Times and ratios to ``plain`` at B8 T64 and B1 T16.

    Raises:
        SelfCheckFailed: what is not clipped ends elsewhere.
    """
    quiet_transformers()
    torch.set_num_threads(1)
    shapes = {name: _measure(*shape, rounds) for name, shape in SHAPES.items()}
    return {
        "ratio_b8": shapes["b8"]["private"]["ratio"],
        "ratio_b1": shapes["b1"]["private"]["ratio"],
        "ratio_b8_noiseless": shapes["b8"]["noiseless"]["ratio"],
        "ratio_b1_noiseless": shapes["b1"]["noiseless"]["ratio"],
        "shapes": shapes,
        "steps": _STEPS,
        "rounds": rounds,
    }


def _measure(sites: int, batch: int, length: int, rounds: int) -> dict[str, Any]:
    records = sim_jobs.make_records(sites, batch, length)
    plain_job = sim_jobs.make_job(sites, batch, length, local_steps=_STEPS, **_SGD)
    adapter = sim_jobs.load(plain_job)
    plain = sim_jobs.make_trainers(plain_job, adapter, records)
    job = sim_jobs.make_job(
        sites, batch, length, local_steps=_STEPS, privacy=sim_jobs.PRIVATE, **_SGD
    )
    private = sim_jobs.make_trainers(job, adapter, records)
    silent = [
        replace(one, mechanism=replace(one.mechanism, noise_multiplier=0.0)) for one in private
    ]
    unclipped = [
        replace(one, mechanism=replace(one.mechanism, clip_norm=_UNCLIPPED)) for one in silent
    ]

    def run(trainers: list[Any]) -> list[Vector]:
        lanes = [Lane(one) for one in trainers]
        return train_cohort(lanes, adapter.initial, 1, tokens=_TOKENS)

    variants = {"plain": plain, "private": private, "noiseless": silent}
    seconds = alternate({name: partial(run, those) for name, those in variants.items()}, rounds)
    ends = np.concatenate(run(unclipped)), np.concatenate(run(plain))
    return {
        "sites": sites,
        "batch": batch,
        "length": length,
        "numbers": adapter.table.size,
        "noise_multiplier": job.noise_multiplier,
        "distance_unclipped": require_close("unclipped adapters", *ends, _CLOSE),
        "private": ratio(seconds["private"], seconds["plain"]),
        "noiseless": ratio(seconds["noiseless"], seconds["plain"]),
        "site_step": milliseconds(seconds, sites * _STEPS),
    }
