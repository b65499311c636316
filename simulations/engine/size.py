"""How many sites train together, and how many tokens go through the base at once.

Both are from what this machine shows: memory that is free, the bytes that a token's activations
keep for the backward pass, and which batch is fastest. What was measured is kept in the user's
cache, so that one machine computes a simulation in the same shapes every time.

Not covered: memory that other processes take later.
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
_SHARE = 0.3  # of the memory that is free, for each of activations and stacked tensors
_BATCHES = 16  # of a step: more sites at once would make it no faster
_MOST_BYTES = 1 << 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a machine does best with a job's model.

    Attributes:
        tokens: of a physical batch.
        token_bytes: that a token's activations keep until the backward pass.
    """

    tokens: int
    token_bytes: int


def shape_of(trainer: Trainer) -> Shape:
    """The shape for a job's model on this machine; measured once, then read."""
    path, key = cache_path(), _key(trainer)
    known = _known(path)
    if key not in known:
        found = measure(trainer)
        known[key] = {"tokens": found.tokens, "token_bytes": found.token_bytes}
        make_folder(path.parent)
        write_file(path, json.dumps(known, indent=1, sort_keys=True).encode())
        log.info("shape measured", tokens=found.tokens, token_bytes=found.token_bytes)
    shape = Shape(**known[key])
    room = int(_SHARE * free_bytes(trainer.adapter.device) / shape.token_bytes)
    return replace(shape, tokens=max(_LEAST_TOKENS, min(shape.tokens, room)))


def sites_at_once(trainers: Sequence[Trainer], shape: Shape, round_: int) -> int:
    """How many of these sites train together, at least 1."""
    first = trainers[0]
    size, training = first.trained(round_).size, first.job.training
    states = 2 if training.optimizer == "adamw" else int(training.momentum > 0)
    numbers = (3 + states) * 4 + 8  # values, gradient, a row in the buffer; totals in float64
    rows = [first.mechanism.sampling_rate * len(trainer.units) for trainer in trainers]
    if first.mechanism.unit_cap is not None:
        numbers += 4 * max(1, round(max(rows)))
    by_memory = _SHARE * free_bytes(first.adapter.device) / (numbers * size)
    tokens = sum(_expected_tokens(trainer) for trainer in trainers) / len(trainers)
    by_shape = _BATCHES * shape.tokens / max(tokens, 1.0)
    return max(1, min(int(by_memory), math.ceil(by_shape), len(trainers)))


def _expected_tokens(trainer: Trainer) -> float:
    whole = sum(len(e.input_ids) for unit in trainer.units for e in unit)
    return trainer.mechanism.sampling_rate * whole


def measure(trainer: Trainer) -> Shape:
    """Time a forward and backward pass of several sizes, and weigh what one keeps."""
    run = _probe(trainer)
    kept = 0

    def weigh(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        run(_LEAST_TOKENS)
    token_bytes = max(1, kept // _LEAST_TOKENS)
    room = _SHARE * free_bytes(trainer.adapter.device) / token_bytes
    sizes = [tokens for tokens in _TOKENS if tokens <= room] or [_LEAST_TOKENS]
    seconds = {tokens: min(_timed(run, tokens) for _ in range(2)) / tokens for tokens in sizes}
    return Shape(min(seconds, key=lambda tokens: seconds[tokens]), token_bytes)


def _timed(run: Callable[[int], None], tokens: int) -> float:
    began = time.process_time() if not torch.cuda.is_available() else time.perf_counter()
    run(tokens)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter() - began
    return time.process_time() - began


def _probe(trainer: Trainer) -> Callable[[int], None]:
    """A pass over public rows of a quarter of the greatest length, of two sites."""
    job, adapter = trainer.job, trainer.adapter
    length = max(1, min(64, job.model.max_length // 4))
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
        job.model.sha256, job.model.dtype, job.adapter.method, str(job.adapter.rank),
        ",".join(job.adapter.targets), str(job.model.max_length), machine,
        str(torch.get_num_threads()), version("torch"), version("transformers"),
    )  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"
