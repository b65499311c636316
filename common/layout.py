"""Where each tensor of a job's adapter is in the flat vectors that travel.

The state is what a server sends; of it a site trains a part, and answers with that part's change. A
site of a lower rank than the job's (``flexlora``) takes the leading rows of A and columns of B, and
leaves the rest at zero, where gradients are zero too.

Not covered: what the numbers are (``common/initial.py``), who may send them.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import rfc8785
from numpy.typing import NDArray
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.job import Job
from common.methods import METHODS, Part

Vector = NDArray[np.float32]
Places = NDArray[np.int64]

ADAPTER = "default"
_HEAD = ".modules_to_save."


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's place in a flat vector."""

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


@dataclass(frozen=True)
class Factors:
    """One adapted matrix: the base's own (d, k) and what stands beside it.

    The change of the base is ``scaling (fold + B core A)``, the core being the identity where there
    is none.
    """

    name: str
    layer: LoraLayer
    a_name: str
    b_name: str
    core_name: str
    base_name: str

    @property
    def a(self) -> nn.Parameter:
        """A, (r, k)."""
        return self._own("lora_A")

    @property
    def b(self) -> nn.Parameter:
        """B, (d, r)."""
        return self._own("lora_B")

    @property
    def core(self) -> nn.Parameter | None:
        """The (r, r) core, where there is one."""
        held: Any = self.layer.lora_B[ADAPTER]
        if not isinstance(held, nn.Sequential):
            return None
        square: Any = held[0]
        core: nn.Parameter = square.weight
        return core

    def _own(self, kind: str) -> nn.Parameter:
        held: Any = getattr(self.layer, kind)[ADAPTER]
        last: Any = held[-1] if isinstance(held, nn.Sequential) else held
        weight: nn.Parameter = last.weight
        return weight

    @property
    def weight(self) -> nn.Parameter:
        """The base's own parameter, as its module has it."""
        module: Any = self.layer.get_base_layer()
        weight: nn.Parameter = module.weight
        return weight

    @property
    def base(self) -> Tensor:
        """The base's matrix, (d, k); a view."""
        is_transposed = isinstance(self.layer.get_base_layer(), Conv1D)
        return self.weight.detach().t() if is_transposed else self.weight.detach()

    @property
    def scaling(self) -> float:
        """Alpha / r."""
        return float(self.layer.scaling[ADAPTER])


def factors_of(model: nn.Module) -> list[Factors]:
    """Every adapted matrix of a model, by name."""
    found = []
    for name, layer in sorted(model.named_modules()):
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
            has_core = isinstance(layer.lora_B[ADAPTER], nn.Sequential)
            b, core = (".1", ".0") if has_core else ("", "")
            found.append(
                Factors(
                    name=name,
                    layer=layer,
                    a_name=f"{name}.lora_A.{ADAPTER}.weight",
                    b_name=f"{name}.lora_B.{ADAPTER}{b}.weight",
                    core_name=f"{name}.lora_B.{ADAPTER}{core}.weight" if has_core else "",
                    base_name=f"{name}.base_layer.weight",
                )
            )
    return found


@dataclass(frozen=True)
class Trained:
    """What a site trains in a round.

    Attributes:
        table: of its answer.
        places: (P,) where each number of the answer is in the state.
        within: (P,) where each is in the trained tensors side by side; ``None`` where all are.
    """

    table: AdapterTable
    places: Places
    within: Places | None = None

    @property
    def size(self) -> int:
        """P."""
        return self.table.size


@dataclass(frozen=True)
class Matrices:
    """Where the tensors of one adapted matrix are in the state; ``None`` for those that are not."""

    name: str
    scaling: float
    a: slice | None
    b: slice | None
    core: slice | None
    fold: slice | None
    rank: int
    inputs: int
    outputs: int


