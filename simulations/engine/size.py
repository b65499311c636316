"""How many sites train together, and how many tokens and rows go through the base at once.

They are from what this machine shows: memory that is free, the bytes that a token's activations
keep for the backward pass, and which batch is fastest. What was measured is kept in the user's
cache, so that one machine computes a simulation in the same shapes as long as memory is not short;
where it is, shapes follow what is free, and a run's last bits may differ from the last one's.

Not covered: memory that other processes take later; what a layer needs beside what it keeps; one
site whose sampled units are more gradients than fit (it trains alone, and is not split).
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from client.train import Trainer
from common.errors import InvalidInput
from common.files import make_folder, write_file
from common.privacy.memory import free_bytes
from common.strict_json import read_json
from common.tasks import task_of
from common.tasks.batches import Example
from simulations.engine.cohort import Cohort, Lane

_TOKENS = (1024, 2048, 4096, 8192)
_LEAST_TOKENS = 256
# Of the memory that is free, for each of activations, gradients of rows and stacked tensors; a
# quarter more is for what is kept below the first adapter (simulations/engine/prefix.py).
_SHARE = 0.2
_BATCHES = 16  # of a step: more sites at once would make it no faster
_MOST_BYTES = 1 << 20
_WEIGHED = "2"  # how: what was kept before had the base's weights in it

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a machine does best with a job's model.

    Attributes:
        tokens: the most of a physical batch.
        token_bytes: that a token's activations keep until the backward pass.
        rows: the most of a physical batch; ``None`` for as many as have so many tokens.
    """

    tokens: int
    token_bytes: int
    rows: int | None = None


def shape_of(trainer: Trainer, sharing: int = 1, *, tokens: int | None = None) -> Shape:
    """The shape for a job's model on this machine, measured once, within the memory of now.

    Args:
        trainer: of any site.
        sharing: how many engines share this machine's memory.
        tokens: of a physical batch, where they are given.
    """
    shape = _measured(trainer, sharing) if tokens is None else Shape(tokens, 0)
    free = _SHARE * free_bytes(trainer.adapter.device) / sharing
    if tokens is None:
        tokens = max(_LEAST_TOKENS, min(shape.tokens, int(free / shape.token_bytes)))
    rows = min(tokens, int(free / _row_bytes(trainer)))
    return replace(shape, tokens=tokens, rows=max(1, rows))


def _measured(trainer: Trainer, sharing: int) -> Shape:
    path, key = cache_path(), _key(trainer)
    known = _known(path)
    if key not in known:
        found = measure(trainer, sharing)
        known[key] = {"tokens": found.tokens, "token_bytes": found.token_bytes}
        make_folder(path.parent)
        write_file(path, json.dumps(known, indent=1, sort_keys=True).encode())
        log.info("shape measured", tokens=found.tokens, token_bytes=found.token_bytes)
    return Shape(**known[key])


def _row_bytes(trainer: Trainer) -> int:
    """What a row takes whatever its length: its gradient, and its site's tensors beside it."""
    numbers = trainer.adapter.layout.largest
    is_double = any(p.dtype == torch.float64 for p in trainer.adapter.model.parameters())
    return 2 * (8 if is_double else 4) * numbers


def sites_at_once(trainers: Sequence[Trainer], shape: Shape, round_: int, sharing: int = 1) -> int:
    """How many of these sites train together, at least 1; arguments as ``shape_of``."""
    first = trainers[0]
    size, training = first.trained(round_).size, first.job.training
    states = 2 if training.optimizer == "adamw" else int(training.momentum > 0)
    states += training.proximal_mu is not None  # where the round began
    numbers = (2 + states) * 4 + 8  # values and gradient; totals in float64
    rows = [first.mechanism.sampling_rate * len(trainer.units) for trainer in trainers]
    if first.mechanism.unit_cap is not None:
        numbers += 4 * max(1, round(max(rows)))
    by_memory = _SHARE * free_bytes(first.adapter.device) / sharing / (numbers * size)
    tokens = sum(_expected_tokens(trainer) for trainer in trainers) / len(trainers)
    by_shape = _BATCHES * shape.tokens / max(tokens, 1.0)
    return max(1, min(int(by_memory), math.ceil(by_shape), len(trainers)))


def _expected_tokens(trainer: Trainer) -> float:
    whole = sum(len(e.input_ids) for unit in trainer.units for e in unit)
    return trainer.mechanism.sampling_rate * whole


def measure(trainer: Trainer, sharing: int = 1) -> Shape:
    """Time passes forward and backward of several sizes, and weigh what one keeps."""
    run, token_bytes = _probe(trainer, _length(trainer)), weigh(trainer)
    room = _SHARE * free_bytes(trainer.adapter.device) / sharing / token_bytes
    sizes = [tokens for tokens in _TOKENS if tokens <= room] or [_LEAST_TOKENS]
    seconds = {tokens: min(_timed(run, tokens) for _ in range(2)) / tokens for tokens in sizes}
    return Shape(min(seconds, key=lambda tokens: seconds[tokens]), token_bytes)


def weigh(trainer: Trainer) -> int:
    """Bytes that a token's activations keep for the backward pass.

    Each piece of memory counts once; the base's weights, which are there anyway, and the rows' own
    tensors, which are a row's (``_row_bytes``), do not.
    """
    model = trainer.adapter.model
    length = min(trainer.job.model.max_length, _LEAST_TOKENS)
    rows = max(1, _LEAST_TOKENS // length)
    there = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in there:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _probe(trainer, length)(rows * length)
    itemsize = min(p.element_size() for p in model.parameters())
    own = rows * itemsize * trainer.adapter.layout.trained(1).size
    return max(1, (sum(kept.values()) - own) // (rows * length))


def _timed(run: Callable[[int], None], tokens: int) -> float:
    began = time.process_time() if not torch.cuda.is_available() else time.perf_counter()
    run(tokens)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - began
    return time.process_time() - began


def _length(trainer: Trainer) -> int:
    """Of rows that are timed: a quarter of the greatest."""
    return max(1, min(64, trainer.job.model.max_length // 4))


def _probe(trainer: Trainer, length: int) -> Callable[[int], None]:
    """A pass over public rows of so many tokens, of two sites."""
    job, adapter = trainer.job, trainer.adapter
    known = min(len(adapter.tokenizer), adapter.model.get_input_embeddings().num_embeddings)

    def example(seed: int) -> Example:
        ids = tuple((seed * 7919 + 31 * i) % known for i in range(length))
        return task_of(job).public_example(ids, seed, length, job)

    def run(tokens: int) -> None:
        examples = [example(seed) for seed in range(max(1, tokens // length))]
        cohort = Cohort([Lane(trainer), Lane(trainer)], adapter.initial, 1, tokens)
        for _ in cohort.gradients(examples, [i % 2 for i in range(len(examples))]):
            pass

    return run


def cache_path() -> Path:
    """Where measured shapes are kept: the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "veiltune" / "engine.json"


def _known(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path, max_bytes=_MOST_BYTES)
    except InvalidInput:
        return {}  # measured again, and written anew
    return found if isinstance(found, dict) else {}


def _key(trainer: Trainer) -> str:
    """What a measured shape holds for."""
    job, device = trainer.job, trainer.adapter.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    parts = (
        _WEIGHED, job.model.sha256, job.model.dtype, job.adapter.method, str(job.adapter.rank),
        ",".join(job.adapter.targets), str(job.model.max_length), machine,
        str(torch.get_num_threads()), version("torch"), version("transformers"),
    )  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"
