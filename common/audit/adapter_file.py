"""An adapter's file against a job's evidence: that its numbers are those that a round made.

Receipts name an adapter by the sha256 of one vector, all tensors that travel in the order of their
names in the model. A file holds the same numbers under peft's shorter names; what does not travel
follows from the job's public seed, and is computed here anew.

Not covered: files of methods whose state is more than the file holds (``state.safetensors`` lies
beside it then), and what is in no weight: ``adapter_config.json``, the tokenizer, the base.
"""

import hashlib
import re
from collections.abc import Mapping

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
_FACTOR = re.compile(r"(.+\.lora_([AB]))\.weight")
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
        Refusal: a tensor of no known kind, or one that does not travel and is not the public start.
    """
    travelling = METHODS[job.adapter.method].state
    if job.adapter.start == "svd":  # singular vectors are other bits elsewhere, and so are sent
        travelling |= {Part.A}
    moving: dict[str, NDArray[np.float32]] = {}
    for name, values in tensors.items():
        full, part = _in_model(name, job)
        if part in travelling:
            moving[full] = values
        else:
            _require_start(full, values, job)
    if not moving:
        raise Refusal("adapter's file must hold what travels, got none of it")
    return np.concatenate([moving[name].ravel() for name in sorted(moving)])


def _in_model(name: str, job: Job) -> tuple[str, Part]:
    """A tensor's name in the model, which peft shortens in files, and its kind."""
    if factor := _FACTOR.fullmatch(name):
        return f"{factor[1]}.{ADAPTER}.weight", Part[factor[2]]
    for head in job.adapter.head:
        if within := re.fullmatch(rf"((?:.+?\.)?{re.escape(head)})\.(.+)", name):
            return f"{within[1]}.modules_to_save.{ADAPTER}.{within[2]}", Part.HEAD
    raise Refusal(f"adapter's file must hold the job's tensors, got {name[:80]!r}")


def _require_start(name: str, values: NDArray[np.float32], job: Job) -> None:
    """What no site trains is as the job's public seed draws it."""
    module, is_a = name.removesuffix(f".lora_A.{ADAPTER}.weight"), ".lora_A." in name
    if not is_a or values.ndim != 2 or values.shape[0] != job.adapter.rank:
        raise Refusal(f"adapter's file must hold the job's tensors, got {name[:80]!r}")
    rank, inputs = values.shape
    place = Matrices(module, 1.0, None, None, None, None, rank, inputs, 0)
    if not np.array_equal(values, drawn_a(job, place, 0).astype(np.float32)):
        raise Refusal(f"{name[:80]} must be the job's public start, got other numbers")
