"""What a private step costs beside the same step without privacy: time and memory.

A step is forward pass, backward pass and AdamW; a private one also clips each record's gradient
and sums (step_engines.py). Every round runs all engines once, in shuffled order, from the same
parameters on the same batch, and a ratio compares two steps of one round. CPU time on one thread,
because others may use the machine; on CUDA wall time between synchronisations. In every round the
clipped sums of all engines must agree with Opacus' to within ``_tolerance``.

Memory (step_memory.py): each engine in a process of its own.

Not included in a step: noise. ``noise_ms`` and ``clip_ms`` time it, and clipping to the lattice,
at 332,000 parameters and 32 records.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from common.errors import InvalidInput, SelfCheckFailed
from common.model import quiet_transformers
from common.privacy.clipping import LATTICE, clip_and_sum, sensitivity
from common.privacy.noise import lattice_noise
from common.privacy.persample import flat_gradients, trainable
from common.privacy.stream import Stream, fresh_key
from simulations.benchmarks.step_engines import ENGINES, losses, make_step, summed_gradient
from simulations.benchmarks.step_memory import peak_in_child
from simulations.benchmarks.step_models import (
    RECORDS,
    TARGETS,
    TOKENS,
    llama_1b,
    make_batch,
    minilm,
)
from simulations.benchmarks.timing import require_rounds

DEFAULT_ROUNDS = 12
_MECHANISM_SIZE, _MECHANISM_REPEATS = 332_000, 9
_PACKAGES = ("torch", "transformers", "peft", "opacus")
_ROUNDING_BF16 = 0.05  # of the largest number in the sum: 8 bits of mantissa, through all layers


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a step of each engine, by round, and how far apart their sums came."""

    seconds: dict[str, list[float]]
    largest_difference: float
    tolerance: float


def benchmark(rounds: int = DEFAULT_ROUNDS, targets: str = "qv") -> dict[str, object]:
    """Time and memory of every engine on MiniLM; on CUDA also in bf16 and of a 1B Llama.

    Raises:
        InvalidInput: an option that does not exist.
        SelfCheckFailed: engines that disagree about a sum.
    """
    require_rounds(rounds)
    if targets not in TARGETS:
        raise InvalidInput(f"targets must be one of {', '.join(TARGETS)}, got {targets!r}")
    quiet_transformers()
    torch.set_num_threads(1)
    result = _on_cpu(rounds, targets) | _mechanism_times()
    if torch.cuda.is_available():
        result["cuda"] = _on_cuda(rounds, targets)
    return result | {"versions": {name: metadata.version(name) for name in _PACKAGES}}


def _on_cpu(rounds: int, targets: str) -> dict[str, object]:
    model = minilm(targets)
    found = _measure(model, rounds, "CPU rounds", time.process_time)
    memory = {
        engine: peak_in_child(engine, targets)
        for engine in track(ENGINES, "memory", console=Console(stderr=True), transient=True)
    }
    engines = found["engines"]
    for engine, peak in memory.items():
        engines[engine]["memory_mib"] = round(peak / 2**20, 1)
        engines[engine]["memory_ratio"] = round(peak / memory["plain"], 4)
    return {
        "ratio_ours": engines["ours"]["ratio"],
        "ratio_fused": engines["fused"]["ratio"],
        "memory_ours": engines["ours"]["memory_ratio"],
        "targets": targets,
        "threads": torch.get_num_threads(),
    } | found


def _on_cuda(rounds: int, targets: str) -> dict[str, object]:
    """Wall times in bf16. A ratio is to the plain step on the same card."""

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    found: dict[str, object] = {"device": torch.cuda.get_device_name()}
    builds: dict[str, Callable[[], nn.Module]] = {
        "minilm": partial(minilm, targets),
        "llama_1b": llama_1b,
    }
    for name, build in builds.items():
        model = build().to("cuda", torch.bfloat16)
        found[name] = _measure(model, rounds, f"{name} on CUDA", clock)
    return found


def _measure(
    model: nn.Module, rounds: int, description: str, clock: Callable[[], float]
) -> dict[str, Any]:
    clip_norm = median_norm(model)
    timing = measure(model, clip_norm, rounds, clock, description)
    return {
        "parameters": sum(p.numel() for p in trainable(model).values()),
        "records": RECORDS,
        "tokens": TOKENS,
        "rounds": rounds,
        "clip_norm": clip_norm,
        "largest_difference": timing.largest_difference,
        "tolerance": timing.tolerance,
        "engines": {name: summary(timing.seconds, name) for name in timing.seconds},
    }


