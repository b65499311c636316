"""A state as a folder of files: one that ``PeftModel.from_pretrained`` loads, and read back here.

A method whose state is more than LoRA's A, B and head has a second file with the state itself,
since A and B made of it do not give it back.

Not covered: whether what is read is the job's (the callers compare hashes).
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.adapter import LoadedAdapter, read_state
from common.errors import InvalidInput
from common.layout import ADAPTER, Factors, Vector, factors_of, frozen_sha256
from common.methods import Part
from common.products import factored, product

WEIGHTS, STATE = "adapter_model.safetensors", "state.safetensors"
MOST_BYTES = 2**31

Matrix = NDArray[np.float64]


def save_adapter(adapter: LoadedAdapter, state: Vector, folder: Path, base: str) -> None:
    """Write ``state`` to a folder, the tokenizer beside it.

    Args:
        adapter: of the job; its model is in this state afterwards.
        state: (P,).
        folder: made where it is not there.
        base: what the files say the adapter belongs to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter.write(state)
    model: Any = adapter.model
    tensors, config = model.state_dict(), copy.deepcopy(model.peft_config[ADAPTER])
    if _is_more(adapter):
        save_file(_named(adapter, state), folder / STATE)
        _as_lora(adapter, state, tensors, config)
    config.base_model_name_or_path = base
    with _configured(model, config):
        model.save_pretrained(str(folder), state_dict=tensors, save_embedding_layers=False)
    adapter.tokenizer.save_pretrained(str(folder))


def read_adapter(adapter: LoadedAdapter, folder: Path) -> Vector:
    """The state in a folder that ``save_adapter`` wrote, (P,). The model is at its start then.

    Raises:
        InvalidInput: no adapter there, or one that is not of this job's form.
    """
    path = folder / (STATE if _is_more(adapter) else WEIGHTS)
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise InvalidInput(f"adapter must be a folder with {path.name} of a job, got {folder}")
    try:
        tensors = load_file(path)
        state = _of_state(adapter, tensors) if _is_more(adapter) else _of_lora(adapter, tensors)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InvalidInput(
            f"{path.name} must be an adapter of this job, got {type(error).__name__}"
        ) from error
    finally:
        adapter.write(adapter.initial)
    if state is None or not np.isfinite(state).all():
        raise InvalidInput(f"{path.name} must be an adapter of this job, got another's")
    return state


def _is_more(adapter: LoadedAdapter) -> bool:
    return bool({Part.CORE, Part.FOLD} & set(adapter.layout.parts))


def _named(adapter: LoadedAdapter, state: Vector) -> dict[str, Tensor]:
    ends = np.cumsum([spec.size for spec in adapter.table.tensors])[:-1]
    parts = np.split(state, ends)
    return {
        spec.name: torch.from_numpy(part.reshape(spec.shape).copy())
        for spec, part in zip(adapter.table.tensors, parts, strict=True)
    }


def _of_state(adapter: LoadedAdapter, tensors: dict[str, Tensor]) -> Vector | None:
    wanted = {spec.name: spec.shape for spec in adapter.table.tensors}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        return None
    return np.concatenate([tensors[name].float().numpy().ravel() for name in wanted])


def _of_lora(adapter: LoadedAdapter, tensors: dict[str, Tensor]) -> Vector | None:
    with _unchanged(adapter):
        told: Any = set_peft_model_state_dict(adapter.model, tensors)
        if told.unexpected_keys:
            return None
        if frozen_sha256(adapter.model, adapter.table.tensors) != adapter.table.frozen_sha256:
            return None
        return read_state(adapter.model, adapter.layout)


@contextmanager
def _unchanged(adapter: LoadedAdapter) -> Iterator[None]:
    """Put back what is frozen: what a file brings must not stay where it is not written again."""
    frozen = {
        parameter: parameter.detach().clone()
        for factors in factors_of(adapter.model)
        for parameter in (factors.a, factors.b)
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in frozen.items():
                parameter.copy_(values)


@contextmanager
def _configured(model: Any, config: LoraConfig) -> Iterator[None]:  # noqa: ANN401 -- peft's
    """The model under another configuration, which is what is saved."""
    before = model.peft_config[ADAPTER]
    model.peft_config[ADAPTER] = config
    try:
        yield
    finally:
        model.peft_config[ADAPTER] = before


def _as_lora(
    adapter: LoadedAdapter, state: Vector, tensors: dict[str, Tensor], config: LoraConfig
) -> None:
    """Put plain A and B in the place of what the model has, which is in ``state``."""
    for factors, matrices in zip(factors_of(adapter.model), adapter.layout.matrices, strict=True):
        if factors.core is not None:
            _without_core(factors, tensors)
        else:
            b, a = factored(product(matrices, state) * matrices.scaling)
            _replace(factors, tensors, config, a, b)


def _without_core(factors: Factors, tensors: dict[str, Tensor]) -> None:
    core = tensors.pop(factors.core_name).double()
    b = tensors.pop(factors.b_name).double() @ core
    tensors[factors.b_name.replace(".1.weight", ".weight")] = b.float()


def _replace(
    factors: Factors, tensors: dict[str, Tensor], config: LoraConfig, a: Matrix, b: Matrix
) -> None:
    """One matrix's own rank, with a scaling of 1."""
    tensors[factors.a_name] = torch.from_numpy(a.astype(np.float32))
    tensors[factors.b_name] = torch.from_numpy(b.astype(np.float32))
    name = factors.name.removeprefix("base_model.model.")
    for pattern in ("rank_pattern", "alpha_pattern"):
        getattr(config, pattern)[f"^{re.escape(name)}$"] = len(a)
