"""How fast updates are folded into their mean, beside copying them, and in how much memory.

One update is 3,000,000 numbers in fp32, as a site sends it. The variants alternate, update by
update, in one process and one thread: ``copy`` is numpy's own of the same buffers, ``fold`` is what
a strategy does with a change, ``checked`` is that after every check of a payload (hash, table,
finite numbers), ``read`` is all that a round does with a reply that has come (``checked``, norm,
receipt, and its fold), ``link`` is that and what the server's end of a session does before (frames
put together, their hash, the message parsed, its content's hash). ``flower`` is Flower's mean over
replies that are all held. Times are CPU time. Memory is what Python and numpy allocate.

Not covered: the network and TLS (``link``, ``link-scale``); protobuf's own memory, which is one
more update while a message is parsed.
"""

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray
from rich.table import Table

from common import log, messages
from common.adapter import LoadedAdapter
from common.config import parse
from common.contents import arrays_in
from common.errors import SelfCheckFailed
from common.flower import (
    arrived,
    become_server,
    message_to_parts,
    set_arrival,
    set_message_id,
)
from common.job import Job
from common.layout import AdapterTable, Layout, TensorSpec
from common.link import framing
from common.link.codecs import CODECS, Vector
from common.link.identity import node_id
from common.link.payload import ARRAYS, VECTOR, unpack
from common.link.rows import rows_of
from common.methods import Part
from common.privacy.ledger import Head
from server.aggregate import StreamingMean
from server.round import RoundBook
from server.strategies.base import Round
from server.strategies.middle import MiddleFolding

TENSORS, SHAPE = 50, (7500, 8)
NUMBERS = TENSORS * SHAPE[0] * SHAPE[1]
_UPDATES = 20
_REPETITIONS = 15
_FLOWER_REPETITIONS = 5
_CODEC = CODECS["fp32"]
_CLOSE = 1e-6
_INPUT = "ab" * 32
_HEAD = Head(3, "ab" * 32, "cd" * 72, "ef" * 91)


@dataclass(frozen=True)
class _Sent:
    """An update in its frames, and as the server has it once they have come."""

    frames: tuple[bytes, ...]
    message: Message


class _Variant(Protocol):
    """What takes updates one by one."""

    def take(self, one: _Sent) -> None: ...

    def mean(self) -> NDArray[Any]: ...


class _Folds:
    """Folds what ``decode`` makes of a message."""

    def __init__(self, decode: Callable[[Message], Vector]) -> None:
        self._decode, self._mean = decode, StreamingMean(NUMBERS)

    def take(self, one: _Sent) -> None:
        self._mean.add(self._decode(one.message), 1.0)

    def mean(self) -> NDArray[Any]:
        return self._mean.mean()


class _Reads:
    """Reads what ``opened`` makes of an update as a round does, and folds its change in."""

    def __init__(self, begun: Round, opened: Callable[[_Sent], Message]) -> None:
        adapter = cast(LoadedAdapter, _LayoutAlone(begun.layout))
        confirmed = set(begun.job.sites)
        self._book = RoundBook(begun.job, adapter, 1, _INPUT, confirmed=confirmed)
        self._opened, self._folding = opened, MiddleFolding(begun)

    def take(self, one: _Sent) -> None:
        change = self._book.read(self._opened(one))
        if change is None:
            raise SelfCheckFailed(f"update must be taken, got {self._book.refused}")
        self._folding.add(change)

    def mean(self) -> NDArray[Any]:
        return self._folding.state()


class _Copies:
    """Copies, and has no mean."""

    def __init__(self) -> None:
        self._target = np.empty(NUMBERS, np.float32)

    def take(self, one: _Sent) -> None:
        np.copyto(self._target, _decoded(one.message))


@dataclass(frozen=True)
class _LayoutAlone:
    """Of an adapter, what a round's book looks at: no model is needed to read updates."""

    layout: Layout


def benchmark() -> dict[str, object]:
    """Medians, quartiles and raw times; ``fold_over_copy`` and the peaks are ratios."""
    log.configure(level="warning")
    become_server()
    begun, vectors = _begun(), _vectors()
    sent = [
        _as_sent(begun, site, vector) for site, vector in zip(begun.job.sites, vectors, strict=True)
    ]
    expected = np.mean([v.astype(np.float64) for v in vectors], axis=0)
    table = begun.layout.table
    variants: dict[str, Callable[[], _Variant | _Copies]] = {
        "copy": _Copies,
        "fold": lambda: _Folds(_decoded),
        "checked": lambda: _Folds(lambda message: unpack(message.content, table, _CODEC)),
        "read": lambda: _Reads(begun, lambda one: one.message),
        "link": lambda: _Reads(begun, _received),
    }
    times: dict[str, list[float]] = {name: [] for name in [*variants, "flower"]}
    for _ in range(_REPETITIONS):
        made = {name: make() for name, make in variants.items()}
        spent = dict.fromkeys(variants, 0.0)
        for one in sent:
            for name, variant in made.items():
                before = time.process_time()
                variant.take(one)
                spent[name] += time.process_time() - before
        for name, variant in made.items():
            if not isinstance(variant, _Copies):
                _require_mean(name, variant.mean(), expected)
            times[name].append(spent[name] / len(sent))
    for _ in range(_FLOWER_REPETITIONS):
        times["flower"].append(_flower(vectors, expected) / len(sent))
    return _result(times, _peaks(begun, sent))


