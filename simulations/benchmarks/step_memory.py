"""What a step adds to the memory of a process of its own.

The highest resident set during a step (VmHWM) less that before it, after a step on two records has
loaded code and optimiser state.
"""

import gc
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from common.errors import InvalidInput
from common.model import quiet_transformers
from simulations.benchmarks.step_engines import make_step
from simulations.benchmarks.step_models import make_batch, minilm

_CLIP_NORM = 1.3  # any: memory does not depend on it


def peak_in_child(engine: str, targets: str) -> int:
    """Bytes that a step of ``engine`` adds to a process of its own."""
    with _returned_memory(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_peak, engine, targets).result()


@contextmanager
def _returned_memory() -> Iterator[None]:
    """Children give freed memory back at once, so that a high-water mark means something."""
    name = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(name)
    os.environ[name] = "65536"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _peak(engine: str, targets: str) -> int:
    quiet_transformers()
    torch.set_num_threads(1)
    own, step = make_step(engine, minilm(targets), _CLIP_NORM)
    step(make_batch(own, 1, records=2))
    batch = make_batch(own, 0)
    gc.collect()
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the mark: proc_pid_clear_refs(5)
    step(batch)
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise InvalidInput(f"/proc/self/status must have {field}, got none on {sys.platform}")