@dataclass(frozen=True, eq=False)
class Layout:
    """The flat state of one job; each is itself alone, and remembered by that.

    Attributes:
        method: the job's.
        rank: the job's, the largest of any site.
        table: of the state.
        parts: of each tensor in it, in its order.
        matrices: where each adapted matrix has its tensors.
    """

    method: str
    rank: int
    table: AdapterTable
    parts: tuple[Part, ...]
    matrices: tuple[Matrices, ...]

    @property
    def rounds(self) -> range:
        """One round of each kind: what a site trains repeats after these."""
        return range(1, len(METHODS[self.method].phases) + 1)

    @property
    def largest(self) -> int:
        """The most numbers that a site answers with in any round."""
        return self.trained(self.largest_round).size

    @property
    def largest_round(self) -> int:
        """The first round in which a site answers with the most numbers."""
        return max(self.rounds, key=lambda round_: self.trained(round_).size)

    def trains(self, round_: int) -> frozenset[Part]:
        """The parts that a site trains in a round."""
        return METHODS[self.method].trains(round_)

    def trained(self, round_: int, rank: int | None = None) -> Trained:
        """What a site of ``rank`` (the job's by default) trains and answers with in a round."""
        phases = len(METHODS[self.method].phases)
        return _trained(self, (round_ - 1) % phases + 1, rank or self.rank)

    def cut(self, state: Vector, rank: int | None) -> Vector:
        """The state as a site of ``rank`` starts from it, (P,): what it has not is zero."""
        if rank is None or rank == self.rank:
            return state
        kept = np.concatenate([p for p, _ in self._places(rank, frozenset(Part))])
        cut = np.zeros_like(state)
        cut[kept] = state[kept]
        return cut

    def _places(self, rank: int, parts: frozenset[Part]) -> Iterator[tuple[Places, TensorSpec]]:
        """Places in the state of the tensors of ``parts``, cut to ``rank``, and what is cut."""
        offset = 0
        for spec, part in zip(self.table.tensors, self.parts, strict=True):
            places = np.arange(offset, offset + spec.size).reshape(spec.shape)
            offset += spec.size
            if part not in parts:
                continue
            if part is Part.A:
                places = places[:rank]
            elif part is Part.B:
                places = places[:, :rank]
            yield places.ravel(), replace(spec, shape=places.shape)


@lru_cache(maxsize=64)
def _trained(layout: Layout, round_: int, rank: int) -> Trained:
    parts = layout.trains(round_)
    found = list(layout._places(rank, parts))
    places = np.concatenate([places for places, _ in found])
    table = AdapterTable(tuple(spec for _, spec in found), layout.table.frozen_sha256)
    if rank == layout.rank:
        return Trained(table, places)
    whole = np.concatenate([p for p, _ in layout._places(layout.rank, parts)])
    return Trained(table, places, np.searchsorted(whole, places))


def layout_of(model: nn.Module, job: Job) -> Layout:
    """The layout of a model on which the job's adapter has been put and filled."""
    travelling = METHODS[job.adapter.method].state
    if job.adapter.start == "svd":  # other machines' singular vectors are other bits
        travelling |= {Part.A, Part.B} if job.adapter.method == "fedsb" else {Part.A}
    every = factors_of(model)
    found = [one for one in _tensors(model, every) if one[2] in travelling]
    tensors = tuple(TensorSpec(name, tuple(tensor.shape)) for name, tensor, _ in found)
    table = AdapterTable(tensors, frozen_sha256(model, tensors))
    parts = tuple(part for *_, part in found)
    return Layout(job.adapter.method, job.adapter.rank, table, parts, _matrices(every, table))


def frozen_sha256(model: nn.Module, travelling: Sequence[TensorSpec]) -> str:
    """The sha256 over what the adapter has beside the tensors that travel."""
    frozen, moving = hashlib.sha256(), {spec.name for spec in travelling}
    for name, tensor, part in _tensors(model, factors_of(model)):
        if name not in moving and part is not Part.FOLD:
            frozen.update(name.encode() + b"\0" + tensor.detach().cpu().numpy().tobytes())
    return frozen.hexdigest()


def _tensors(model: nn.Module, every: Sequence[Factors]) -> list[tuple[str, Tensor, Part]]:
    """All that a state may hold, by name."""
    found: list[tuple[str, Tensor, Part]] = []
    for factors in every:
        found.append((factors.a_name, factors.a, Part.A))
        found.append((factors.b_name, factors.b, Part.B))
        found.append((factors.base_name, factors.base, Part.FOLD))
        if factors.core is not None:
            found.append((factors.core_name, factors.core, Part.CORE))
    for name, parameter in model.named_parameters():
        if _HEAD in name and parameter.requires_grad:
            found.append((name, parameter, Part.HEAD))
    return sorted(found, key=lambda one: one[0])


def _matrices(every: Sequence[Factors], table: AdapterTable) -> tuple[Matrices, ...]:
    ends = np.cumsum([tensor.size for tensor in table.tensors]).tolist()
    at = {
        tensor.name: slice(end - tensor.size, end)
        for tensor, end in zip(table.tensors, ends, strict=True)
    }
    return tuple(
        Matrices(
            name=factors.name,
            scaling=factors.scaling,
            a=at.get(factors.a_name),
            b=at.get(factors.b_name),
            core=at.get(factors.core_name),
            fold=at.get(factors.base_name),
            rank=factors.a.shape[0],
            inputs=factors.a.shape[1],
            outputs=factors.b.shape[0],
        )
        for factors in every
    )