def measure(
    model: nn.Module,
    clip_norm: float,
    rounds: int,
    clock: Callable[[], float],
    description: str,
) -> Timing:
    """Every engine once a round, in shuffled order, all checked against Opacus in every round."""
    steps = {engine: make_step(engine, model, clip_norm) for engine in ENGINES}
    start = [p.detach().clone() for p in trainable(model).values()]
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    largest, tolerance, order = 0.0, 0.0, random.Random(5)
    for round_ in track(
        range(rounds + 1), description, console=Console(stderr=True), transient=True
    ):
        batch, sums = make_batch(model, round_), dict[str, Tensor]()
        for engine in order.sample(list(ENGINES), len(ENGINES)):
            own, step = steps[engine]
            _reset(own, start)
            gc.collect()
            began = clock()
            step(batch)
            took = clock() - began
            sums[engine] = summed_gradient(own)
            if round_:  # the first one warms up
                seconds[engine].append(took)
        tolerance = max(tolerance, _tolerance(sums["hooks"], clip_norm, model))
        largest = max(largest, check(sums, _tolerance(sums["hooks"], clip_norm, model)))
    return Timing(seconds, largest, tolerance)


def check(sums: dict[str, Tensor], tolerance: float) -> float:
    """The largest difference of a private engine's clipped sum from Opacus' by hooks.

    Raises:
        SelfCheckFailed: an engine whose sum is another one.
    """
    expected, largest = sums["hooks"], 0.0
    for engine, found in sums.items():
        if engine in ("plain", "hooks"):
            continue
        if found.shape != expected.shape:
            raise SelfCheckFailed(
                f"clipped sum of {engine} must have shape {tuple(expected.shape)}, "
                f"got {tuple(found.shape)}"
            )
        difference = float((found - expected).abs().max())
        if not difference <= tolerance:
            raise SelfCheckFailed(
                f"clipped sum of {engine} must be within {tolerance:g} of Opacus', "
                f"got a difference of {difference:g}"
            )
        largest = max(largest, difference)
    return largest


def _tolerance(expected: Tensor, clip_norm: float, model: nn.Module) -> float:
    """How far apart two right sums may lie.

    In float32 each record may differ by half a lattice unit, by the 2^-20 that clipping here stays
    below the bound, and by the 1e-6 that Opacus adds to a norm and another for float32 itself.
    """
    if any(p.dtype == torch.bfloat16 for p in trainable(model).values()):
        return _ROUNDING_BF16 * float(expected.abs().max())
    return RECORDS * (clip_norm * (0.5 / LATTICE + 2.0**-20 + 1e-6) + 1e-6)


def summary(seconds: dict[str, list[float]], engine: str) -> dict[str, Any]:
    """An engine's median, its median ratio to ``plain`` by round, the quartiles, and raw times."""
    ratios = [own / plain for own, plain in zip(seconds[engine], seconds["plain"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "median_s": round(statistics.median(seconds[engine]), 4),
        "ratio": round(middle, 4),
        "ratio_iqr": [round(low, 4), round(high, 4)],
        "seconds": [round(value, 4) for value in seconds[engine]],
    }


def _reset(model: nn.Module, start: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(trainable(model).values(), start, strict=True):
            parameter.copy_(value)


def median_norm(model: nn.Module) -> float:
    """The median norm of a batch's gradients, so that half of the records are clipped."""
    batch = make_batch(model, 0)
    return float(flat_gradients(model, lambda: losses(model, batch)).norm(dim=1).median())


def _mechanism_times() -> dict[str, object]:
    """Milliseconds of CPU for one release's noise, and for clipping one batch to the lattice."""
    draw = np.random.Generator(np.random.PCG64(2))
    rows = torch.from_numpy(draw.standard_normal((RECORDS, _MECHANISM_SIZE), dtype=np.float32))
    deviation = 1.1 * sensitivity(_MECHANISM_SIZE)

    def noise() -> None:
        lattice_noise(_MECHANISM_SIZE, deviation, Stream(fresh_key("noise", 0, 0)))

    return {
        "mechanism_parameters": _MECHANISM_SIZE,
        "noise_ms": _median_ms(noise),
        "clip_ms": _median_ms(lambda: clip_and_sum(rows, 3.0)),
    }


def _median_ms(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_MECHANISM_REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return round(1000 * statistics.median(times), 2)


def table(result: dict[str, Any]) -> Table:
    """The CPU figures for people."""
    shown = Table(
        title=f"A step of {result['records']} records of {result['tokens']} tokens, MiniLM, "
        f"{result['parameters']:,} trained numbers",
        caption=f"noise {result['noise_ms']} ms, clipping to the lattice {result['clip_ms']} ms "
        f"at {result['mechanism_parameters']:,} numbers; sums agree to "
        f"{result['largest_difference']:.1e} (tolerance {result['tolerance']:.1e})",
    )
    for heading in ("engine", "CPU s", "ratio", "quartiles", "MiB", "memory ratio"):
        shown.add_column(heading, justify="left" if heading == "engine" else "right")
    for name, found in result["engines"].items():
        low, high = found["ratio_iqr"]
        shown.add_row(
            name,
            f"{found['median_s']:.3f}",
            f"{found['ratio']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{found['memory_mib']:.0f}",
            f"{found['memory_ratio']:.3f}",
        )
    return shown
