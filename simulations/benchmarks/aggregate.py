"""How fast updates are folded into their mean, beside copying them, and in how much memory.

One update is 3,000,000 numbers in fp32, as a message carries it. The variants alternate, update by
update, in one process and one thread: ``copy`` is numpy's own of the same buffers, ``fold`` is what
a strategy does with a change, ``checked`` is that after every check of a message (hash, table,
finite numbers), ``flower`` is Flower's mean over replies that are all held. Times are CPU time.

Not covered: the network, TLS and protobuf (``link``).
"""

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from rich.table import Table

from common.errors import SelfCheckFailed
from common.link.codecs import CODECS, Vector
from common.link.payload import ARRAYS, VECTOR, pack, unpack
from common.link.rows import rows_of
from server.aggregate import StreamingMean
from simulations.benchmarks.link import OneTensor

NUMBERS = 3_000_000
_UPDATES = 20
_REPETITIONS = 15
_FLOWER_REPETITIONS = 5
_CODEC = CODECS["fp32"]
_CLOSE = 1e-6

Message = RecordDict


def benchmark() -> dict[str, object]:
    """Medians, quartiles and raw times; ``fold_over_copy`` and ``peak_models`` are the ratios."""
    vectors, messages = _updates()
    expected = np.mean([v.astype(np.float64) for v in vectors], axis=0)
    target, table = np.empty(NUMBERS, np.float32), OneTensor(NUMBERS)
    variants: dict[str, Callable[[StreamingMean, Message], None]] = {
        "copy": lambda _, message: np.copyto(target, _decoded(message)),
        "fold": lambda mean, message: mean.add(_decoded(message), 1.0),
        "checked": lambda mean, message: mean.add(unpack(message, table, _CODEC), 1.0),
    }
    times: dict[str, list[float]] = {name: [] for name in [*variants, "flower"]}
    for _ in range(_REPETITIONS):
        means = {name: StreamingMean(NUMBERS) for name in variants}
        spent = dict.fromkeys(variants, 0.0)
        for message in messages:
            for name, act in variants.items():
                begun = time.process_time()
                act(means[name], message)
                spent[name] += time.process_time() - begun
        for name in ("fold", "checked"):
            _require_mean(name, means[name].mean(), expected)
        for name, seconds in spent.items():
            times[name].append(seconds / len(messages))
    for _ in range(_FLOWER_REPETITIONS):
        times["flower"].append(_flower(vectors, expected) / len(messages))
    return _result(times, _peak_models(messages))


def _updates() -> tuple[list[Vector], list[Message]]:
    rng, table = np.random.default_rng(0), OneTensor(NUMBERS)
    vectors = [rng.standard_normal(NUMBERS, np.float32) for _ in range(_UPDATES)]
    return vectors, [RecordDict({**pack(vector, table, _CODEC)}) for vector in vectors]


def _decoded(message: Message) -> Vector:
    data = message.array_records[ARRAYS][VECTOR].data
    return _CODEC.decode(data, rows_of([(NUMBERS,)]))


def _require_mean(name: str, found: Any, expected: Any) -> None:  # noqa: ANN401 -- arrays
    off = float(np.abs(found - expected).max())
    if off > _CLOSE:
        raise SelfCheckFailed(f"mean of {name} must be within {_CLOSE:g}, got {off:g}")


def _flower(vectors: list[Vector], expected: Any) -> float:  # noqa: ANN401 -- an array
    """CPU seconds of Flower's own mean."""
    replies = [
        RecordDict(
            {
                "arrays": ArrayRecord({VECTOR: Array(vector)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        for vector in vectors
    ]
    begun = time.process_time()
    mean = aggregate_arrayrecords(replies, "num-examples")
    seconds = time.process_time() - begun
    _require_mean("flower", mean[VECTOR].numpy(), expected)
    return seconds


def _peak_models(messages: list[Message]) -> float:
    """The most memory that a fold takes, the arriving update included, over one model."""
    own = [bytes(message.array_records[ARRAYS][VECTOR].data) for message in messages[:3]]
    tracemalloc.start()
    mean = StreamingMean(NUMBERS)
    for data in own:
        arrived = b"".join((data[:1], data[1:]))  # as a message brings it: bytes of its own
        tracemalloc.reset_peak()  # what making them took is not the fold's
        mean.add(_CODEC.decode(arrived, rows_of([(NUMBERS,)])), 1.0)
        del arrived
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / (4 * NUMBERS)


def _result(times: dict[str, list[float]], peak_models: float) -> dict[str, object]:
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = [c / f for c, f in zip(times["copy"], times["fold"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "cores": os.cpu_count(),
        "numbers": NUMBERS,
        "fold_over_copy": statistics.median(ratios),
        "fold_over_copy_quartiles": [quartiles[0], quartiles[2]],
        "peak_models": peak_models,
        **{f"{name}_gb_s": 4 * NUMBERS / 1e9 / seconds for name, seconds in middle.items()},
        **{f"{name}_all_s": [round(v, 6) for v in values] for name, values in times.items()},
    }


def table(result: dict[str, Any]) -> Table:
    """The figures to look at."""
    shown = Table(title=f"{result['numbers']:,} numbers an update, one thread", min_width=56)
    shown.add_column("")
    shown.add_column("GB/s", justify="right")
    for name in ("copy", "fold", "checked", "flower"):
        shown.add_row(name, f"{result[f'{name}_gb_s']:.2f}")
    low, high = result["fold_over_copy_quartiles"]
    shown.caption = (
        f"fold over copy {result['fold_over_copy']:.2f} ({low:.2f} to {high:.2f}); "
        f"peak {result['peak_models']:.2f} models"
    )
    return shown
