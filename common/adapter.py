"""A job's LoRA adapter: built by peft, initialised from a public seed, moved as one flat vector.

Which tensors travel and which are trained is the method's (``common/methods.py``); where they are
in the vector is the layout's (``common/layout.py``).

Not covered: DoRA (refused by the job's schema) and LoRA on embeddings (refused here), for which
Opacus has no per-sample gradient.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.errors import InvalidInput, UpdateRejected, VeiltuneError
from common.futile import SIGNED
from common.initial import initialise
from common.job import Job
from common.layout import ADAPTER, AdapterTable, Layout, TensorSpec, Vector, factors_of, layout_of
from common.methods import METHODS, Part
from common.model import load_tokenizer, quiet_transformers
from common.privacy.persample import trainable
from common.tasks import task_of
from common.tasks.batches import Example
from common.vocabulary import require_places

__all__ = ["AdapterTable", "LoadedAdapter", "TensorSpec", "Vector", "load_adapter", "vector_sha256"]

log = structlog.get_logger(__name__)

_HEAD = ".modules_to_save.default."


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
    _require_fold(job)
    with _refused("adapter must fit the base"):
        model = get_peft_model(base, config)
    if job.adapter.method == "fedsb":
        _insert_cores(model)
    initialise(model, job, lambda name: base_name(name) in new)
    require_grad(model, METHODS[job.adapter.method].trains(1))
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


def _require_fold(job: Job) -> None:
    if Part.FOLD in METHODS[job.adapter.method].state and job.model.dtype != "float32":
        raise InvalidInput(
            f"model.dtype must be float32 with adapter.method {job.adapter.method!r} (what is "
            f"folded into coarser weights would be rounded away), got {job.model.dtype}"
        )


def _insert_cores(model: nn.Module) -> None:
    """Let B be two layers, a square one that is trained and B itself."""
    for factors in factors_of(model):
        held: Any = factors.layer.lora_B[ADAPTER]
        rank = held.in_features
        factors.layer.lora_B[ADAPTER] = nn.Sequential(nn.Linear(rank, rank, bias=False), held)


def require_grad(model: nn.Module, parts: frozenset[Part]) -> None:
    """Let gradients reach these parts of the adapter, and no other parameter."""
    for factors in factors_of(model):
        factors.a.requires_grad_(Part.A in parts)
        factors.b.requires_grad_(Part.B in parts)
        if factors.core is not None:
            factors.core.requires_grad_(Part.CORE in parts)


def _cast_head_inputs(model: nn.Module) -> None:
    """Let a bf16 base feed fp32 heads; peft does so for its own layers."""

    def cast(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.float() if isinstance(a, torch.Tensor) else a for a in arguments)

    for name, module in model.named_modules():
        if name.endswith(_HEAD.rstrip(".")):
            module.register_forward_pre_hook(cast)


@dataclass(frozen=True)
class LoadedAdapter:
    """A job's model on a device, and what both sides know of its adapter.

    Attributes:
        model: the base with the adapter; its state is whatever was written last.
        tokenizer: the base's.
        layout: where each tensor is in the state.
        initial: (P,) the public start.
        device: where the model is.
        bases: the base's own matrices, by name, where something is folded into them.
    """

    model: PeftModel
    tokenizer: Any
    layout: Layout
    initial: Vector
    device: torch.device
    bases: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def table(self) -> AdapterTable:
        """Of the state."""
        return self.layout.table

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id."""
        return int(self.tokenizer.pad_token_id or 0)

    def write(self, state: Vector) -> None:
        """Set the model to a state, (P,).

        Raises:
            UpdateRejected: it has another length.
        """
        if state.shape != (self.table.size,):
            raise UpdateRejected(
                f"adapter vector must have shape ({self.table.size},), got {state.shape}"
            )
        parameters = dict(self.model.named_parameters())
        every = factors_of(self.model) if self.bases else []
        folds = {factors.base_name: factors for factors in every}
        offset = 0
        with torch.no_grad():
            for spec in self.table.tensors:
                part = torch.tensor(state[offset : offset + spec.size]).view(spec.shape)
                offset += spec.size
                if spec.name in folds:
                    own = folds[spec.name]
                    added = self.bases[spec.name] + own.scaling * part.to(self.device)
                    own.base.copy_(added)
                else:
                    parameters[spec.name].copy_(part)

    def begin(self, round_: int) -> None:
        """Let gradients reach what is trained in a round, where that is not always the same."""
        if len(self.layout.rounds) > 1:
            require_grad(self.model, self.layout.trains(round_))


def load_adapter(job: Job, folder: Path, device: str = "auto") -> LoadedAdapter:
    """Build the job's adapter once a process: many simulated sites share one base.

    Raises:
        InvalidInput: see ``build_adapter`` and ``require_places``, or CUDA asked for and absent.
    """
    return _load_adapter(job.canonical, folder, pick_device(device))


@lru_cache(maxsize=1)
def _load_adapter(canonical: bytes, folder: Path, device: torch.device) -> LoadedAdapter:
    job = Job.model_validate_json(canonical, context=SIGNED)  # the caller's was checked
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
    layout = layout_of(model, job)
    bases = {
        factors.base_name: factors.base.clone()
        for factors in factors_of(model)
        if Part.FOLD in layout.parts
    }
    return LoadedAdapter(model, tokenizer, layout, read_state(model, layout), device, bases)


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


def read_state(model: nn.Module, layout: Layout) -> Vector:
    """The state of a model into whose base nothing is folded, (P,) float32."""
    parameters = dict(model.named_parameters())
    return np.concatenate(
        [
            np.zeros(spec.size, np.float32)
            if part is Part.FOLD
            else parameters[spec.name].detach().float().cpu().numpy().ravel()
            for spec, part in zip(layout.table.tensors, layout.parts, strict=True)
        ]
    )


def read_vector(model: nn.Module) -> Vector:
    """What gradients reach now, (P,) float32, by name."""
    parts = [p.detach().float().cpu().numpy().ravel() for p in trainable(model).values()]
    return np.concatenate(parts)


def vector_sha256(vector: Vector) -> str:
    """The sha256 of the vector's little-endian float32 bytes."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
