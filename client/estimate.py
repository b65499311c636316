"""What a job will take from a site's machine: bytes on the link, memory, minutes.

Time and memory are measured: a few physical batches of random public tokens, of the job's greatest
length, go the way that training goes, and what a step does once is timed beside them. No record is
read for it. Bytes are those of real messages with the job's own table.

Not covered: what the link adds to a message (less than 1 KiB); reading the site's file; a round
that is asked for again; other programs on the machine. Texts shorter than the greatest length, and
units with fewer records than the cap, take less.
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
from common import messages
from common.adapter import vector_sha256
from common.errors import JobRefused
from common.flower import content_to_bytes
from common.job import Job, SignedJob
from common.layout import Layout
from common.privacy.ledger import Head
from common.process import peak_memory_bytes, reset_peak_memory
from common.tasks import task_of
from common.tasks.batches import Example

GIB = 2**30
_TIMED = 3
_VOCABULARY = 30  # ids that every vocabulary has
_RECORDS_TIMED = 8  # of a unit; more take proportionally longer

# As long as a ledger's head gets: a P-256 signature and key, DER in hex.
_HEAD = Head(2**32, "0" * 64, "0" * 144, "0" * 182)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of the messages of one round at one site, and of the whole job."""

    up_round: int
    down_round: int
    rounds: int

    @property
    def up(self) -> int:
        """From the site, in all."""
        return self.up_round * self.rounds

    @property
    def down(self) -> int:
        """To the site, in all."""
        return self.down_round * self.rounds


@dataclass(frozen=True, slots=True)
class Load:
    """Peak memory in GiB, this process's and the GPU's (0 without one), and minutes in all."""

    memory_gb: float
    gpu_memory_gb: float
    minutes: float


def traffic(job: Job, layout: Layout) -> Traffic:
    """The bytes of an update and of an order with its receipt, as they are encoded.

    Not covered: the charge, its confirmation and the signed receipts, some kilobytes a site.
    """
    steps, trained = (
        job.training.local_steps,
        max((layout.trained(r) for r in layout.rounds), key=lambda t: t.size),
    )
    vector, state = np.zeros(trained.size, np.float32), np.zeros(layout.table.size, np.float32)
    digest = vector_sha256(state)
    last = job.training.rounds
    result = messages.Update(vector, last, digest, steps, job.steps, _HEAD)
    signed = SignedJob(job=job, signer="0" * 64, signature="0" * 128)
    receipt = messages.Receipt(last, digest, is_accepted=True)
    order = messages.order(signed, layout.table, state, last, receipt, _HEAD)
    return Traffic(
        up_round=len(content_to_bytes(messages.update(job, trained.table, result))),
        down_round=len(content_to_bytes(order)),
        rounds=last,
    )


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
