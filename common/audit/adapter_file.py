"""An adapter's file against a job's evidence: that its numbers are those that a round made.

Receipts name an adapter by the sha256 of one vector, all tensors that travel in the order of their
names in the model. A file holds the same numbers under peft's shorter names; what does not travel
follows from the job's public seed, and is computed here anew.

Not covered: files of methods whose state is more than the file holds (``state.safetensors`` lies
beside it then), and what is in no weight: ``adapter_config.json``, the tokenizer, the base. Nor
what the vector does not say, since the base is not at hand: which of its layers a matrix of the
job's targets belongs to, how wide it is, and what a head's tensors are called.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from common.audit.claims import Claim, unchecked
from common.audit.evidence import Evidence
from common.errors import Refusal
from common.initial import drawn_a
from common.job import Job
from common.layout import ADAPTER, Matrices
from common.methods import METHODS, Part

MAX_ADAPTER_BYTES = 2**31
_PREFIX = "base_model.model."  # of each name that peft writes
_FACTOR = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight")
_STRANGE = (SafetensorError, KeyError, ValueError, TypeError, OverflowError)

Tensors = Mapping[str, NDArray[np.float32]]


def check_adapter(data: bytes | None, evidence: Evidence) -> Claim:
    """The file is the one that the result names, and its vector the one of the kept round.

    Args:
        data: ``adapter_model.safetensors``; ``None`` where none was given.
        evidence: whose ``links`` hold: its ``vector_sha256`` is the kept round's.

    Raises:
        Refusal: another file, no safetensors, or other numbers than the round made.
    """
    if data is None:
        why = "no file was given (--adapter): that the hash on the certificate is of what the"
        return unchecked("adapter", f"{why} kept round made is the server's word")
    result, job = evidence.result, evidence.job.job
    found = hashlib.sha256(data).hexdigest()
    if found != result.adapter_sha256:
        raise Refusal(
            f"adapter's file must have the sha256 {result.adapter_sha256[:16]} that the result "
            f"states, got {found[:16]}"
        )
    if METHODS[job.adapter.method].state & {Part.CORE, Part.FOLD}:
        why = f"with {job.adapter.method} the rounds' numbers are more than this file holds"
        return unchecked("adapter", why)
    tensors = read_tensors(data)
    vector = vector_of(tensors, job)
    digest = hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
    if digest != result.vector_sha256:
        named = (result.vector_sha256 or "none")[:16]
        raise Refusal(
            f"adapter's numbers must be the {named} that the kept round made, got {digest[:16]}"
        )
    words = f"file {found[:16]} holds the {vector.size:,} numbers {digest[:16]} of the kept round"
    return Claim("adapter", "", "pass", words)


def read_tensors(data: bytes) -> Tensors:
    """The tensors of a safetensors file, by name, all float32.

    Raises:
        Refusal: no such file, or numbers of another kind.
    """
    try:
        tensors = safetensors.numpy.load(data)
    except _STRANGE as error:
        raise Refusal(
            f"adapter's file must be safetensors of float32, got {type(error).__name__}"
        ) from error
    if not tensors or any(values.dtype != np.float32 for values in tensors.values()):
        raise Refusal("adapter's file must hold tensors of float32, got none or others")
    return tensors


def vector_of(tensors: Tensors, job: Job) -> NDArray[np.float32]:
    """The numbers that travel, (P,), in the order of their tensors' names in the model.

    Raises:
        Refusal: not the tensors that such a job has, or one that does not travel and is not as the
            job's public start has it.
    """
    travelling = METHODS[job.adapter.method].state
    if job.adapter.start == "svd":  # singular vectors are other bits elsewhere, and so are sent
        travelling |= {Part.A}
    _require_whole(tensors, job)
    moving: dict[str, NDArray[np.float32]] = {}
    for name, values in tensors.items():
        full, part = _in_model(name, job)
        if part in travelling:
            moving[full] = values
        else:
            _require_start(full, part, values, job)
    if not moving:
        raise Refusal("adapter's file must hold what travels, got none of it")
    return np.concatenate([moving[name].ravel() for name in sorted(moving)])


def _in_model(name: str, job: Job) -> tuple[str, Part]:
    """A tensor's name in the model, which peft shortens in files, and its kind."""
    if (factor := _FACTOR.fullmatch(name)) and _ends_in(factor[1], job.adapter.targets):
        return f"{name.removesuffix('.weight')}.{ADAPTER}.weight", Part[factor[2]]
    for head in job.adapter.head:
        if within := re.fullmatch(
            rf"({re.escape(_PREFIX)}(?:.+?\.)?{re.escape(head)})\.(.+)", name
        ):
            return f"{within[1]}.modules_to_save.{ADAPTER}.{within[2]}", Part.HEAD
    raise Refusal(f"adapter's file must hold the job's tensors, got {name[:80]!r}")


def _ends_in(module: str, wanted: Iterable[str]) -> list[str]:
    """Which of the names a module, or a tensor's module, is called by."""
    return [name for name in wanted if f".{module}".endswith(f".{name}")]


def _require_whole(tensors: Tensors, job: Job) -> None:
    """Each target has modules, each of these a fitting A and B, and each head has tensors."""
    modules = {one[1] for name in tensors if (one := _FACTOR.fullmatch(name))}
    for module in sorted(modules):
        _require_pair(module, tensors, job)
    found = {target for module in modules for target in _ends_in(module, job.adapter.targets)}
    names = [_in_model(name, job)[0] for name in tensors]
    found |= {h for h in job.adapter.head if any(f".{h}.modules_to_save." in n for n in names)}
    missing = [name for name in (*job.adapter.targets, *job.adapter.head) if name not in found]
    if missing:
        raise Refusal(f"adapter's file must hold the job's {missing[0]}, got nothing of it")


def _require_pair(module: str, tensors: Tensors, job: Job) -> None:
    """A is (r, k) and B (d, r), none empty; r is at most d and k, but where A is uniform."""
    rank, least = job.adapter.rank, 1 if job.adapter.start == "uniform" else job.adapter.rank
    a, b = (tensors.get(f"{_PREFIX}{module}.lora_{part}.weight") for part in "AB")
    shapes = () if a is None else a.shape, () if b is None else b.shape
    if [len(shape) for shape in shapes] == [2, 2]:
        (rows, inputs), (outputs, columns) = shapes
        if rows == columns == rank and min(inputs, outputs) >= least:
            return
    raise Refusal(
        f"adapter's {module[:80]!r} must have an A of {rank} rows and a B of {rank} columns, "
        f"none empty, got {shapes[0]} and {shapes[1]}"
    )


def _require_start(name: str, part: Part, values: NDArray[np.float32], job: Job) -> None:
    """What no site trains: A as the job's public seed draws it, and B zero."""
    start = np.zeros_like(values)
    if part is Part.A:
        module, (rank, inputs) = name.removesuffix(f".lora_A.{ADAPTER}.weight"), values.shape
        place = Matrices(module, 1.0, None, None, None, None, rank, inputs, 0)
        start = drawn_a(job, place, 0).astype(np.float32)
    if not np.array_equal(values, start):
        raise Refusal(f"{name[:80]} must be the job's public start, got other numbers")
