"""What a site's step costs among 8, 64, 512 and 4,096 sites of one job on the stacked grid.

Each site takes one step a round on two records of 32 tokens, without privacy. The cost of a round
is all that server and sites do between two closed rounds: orders, training, ledgers, signatures,
checks, aggregation, evaluation on one record. The first round, which also encodes records, is left
out. Every round of every size has to take in every site's update.

CPU time of one thread; peak memory is the process's, which grows with sites times adapter.
"""

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from common.errors import SelfCheckFailed
from common.log import configure
from common.model import quiet_transformers
from simulations import runs
from simulations.benchmarks import sim_jobs
from simulations.benchmarks.timing import cpu_seconds
from simulations.partitions import MAX_SITES

SIZES = (8, 64, 512, MAX_SITES)
BATCH, LENGTH = 2, 32
# Rounds after the first: small federations have many, so that each size is timed for seconds.
_ROUNDS = {8: 48, 64: 12, 512: 4, MAX_SITES: 2}


def benchmark() -> dict[str, object]:
    """Milliseconds a site-step of each size, every round's; ``flatness`` is most over least.

    Raises:
        SelfCheckFailed: a round lacked a site.
    """
    configure(level="error")
    quiet_transformers()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {str(size): _measure(Path(folder), size) for size in SIZES}
    medians = [one["median_ms"] for one in found.values()]
    of_64_on = [found[str(size)]["median_ms"] for size in SIZES[1:]]
    return {
        "flatness": round(max(medians) / min(medians), 4),
        "flatness_from_64": round(max(of_64_on) / min(of_64_on), 4),
        "sites": found,
        "batch": BATCH,
        "length": LENGTH,
    }


def _measure(folder: Path, sites: int) -> dict[str, Any]:
    rounds = _ROUNDS[sites] + 1
    scenario = sim_jobs.make_scenario(folder, sites, BATCH, LENGTH, rounds=rounds, quorum=sites)
    sim_jobs.load(scenario.job)
    closed: list[float] = []
    runs.stacked(scenario, folder / str(sites), lambda *_: closed.append(cpu_seconds()))
    if len(closed) != rounds + 1:
        raise SelfCheckFailed(f"job must close {rounds} rounds, got {len(closed) - 1}")
    each = [1000 * (b - a) / sites for a, b in pairwise(closed[1:])]
    return {
        "median_ms": round(statistics.median(each), 3),
        "ms": [round(value, 3) for value in each],
        "peak_mib": round(_peak_mib()),
    }


def _peak_mib() -> float:
    """The process's highest resident set so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
