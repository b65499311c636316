"""A job's LoRA adapter: built by peft, initialised from a public seed, moved as one flat vector.

With ``ffa`` (Sun et al. 2024, https://arxiv.org/abs/2403.12313) A stays at its public start and
only B and the head are trained and sent: their mean is then exactly the mean of the products BA,
and noise on B is not multiplied by noise on A.

Not covered: DoRA (refused by the job's schema) and LoRA on embeddings (refused here), for which
Opacus has no per-sample gradient.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rfc8785
import structlog
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from common.errors import InvalidInput, UpdateRejected, VeiltuneError
from common.job import Job
from common.model import load_tokenizer, quiet_transformers
from common.privacy.persample import trainable
from common.privacy.stream import Stream, public_keys
from common.tasks import task_of
from common.tasks.batches import Example
from common.vocabulary import require_places

Vector = NDArray[np.float32]

log = structlog.get_logger(__name__)

_HEAD = ".modules_to_save.default."
_HEAD_BOUND = 0.035  # uniform: the standard deviation of BERT's normal(0, 0.02)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A trainable tensor's place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class AdapterTable:
    """The manifest table: names, shapes and dtypes in order, and what stays at its public start."""

    tensors: tuple[TensorSpec, ...]
    frozen_sha256: str = ""

    @property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    def to_json(self) -> bytes:
        """RFC 8785 JSON, as it travels."""
        rows: list[Any] = [
            {"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in self.tensors
        ]
        return rfc8785.dumps({"frozen_sha256": self.frozen_sha256, "tensors": rows})

    @cached_property
    def sha256(self) -> str:
        """The table's own name."""
        return hashlib.sha256(self.to_json()).hexdigest()


def build_adapter(job: Job, folder: Path) -> PeftModel:
    """The job's base in ``folder``, its adapter at the public start, in training mode.

    Raises:
        InvalidInput: a target or head that the base does not have, one that breaks per-sample
            gradients, or a base that its library does not take.
    """
    quiet_transformers()
    task = task_of(job)
    config = LoraConfig(
        task_type=task.peft_type,
        r=job.adapter.rank,
        lora_alpha=job.adapter.alpha,
        lora_dropout=job.adapter.dropout,
        target_modules=list(job.adapter.targets),
        modules_to_save=list(job.adapter.head),
        bias="none",
    )
    with _refused(f"model.base must load for the task {job.job.task}"):
        base, new = task.load_base(folder, job)
    _require_targets(base, job)
    _require_weights(new, job)
    with _refused("adapter must fit the base"):
        model = get_peft_model(base, config)
    _initialise(model, job, new)
    if job.model.dtype != "float32":
        _cast_head_inputs(model)
    return model.train()


@contextmanager
def _refused(rule: str) -> Iterator[None]:
    """What a library cannot take is the manifest's mistake, and ends no process.

    A site sends its refusals to the server, and a library's words may tell of this machine's
    folders: they stay in its own log.
    """
    try:
        yield
    except VeiltuneError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        name = type(error).__name__
        log.warning("refused by a library", error=name, words=str(error).partition("\n")[0][:200])
        raise InvalidInput(f"{rule}, got a {name}") from error


def _require_targets(base: nn.Module, job: Job) -> None:
    modules = dict(base.named_modules())
    for key, wanted in (("targets", job.adapter.targets), ("head", job.adapter.head)):
        for target in wanted:
            found = [m for name, m in modules.items() if f".{name}".endswith(f".{target}")]
            if not found:
                raise InvalidInput(
                    f"adapter.{key} must name modules of the base, got {target!r} which it has not"
                )
            if any(isinstance(module, nn.Embedding) for module in found):
                raise InvalidInput(
                    f"adapter.{key} must not be an embedding (Opacus has no per-sample gradient "
                    f"for LoRA on one), got {target!r}"
                )
            others = [module for module in found if not isinstance(module, nn.Linear | Conv1D)]
            if key == "targets" and others:
                raise InvalidInput(
                    f"adapter.targets must name linear layers, got {target!r} "
                    f"which is a {type(others[0]).__name__}"
                )


def _initialise(model: nn.Module, job: Job, new: frozenset[str]) -> None:
    """B zero; A and what the base has no weights for uniform, each from its own public stream.

    The numbers are AES words scaled by constants, so they are the same bits on every machine,
    which no framework's own generator promises from one version to the next.
    """
    keys = public_keys("initial adapter", str(job.adapter.seed))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_A" in name:
                _fill(parameter, 1 / math.sqrt(parameter.shape[1]), Stream(keys(name, 0, 0)))
                parameter.requires_grad_(job.adapter.method == "lora")
            elif "lora_B" in name:
                _fill(parameter, 0.0, None)
            elif _HEAD in name and base_name(name) in new:
                bound = _HEAD_BOUND if parameter.dim() > 1 else 0.0
                _fill(parameter, bound, Stream(keys(name, 0, 0)))
            elif parameter.requires_grad:
                parameter.data = parameter.data.float()


