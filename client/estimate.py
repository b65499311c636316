"""What a job will take from a site's machine: memory, minutes.

Time and memory are measured: a few physical batches of random public tokens, of the job's greatest
length, go the way that training goes, and what a step does once is timed beside them. No record is
read for it.

Not covered: reading the site's file; a round that is asked for again; other programs on the
machine; bytes on the link (client/traffic.py). Texts shorter than the greatest length, and units
with fewer records than the cap, take less.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
import torch

from client.config import SiteHome
from client.policy import Ruling
from client.train import Trainer
from common.errors import JobRefused
from common.job import Job
from common.process import peak_memory_bytes, reset_peak_memory
from common.tasks import task_of
from common.tasks.batches import Example

GIB = 2**30
_TIMED = 3
_VOCABULARY = 30  # ids that every vocabulary has
_RECORDS_TIMED = 8  # of a unit; more take proportionally longer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Load:
    """Peak memory in GiB, this process's and the GPU's (0 without one), and minutes in all."""

    memory_gb: float
    gpu_memory_gb: float
    minutes: float


def measure(trainer: Trainer) -> Load:
    """Time the parts of a step on public tokens, and take them times the job's steps.

    Args:
        trainer: of the job at this site; its units are not looked at.
    """
    device, unit_cap = trainer.adapter.device, trainer.job.privacy.unit_cap or 1
    timed = min(unit_cap, _RECORDS_TIMED)
    units = [[_example(trainer.job, row)] * timed for row in range(trainer.rows)]
    trainer.begin(trainer.adapter.initial)
    _reset(device)
    part_s = _seconds(lambda: trainer.bounded_sum(units), device)
    total = trainer.bounded_sum(units)
    release_s = _seconds(lambda: trainer.mechanism.release(total, 1, 0), device)
    memory_gb, gpu_memory_gb = peak_memory_bytes() / GIB, _gpu_peak(device) / GIB
    parts = math.ceil(trainer.mechanism.divisor / trainer.rows)
    step_s = parts * part_s * unit_cap / timed + release_s
    minutes = trainer.job.steps * step_s / 60
    return Load(memory_gb=memory_gb, gpu_memory_gb=gpu_memory_gb, minutes=minutes)


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    """The median of a few runs, after one that warms up."""
    times = []
    for _ in range(1 + _TIMED):
        begun = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _example(job: Job, seed: int) -> Example:
    """An example of random tokens, as long as the job lets any be."""
    length = job.model.max_length
    ids = np.random.Generator(np.random.PCG64(seed)).integers(1, _VOCABULARY, length)
    return task_of(job).public_example(tuple(int(i) for i in ids), seed, length, job)


def _reset(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak_memory()


def _gpu_peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def rulings(load: Load, home: SiteHome) -> tuple[Ruling, ...]:
    """The limits of ``site.toml`` on a machine's load."""
    policy, gpu_gb = home.config.policy, load.gpu_memory_gb
    return (
        _within("max_memory_gb", "memory", policy.max_memory_gb, load.memory_gb, "GiB"),
        _within("max_gpu_memory_gb", "GPU memory", policy.max_gpu_memory_gb, gpu_gb, "GiB"),
        _within("max_minutes", "time", policy.max_minutes, load.minutes, "minutes"),
    )


def require_limits(trainer: Trainer, home: SiteHome) -> None:
    """Measure a job where ``site.toml`` limits its load.

    Raises:
        JobRefused: it takes more. How fast this machine is stays in this site's own log.
    """
    policy = home.config.policy
    if {policy.max_memory_gb, policy.max_gpu_memory_gb, policy.max_minutes} == {None}:
        return
    for ruling in rulings(measure(trainer), home):
        if not ruling.is_met:
            name = trainer.job.job.name
            log.warning("job over the machine's limit", job=name, reason=ruling.words)
            raise JobRefused(f"{ruling.name} must be within this site's limit, got more")


def _within(rule: str, name: str, limit: float | None, found: float, unit: str) -> Ruling:
    condition = "any" if limit is None else f"at most this site's {limit:g} {unit}"
    is_met = limit is None or found <= limit
    return Ruling(f"policy.{rule}", name, condition, f"{found:.3g} {unit}", is_met)
