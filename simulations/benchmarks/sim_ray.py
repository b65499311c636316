"""The same federation by Flower's stock Ray simulation and on the stacked grid, as whole runs.

Each run is a process of its own (sim_ray_run.py): import, base, start, rounds, stop. Stock is
Flower's FedAvg over a ClientApp that trains by plain PEFT, one CPU a client, so that Ray has as
many actors as there are cores; ours is a job with ledgers and signed charges on the stacked grid,
in float32 and in bfloat16. All take AdamW from the same start on the same records, without privacy.
The adapters have to end within 1e-4 of each other in float32.

CPU time is of the process with all its children, as ``psutil`` sees them ten times a second: what
a process used in its last tenth of a second is missed, of which Ray has the more.

Not covered: wall time, which another process on the machine moves; more than one machine.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from common.errors import InvalidInput, LinkDown
from simulations.benchmarks.timing import ratio, require_close

# sites, rounds, records of a step, tokens of a record; three local steps
SHAPES = {"16": (16, 2, 8, 64), "32": (32, 3, 2, 32)}
KINDS = ("ray", "stacked", "stacked_bf16")
_SAMPLE_S, _LIMIT_S = 0.1, 1800
_FLOAT32, _BFLOAT16 = 1e-4, 0.5


def benchmark(rounds: int = 3) -> dict[str, object]:
    """CPU seconds of every run, and the ratios of both shapes.

    Raises:
        InvalidInput: Ray is not installed.
        LinkDown: a run failed; with its own words.
        SelfCheckFailed: two runs end with other adapters.
    """
    if importlib.util.find_spec("ray") is None:
        raise InvalidInput("ray must be installed (pip install 'veiltune[dev]'), got none")
    shapes = {name: _measure(shape, rounds) for name, shape in SHAPES.items()}
    ratios = {
        f"ratio_{name}_{dtype}": shapes[name][dtype]["ratio"]
        for name in SHAPES
        for dtype in ("fp32", "bf16")
    }
    return {**ratios, "shapes": shapes, "rounds": rounds, "cores": os.cpu_count()}


def _measure(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    walls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    peaks: dict[str, list[float]] = {kind: [] for kind in KINDS}
    distances: dict[str, float] = {}
    for _ in range(rounds):
        ends = {}
        for kind in KINDS:
            cpu_s, wall_s, peak_mib, ends[kind] = _run(kind, shape)
            seconds[kind].append(cpu_s)
            walls[kind].append(wall_s)
            peaks[kind].append(peak_mib)
        for kind, most in (("stacked", _FLOAT32), ("stacked_bf16", _BFLOAT16)):
            distances[kind] = require_close(f"adapter of {kind}", ends[kind], ends["ray"], most)
    sites, job_rounds, batch, length = shape
    return {
        "sites": sites,
        "job_rounds": job_rounds,
        "batch": batch,
        "length": length,
        "fp32": _ratio(seconds, "stacked"),
        "bf16": _ratio(seconds, "stacked_bf16"),
        "distance": distances,
        "cpu_s": seconds,
        "wall_s": walls,
        "peak_mib": {kind: round(statistics.median(own)) for kind, own in peaks.items()},
    }


def _ratio(seconds: dict[str, list[float]], kind: str) -> dict[str, Any]:
    return ratio(seconds["ray"], seconds[kind])


def _run(kind: str, shape: tuple[int, ...]) -> tuple[float, float, float, Any]:
    """CPU and wall seconds, peak MiB of all processes, and the change of the adapter."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "change"
        arguments = [kind, str(out), *map(str, shape)]
        # One thread each, as a second would only wait for the first on work as small as this.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (Path(folder) / "log").open("w+b") as log:
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "simulations.benchmarks.sim_ray_run", *arguments],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=Path(__file__).parents[2],
            )
            cpu_s, peak_mib = _watch(psutil.Process(process.pid), process)
            wall_s = time.monotonic() - begun
            if process.returncode or not out.is_file():
                log.seek(0)
                words = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                raise LinkDown(f"{kind} run must succeed, got: {words[-1]}")
        return round(cpu_s, 3), round(wall_s, 3), peak_mib, np.frombuffer(out.read_bytes(), "<f4")


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