def base_name(name: str) -> str:
    """The base's own name for a parameter that peft has wrapped."""
    return name.removeprefix("base_model.model.").replace(_HEAD, ".")


def _require_weights(new: frozenset[str], job: Job) -> None:
    """What the base has no weights for must be trained: frozen, it would be noise."""
    heads = tuple(f".{head}." for head in job.adapter.head)
    left = sorted(name for name in new if not any(head in f".{name}" for head in heads))
    if left:
        raise InvalidInput(
            f"adapter.head must name every module that the base has no weights for, "
            f"got none for {', '.join(left[:4])}"
        )


def _cast_head_inputs(model: nn.Module) -> None:
    """Let a bf16 base feed fp32 heads; peft does so for its own layers."""

    def cast(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if isinstance(a, torch.Tensor) else a for a in arguments)

    for name, module in model.named_modules():
        if name.endswith(_HEAD.rstrip(".")):
            module.register_forward_pre_hook(cast)


def _fill(parameter: nn.Parameter, bound: float, stream: Stream | None) -> None:
    """Uniform in [-bound, bound), or zero; in fp32 whatever the base's dtype, as noise needs it."""
    values = np.zeros(parameter.numel())
    if stream is not None:
        values = (2 * stream.uniforms(parameter.numel()) - 1) * bound
    parameter.data = torch.from_numpy(values.astype(np.float32)).view(parameter.shape)


@dataclass(frozen=True)
class LoadedAdapter:
    """A job's model on a device, and what both sides know of its adapter.

    Attributes:
        model: the base with the adapter; its trainable state is whatever was written last.
        tokenizer: the base's.
        table: the manifest table.
        initial: (P,) the public start.
        device: where the model is.
    """

    model: PeftModel
    tokenizer: Any
    table: AdapterTable
    initial: Vector
    device: torch.device

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id."""
        return int(self.tokenizer.pad_token_id or 0)


def load_adapter(job: Job, folder: Path, device: str = "auto") -> LoadedAdapter:
    """Build the job's adapter once a process: many simulated sites share one base.

    Raises:
        InvalidInput: see ``build_adapter`` and ``require_places``, or CUDA asked for and absent.
    """
    return _load_adapter(job.canonical, folder, pick_device(device))


@lru_cache(maxsize=1)
def _load_adapter(canonical: bytes, folder: Path, device: torch.device) -> LoadedAdapter:
    job = Job.model_validate_json(canonical)
    model, tokenizer = build_adapter(job, folder), load_tokenizer(folder)
    # A batch is padded with this id, which generators' configurations often leave open.
    model.config.pad_token_id = tokenizer.pad_token_id
    task, most = task_of(job), job.model.max_length

    def longest(ids: tuple[int, ...]) -> Example:
        return task.public_example(ids, 0, most, job)

    require_places(model, tokenizer, task.per_example_loss, longest, most)
    with _refused(f"tokenizer must fit the task {job.job.task}"):
        task.encode(tokenizer, [task.question("a", job)], job)
    model = model.to(device)
    return LoadedAdapter(model, tokenizer, table_of(model), read_vector(model), device)


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where present.

    Raises:
        InvalidInput: CUDA was asked for and is absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("runtime.device must be present, got cuda on a machine without it")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def table_of(model: nn.Module) -> AdapterTable:
    """The manifest table of a model that ``build_adapter`` made."""
    frozen = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name and not parameter.requires_grad:
            frozen.update(name.encode() + b"\0" + parameter.detach().cpu().numpy().tobytes())
    tensors = tuple(TensorSpec(name, tuple(p.shape)) for name, p in trainable(model).items())
    return AdapterTable(tensors, frozen.hexdigest())


def read_vector(model: nn.Module) -> Vector:
    """The trainable state, (P,) float32, in table order."""
    parts = [p.detach().float().cpu().numpy().ravel() for p in trainable(model).values()]
    return np.concatenate(parts)


def write_vector(model: nn.Module, vector: Vector) -> None:
    """Set the trainable state from a (P,) vector in table order.

    Raises:
        UpdateRejected: the vector has another length.
    """
    parameters = trainable(model)
    size = sum(p.numel() for p in parameters.values())
    if vector.shape != (size,):
        raise UpdateRejected(f"adapter vector must have shape ({size},), got {vector.shape}")
    offset = 0
    with torch.no_grad():
        for parameter in parameters.values():
            part = torch.tensor(vector[offset : offset + parameter.numel()])
            parameter.copy_(part.view(parameter.shape))
            offset += parameter.numel()


def vector_sha256(vector: Vector) -> str:
    """The sha256 of the vector's little-endian float32 bytes."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


def save_adapter(model: PeftModel, tokenizer: Any, folder: Path, base: str) -> None:  # noqa: ANN401
    """Write a folder that ``PeftModel.from_pretrained`` loads, the tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)
    tokenizer.save_pretrained(str(folder))