def _begun() -> Round:
    layout = _layout()
    return Round(1, np.zeros(NUMBERS, np.float32), _job(), layout)


def _job() -> Job:
    """A job of as many sites as there are updates; nothing that it names is opened."""
    data = {
        "job": {"name": "aggregate"},
        "model": {"base": "none", "sha256": "00" * 32},
        "adapter": {"targets": ["query"], "method": "fedavg"},
        "training": {"rounds": 1, "local_steps": 1, "learning_rate": 1.0},
        "privacy": {"mode": "none", "sampling_rate": 1.0},
        "data": {
            "name": "none",
            "labels": ["x", "y"],
            "population": {f"site{number:02}": 1 for number in range(_UPDATES)},
        },
        "evaluation": {"data": "none"},
    }
    return parse(Job, data, "benchmark")


def _layout() -> Layout:
    tensors = tuple(TensorSpec(f"layer.{n}.lora_B.default.weight", SHAPE) for n in range(TENSORS))
    table = AdapterTable(tensors, "00" * 32)
    return Layout("fedavg", 8, table, (Part.B,) * TENSORS, ())


def _vectors() -> list[Vector]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(NUMBERS, np.float32) for _ in range(_UPDATES)]


def _as_sent(begun: Round, site: str, vector: Vector) -> _Sent:
    """A site's update in its frames, and as it is once they have arrived."""
    asked = Message(RecordDict(), node_id(site), messages.TRAIN, group_id="1")
    set_message_id(asked, "ab" * 32)
    made = messages.Update(vector, 1, _INPUT, 1, 1, _HEAD)
    reply = Message(messages.update(begun.job, begun.layout.table, made), reply_to=asked)
    metadata = reply.metadata
    parts = message_to_parts(reply)
    frames = framing.split(
        parts,
        message_type=metadata.message_type,
        message_id=metadata.message_id,
        reply_to=metadata.reply_to_message_id,
    )
    set_arrival(reply, arrived(parts))
    return _Sent(tuple(frames), reply)


def _received(one: _Sent) -> Message:
    """The message in a site's frames, as ``server/session.py`` opens it."""
    assembler = framing.Assembler(lambda header: True)
    for data in one.frames:
        if (received := assembler.take(framing.parse(data))) is not None:
            return framing.open_received(received)
    raise SelfCheckFailed("message must be whole after its last frame, got less")


def _decoded(message: Message) -> Vector:
    return _CODEC.decode(_numbers(message), rows_of([(NUMBERS,)]))


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


def _peaks(begun: Round, sent: list[_Sent]) -> dict[str, float]:
    """The most memory at a time, of three updates, over one model.

    ``fold``: the sum and an update's bytes. ``link``: the sum and all that is made of an update,
    from its frames on. ``state``: what the next state takes beside the sum.
    """
    reads = _Reads(begun, _received)
    for one in sent[:3]:
        reads.take(one)
        _arriving(one.message)  # what is kept for the whole job is there now
    return {
        "peak_models": _peak(lambda: _taken(_Folds(_arriving), sent[:3])),
        "peak_models_link": _peak(lambda: _taken(_Reads(begun, _received), sent[:3])),
        "peak_models_state": _peak(reads.mean),
    }


def _taken(variant: _Variant, sent: list[_Sent]) -> None:
    for one in sent:
        tracemalloc.reset_peak()
        variant.take(one)


def _arriving(message: Message) -> Vector:
    """The vector over bytes of its own, as a message brings it."""
    return _CODEC.decode(bytes(memoryview(_numbers(message))), rows_of([(NUMBERS,)]))


def _numbers(message: Message) -> bytes:
    arrays = arrays_in(message.content, ARRAYS)
    if arrays is None:
        raise SelfCheckFailed(f"message must hold {ARRAYS}, got none")
    return arrays[VECTOR].data


def _peak(act: Callable[[], object]) -> float:
    tracemalloc.start()
    act()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / (4 * NUMBERS)


def _result(times: dict[str, list[float]], peaks: dict[str, float]) -> dict[str, object]:
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = [c / f for c, f in zip(times["copy"], times["fold"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "cores": os.cpu_count(),
        "numbers": NUMBERS,
        "fold_over_copy": statistics.median(ratios),
        "fold_over_copy_quartiles": [quartiles[0], quartiles[2]],
        "read_over_copy": middle["copy"] / middle["read"],
        **peaks,
        **{f"{name}_gb_s": 4 * NUMBERS / 1e9 / seconds for name, seconds in middle.items()},
        **{f"{name}_all_s": [round(v, 6) for v in values] for name, values in times.items()},
    }


def table(result: dict[str, Any]) -> Table:
    """The figures to look at."""
    shown = Table(title=f"{result['numbers']:,} numbers an update, one thread", min_width=56)
    shown.add_column("")
    shown.add_column("GB/s", justify="right")
    for name in ("copy", "fold", "checked", "read", "link", "flower"):
        shown.add_row(name, f"{result[f'{name}_gb_s']:.2f}")
    low, high = result["fold_over_copy_quartiles"]
    shown.caption = (
        f"fold over copy {result['fold_over_copy']:.2f} ({low:.2f} to {high:.2f}); read over copy "
        f"{result['read_over_copy']:.2f}; peaks: fold {result['peak_models']:.2f} models, "
        f"link {result['peak_models_link']:.2f}, state {result['peak_models_state']:.2f}"
    )
    return shown
