"""The same federation by Flower's stock Ray simulation and on the stacked grid, as whole runs.

Each run is a process of its own (sim_ray_run.py): import, base, start, rounds, stop. Stock is
Flower's FedAvg over a ClientApp that trains by plain PEFT; ours is a job with self-checks, ledgers
and signed charges on the stacked grid, in float32 and in bfloat16. All take AdamW from the same
start on the same records, without privacy. In every round of runs the adapters have to end within
1e-4 of each other in float32 and within 0.15 in bfloat16.

Stock runs with one core a client, which gives it an actor a core, and with all cores a client,
which gives it one actor; a ratio is that of the setting which took less. ``ratio_...`` is of CPU
time, ``wall_ratio_...`` of seconds on the clock, which other processes on the machine move. Ours
trains on one thread. ``start`` is a process that imports what ours does and ends: less than that
no run can take.

CPU time is of the process with all its children, as ``psutil`` sees them ten times a second: what
a process used in its last tenth of a second is missed, of which Ray has the more.

Not covered: more than one machine.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common.adapter import Vector
from common.errors import InvalidInput, LinkDown
from simulations.benchmarks.sim_ray_run import RAY, START
from simulations.benchmarks.timing import Distances, ratio, require_rounds

# sites, rounds, records of a step, tokens of a record; three local steps
SHAPES = {"16": (16, 2, 8, 64), "32": (32, 3, 2, 32)}
OURS = {"fp32": "stacked", "bf16": "stacked_bf16"}
_SAMPLE_S, _LIMIT_S = 0.1, 1800
_FLOAT32, _BFLOAT16 = 1e-4, 0.15  # bfloat16 was measured at 0.07 to 0.09
_ROOT = Path(__file__).parents[2]


def benchmark(rounds: int = 3) -> dict[str, object]:
    """CPU and wall seconds of every run, and the ratios of both shapes.

    Raises:
        InvalidInput: Ray is not installed, or fewer than two rounds.
        LinkDown: a run failed; with its own words.
        SelfCheckFailed: two runs end with other adapters.
    """
    require_rounds(rounds)
    if importlib.util.find_spec("ray") is None:
        raise InvalidInput("ray must be installed (pip install 'veiltune[dev]'), got none")
    shapes = {name: _measure(shape, rounds) for name, shape in SHAPES.items()}
    ratios = {
        f"{clock}ratio_{name}_{dtype}": shapes[name][f"{clock}{dtype}"]["ratio"]
        for clock in ("", "wall_")
        for name in SHAPES
        for dtype in OURS
    }
    return {**ratios, "shapes": shapes, "rounds": rounds, "cores": os.cpu_count()}


def ray_kinds() -> list[str]:
    """Flower's simulation with one core a client, and with all; once where there is one core."""
    return [f"{RAY}{cpus}" for cpus in sorted({1, os.cpu_count() or 1})]


def _measure(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    stock = ray_kinds()
    runs: dict[str, list[Run]] = {kind: [] for kind in (START, *stock, *OURS.values())}
    # All beside the first of stock: the other settings of it as well.
    distances = Distances(
        dict.fromkeys([*stock[1:], "stacked"], _FLOAT32) | {"stacked_bf16": _BFLOAT16}
    )
    for _ in range(rounds):
        for kind, own in runs.items():
            own.append(run(kind, shape))
        for kind in distances.greatest:
            distances.require(kind, runs[kind][-1].change, runs[stock[0]][-1].change)
    cpu_s = {kind: [one.cpu_s for one in own] for kind, own in runs.items()}
    wall_s = {kind: [one.wall_s for one in own] for kind, own in runs.items()}
    peaks = {kind: [one.peak_mib for one in own] for kind, own in runs.items()}
    return {
        **dict(zip(("sites", "job_rounds", "batch", "length"), shape, strict=True)),
        **compared(cpu_s, stock),
        **{f"wall_{name}": one for name, one in compared(wall_s, stock).items()},
        "distance": distances.greatest,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "peak_mib": {kind: round(statistics.median(own)) for kind, own in peaks.items()},
    }


def compared(seconds: Mapping[str, list[float]], stock: Sequence[str]) -> dict[str, Any]:
    """Which setting of stock takes less, and its rounds over ours."""
    fastest = min(stock, key=lambda kind: statistics.median(seconds[kind]))
    ratios = {dtype: ratio(seconds[fastest], seconds[kind]) for dtype, kind in OURS.items()}
    return {"stock": fastest, **ratios}


@dataclass(frozen=True)
class Run:
    """What a process used, and the change of the adapter, (P,)."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    change: Vector


def run(kind: str, shape: tuple[int, ...]) -> Run:
    """One kind of ``sim_ray_run.py`` as a process of its own.

    Raises:
        LinkDown: it failed; with its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "change"
        arguments = [kind, str(out), *map(str, shape)]
        # One thread each, as a second would only wait for the first on work as small as this.
        # Ray's actors look for our modules along this path, and not where the process began.
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with (Path(folder) / "log").open("w+b") as log:
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "simulations.benchmarks.sim_ray_run", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=_ROOT,
            )
            cpu_s, peak_mib = _watch(psutil.Process(process.pid), process)
            wall_s = time.monotonic() - begun
            if process.returncode or not out.is_file():
                log.seek(0)
                words = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                raise LinkDown(f"{kind} run must succeed, got: {words[-1]}")
        change = np.frombuffer(out.read_bytes(), "<f4")
        return Run(round(cpu_s, 3), round(wall_s, 3), peak_mib, change)


def _watch(root: psutil.Process, process: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """CPU seconds of a process and all that it started, and the most memory of all at once."""
    used: dict[tuple[int, float], float] = {}
    peak, end = 0.0, time.monotonic() + _LIMIT_S
    known: dict[int, psutil.Process] = {}
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()
        resident = 0
        with suppress(psutil.Error):
            known |= {one.pid: one for one in root.children(recursive=True)}
        for one in (root, *known.values()):
            try:
                times, memory = one.cpu_times(), one.memory_info()
                used[one.pid, one.create_time()] = times.user + times.system
                resident += memory.rss
            except psutil.Error:
                continue
        peak = max(peak, resident / 2**20)
        time.sleep(_SAMPLE_S)
    return sum(used.values()), peak
