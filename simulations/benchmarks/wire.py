"""What an update weighs on the wire by each codec, beside fp32 A and B, and what rounding costs.

Sites learn banking77's intents without privacy, whose noise would drown any rounding: FFA-LoRA of
rank 8 and the head in MiniLM's last block, by the codec named, under several seeds. The same seed
has the same sites, start and batches with every codec, so that accuracies are compared in pairs, on
all of the public test questions. Bytes are of whole replies, charge and envelope included, and go
over what A, B and head are as raw fp32 numbers.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.adapter import load_adapter
from common.job import Job
from common.model import quiet_transformers, require_base
from common.result import Result, read_result
from simulations import runs
from simulations.benchmarks.timing import require_rounds
from simulations.leaderboard import half_width
from simulations.scenario import FOLDER, Options, Scenario, load_scenario

CODECS = ("fp32", "bf16", "int8", "int4")
_BLOCK = "layer.5.attention.self"
_VALUES: dict[str, object] = {
    "model.max_length": 32,
    "adapter.method": "ffa",
    "adapter.rank": 8,
    "adapter.targets": [f"{_BLOCK}.query", f"{_BLOCK}.value"],
    "training.rounds": 10,
    "training.local_steps": 4,
    "training.learning_rate": 6.0,
    "privacy.sampling_rate": 0.1,
    "evaluation.records": 3080,
}

# (seed, codec) -> the scenario
Make = Callable[[int, str], Scenario]


def benchmark(rounds: int = 5) -> dict[str, object]:
    """Bytes and accuracy of each codec; ``rounds`` is how many seeds.

    Raises:
        InvalidInput: fewer than two.
    """
    require_rounds(rounds)
    quiet_transformers()
    return measure(_bank, rounds)


def measure(make: Make, seeds: int) -> dict[str, object]:
    """The same for any scenario: ``ratio_CODEC`` and ``points_CODEC`` beside all figures."""
    found = {codec: [_run(make(seed, codec)) for seed in range(seeds)] for codec in CODECS}
    raw = 4 * both_and_head(make(0, "fp32").job)
    rounded = {codec: _codec(results, found["fp32"], raw) for codec, results in found.items()}
    return {
        **{f"ratio_{codec}": one["ratio"] for codec, one in rounded.items()},
        **{f"points_{codec}": one["points"] for codec, one in rounded.items()},
        "raw_fp32_bytes": raw,
        "codecs": rounded,
        "seeds": seeds,
    }


def both_and_head(job: Job) -> int:
    """How many numbers A, B and head have together in this job's model."""
    adapter = job.adapter.model_copy(update={"method": "fedavg"})
    whole = job.model_copy(update={"adapter": adapter})
    return load_adapter(whole, require_base(whole)).table.size


def _codec(results: Sequence[Result], exact: Sequence[Result], raw: int) -> dict[str, Any]:
    sent = [
        one.bytes_up / sum(site.steps > 0 for site in result.sites)
        for result in results
        for one in result.rounds[1:]
    ]
    accuracies = [result.final.accuracy or 0.0 for result in results]
    changes = [
        100 * (accuracy - (plain.final.accuracy or 0.0))
        for accuracy, plain in zip(accuracies, exact, strict=True)
    ]
    return {
        "bytes": statistics.fmean(sent),
        "ratio": statistics.fmean(sent) / raw,
        "accuracies": accuracies,
        "points": statistics.fmean(changes),
        "points_half_width": half_width(changes),
        "points_by_seed": changes,
    }


def _run(scenario: Scenario) -> Result:
    with tempfile.TemporaryDirectory(prefix="veiltune-") as work:
        outcome = runs.stacked(scenario, Path(work), lambda *_: None)
        return read_result(outcome / "result.json")


def _bank(seed: int, codec: str) -> Scenario:
    values = {**_VALUES, "training.codec": codec}
    options = Options(
        sites=10, partition="dirichlet:0.5", seed=seed, records=5000, no_privacy=True, values=values
    )
    return load_scenario(FOLDER / "bank.toml", options)
