"""Stacked sites with privacy, beside the same sites without: what clipping and noise cost there.

Every site takes three steps of SGD with momentum on its own records, on one thread. ``private``
clips each record, adds each site's own lattice noise and divides; ``noiseless`` does the same
without noise, as ``dp-step`` does, since any private way needs noise alike. Noise is drawn a number
at a time from AES words, so that it weighs the more the smaller the step is beside the adapter.

In every round each variant has to end within 1e-4 of what the sites' own trainers make one after
the other (client/train.py) from the same keys, noise included. Once, ``noiseless`` under a clip
norm that clips nothing has to end where ``plain`` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from client.train import Trainer
from common.adapter import Vector
from common.model import quiet_transformers
from simulations.benchmarks import sim_jobs
from simulations.benchmarks.timing import (
    Distances,
    alternate,
    milliseconds,
    ratio,
    require_close,
    require_rounds,
)
from simulations.engine.cohort import Lane, train_cohort

SHAPES = {"b8": (8, 8, 64), "b1": (64, 1, 16)}
_STEPS, _TOKENS = 3, 2048
_SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9}
_UNCLIPPED, _CLOSE = 64.0, 0.01  # of that the lattice of so large a norm takes 0.003
_SEQUENTIAL = 1e-4


def benchmark(rounds: int = 9) -> dict[str, object]:
    """Times and ratios to ``plain`` at B8 T64 and B1 T16.

    Raises:
        InvalidInput: fewer than two rounds.
        SelfCheckFailed: a variant ends elsewhere than its sites by themselves, or what is not
            clipped elsewhere than without privacy.
    """
    require_rounds(rounds)
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

    variants = {"plain": plain, "private": private, "noiseless": silent}
    expected = {name: _one_by_one(those) for name, those in variants.items()}
    distances = Distances(dict.fromkeys(variants, _SEQUENTIAL))

    def check(ends: Mapping[str, Vector]) -> None:
        for name, end in ends.items():
            distances.require(name, end, expected[name])

    acts = {name: partial(_stacked, those) for name, those in variants.items()}
    seconds = alternate(acts, rounds, check)
    return {
        "sites": sites,
        "batch": batch,
        "length": length,
        "numbers": adapter.table.size,
        "noise_multiplier": job.noise_multiplier,
        "distance": distances.greatest,
        "distance_unclipped": require_close(
            "unclipped adapters", _stacked(unclipped), expected["plain"], _CLOSE
        ),
        "private": ratio(seconds["private"], seconds["plain"]),
        "noiseless": ratio(seconds["noiseless"], seconds["plain"]),
        "site_step": milliseconds(seconds, sites * _STEPS),
    }


def _stacked(trainers: Sequence[Trainer]) -> Vector:
    """All sites' changes of a round, one after the other, (K * P,)."""
    start = trainers[0].adapter.initial
    return np.concatenate(train_cohort([Lane(one) for one in trainers], start, 1, tokens=_TOKENS))


def _one_by_one(trainers: Sequence[Trainer]) -> Vector:
    """The same, each by its own trainer."""
    start = trainers[0].adapter.initial
    return np.concatenate([one.train_round(start, 1) for one in trainers])
