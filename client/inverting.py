"""One site's update of one record, and what its first layer sees of every token.

The attacker's best case: the site samples one record, takes one step of plain SGD, and trains
matrices of the first layer. A job that is gentler is changed to this, and the changes are told.

Not covered: what an attacker gets of a whole round, which is less.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.audit_setting import encoded, public_records
from client.auditing import trainer_of
from client.train import Trainer
from common.adapter import Vector, load_adapter
from common.audit.inversion import Reader, Recovered, span
from common.errors import InvalidInput
from common.job import Job
from common.model import require_base
from common.tasks.batches import Example

Floats = NDArray[np.float64]

RANK = 32
_LEAST_RANK = 10  # a job's records have 8 tokens at the least
_SPARE = 2  # ranks that no token uses, or every token would lie in the span
_PART = 512  # tokens of the vocabulary that are tried at once


@dataclass(frozen=True)
class Victim:
    """A site with one record.

    Attributes:
        trainer: of the changed job.
        record: what the attacker wants to read.
        changes: what of the job was changed, in words.
    """

    trainer: Trainer
    record: Example
    changes: str


def victim(job: Job, site: str, number: int, rank: int) -> Victim:
    """The site with public record ``number``, cut to what a rank lets the attack see.

    Raises:
        InvalidInput: no such record, or a rank that is too small.
    """
    if not _LEAST_RANK <= rank <= 256:
        raise InvalidInput(f"rank must be {_LEAST_RANK} to 256, got {rank}")
    changed = _easiest(job, rank)
    adapter = load_adapter(changed, require_base(changed), "cpu")
    trainer = trainer_of(changed, adapter, site)
    # The noise of the job as it is: one of fewer steps would need less.
    noisy = replace(trainer.mechanism, noise_multiplier=job.noise_multiplier)
    trainer = replace(trainer, mechanism=noisy)
    units = encoded(changed, trainer, public_records(job))
    if not 0 <= number < len(units):
        raise InvalidInput(f"record must be 0 to {len(units) - 1}, got {number}")
    record = units[number][0]
    targets = ", ".join(changed.adapter.targets)
    changes = (
        f"one record of at most {changed.model.max_length} tokens, one step of SGD, "
        f"rank {rank} on {targets} of every layer"
    )
    return Victim(trainer, record, changes)


def _easiest(job: Job, rank: int) -> Job:
    targets = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in job.adapter.targets))
    sections = {
        "model": {"max_length": min(job.model.max_length, rank - _SPARE)},
        "adapter": {"method": "ffa", "rank": rank, "targets": targets},
        "training": {
            "local_steps": 1,
            "optimizer": "sgd",
            "momentum": 0.0,
            "weight_decay": 0.0,
        },
    }
    known = job.model_dump(exclude_none=True)
    return Job.model_validate(known | {name: known[name] | new for name, new in sections.items()})


def update_of(one: Victim, *, private: bool) -> Vector:
    """What the site hands out, (P,): with the job's clip and noise, or without any."""
    mechanism = replace(one.trainer.mechanism, sampling_rate=1.0)
    if not private:
        mechanism = replace(mechanism, clip_norm=None, noise_multiplier=0.0)
    made = replace(one.trainer, units=[[one.record]], mechanism=mechanism)
    return made.train_round(one.trainer.adapter.initial, 1)


def invert(one: Victim, updates: Sequence[Vector]) -> list[Recovered]:
    """Read the record's tokens off each update, its length being known."""
    tokens, matrices = len(one.record.input_ids), _first_layer(one.trainer)
    readers = []
    for update in updates:
        parts = [_part(one.trainer, update, f"{n}.lora_B.default.weight") for n, _ in matrices]
        readers.append(Reader([span(part, tokens) for part in parts]))
    for inputs in _candidates(one, [module for _, module in matrices]):
        for reader in readers:
            reader.take(inputs)
    return [reader.recovered() for reader in readers]


def _first_layer(trainer: Trainer) -> list[tuple[str, nn.Module]]:
    """The adapted modules that a token reaches before it meets others, with their names."""
    adapted = [
        (name, module)
        for name, module in trainer.adapter.model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    ]
    first = [(name, module) for name, module in adapted if ".0." in name]
    if not first:
        raise InvalidInput("adapter.targets must be in the first layer as well, got none there")
    return first


def _part(trainer: Trainer, update: Vector, name: str) -> Floats:
    offset = 0
    for tensor in trainer.trained(1).table.tensors:
        if tensor.name == name:
            return update[offset : offset + tensor.size].reshape(tensor.shape).astype(np.float64)
        offset += tensor.size
    raise InvalidInput(f"adapter must train {name}, got none of that name")


class _Seen(Exception):
    """Ends a forward pass."""


def _candidates(one: Victim, modules: Sequence[nn.Module]) -> Iterator[list[Floats]]:
    """What each token of the vocabulary puts into each module at every place, through its A."""
    model, device = one.trainer.adapter.model, one.trainer.adapter.device
    vocabulary = model.get_input_embeddings().num_embeddings
    places = len(one.record.input_ids)
    for first in range(0, vocabulary, _PART):
        tokens = torch.arange(first, min(first + _PART, vocabulary), device=device)
        ids = tokens[:, None].expand(-1, places).contiguous()
        yield [_seen(model, module, ids) for module in modules]


def _seen(model: nn.Module, module: nn.Module, ids: Tensor) -> Floats:
    kept: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0].detach())
        raise _Seen

    handle = module.lora_A["default"].register_forward_pre_hook(keep)  # type: ignore[index, union-attr]
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except _Seen:
        pass
    finally:
        handle.remove()
    weight = module.lora_A["default"].weight  # type: ignore[index, union-attr]
    seen: Floats = (kept[0].double() @ weight.detach().double().T).cpu().numpy()
    return seen
