"""The trained tensors of K sites side by side, (K, P) in the order of the flat vector.

A site of a smaller rank has its own tensors in the first rows of A and the first columns of B, and
zeros behind: these take no gradient and no noise, and the scale of its product is its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.adapter import Vector
from common.errors import InvalidInput
from common.privacy.buffer import Buffer


class Stack:
    """K sites' values of a model's trainable parameters.

    Attributes:
        values: (K, P), on the model's device; a site's row is its state.
        ranks: each site's, or ``None`` where all have the model's.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        starts: Sequence[Vector],
        ranks: Sequence[int] | None = None,
    ) -> None:
        """Stack ``starts``, each (P,) of its site's own rank.

        Raises:
            InvalidInput: a start of another length, or a rank beyond the model's.
        """
        self._columns: dict[int, tuple[slice, torch.Size]] = {}
        offset = 0
        for parameter in parameters.values():
            columns = slice(offset, offset + parameter.numel())
            self._columns[id(parameter)] = columns, parameter.shape
            offset = columns.stop
        self.size, some = offset, next(iter(parameters.values()))
        self._rank = _model_rank(parameters)
        full = ranks is None or all(rank == self._rank for rank in ranks)
        self.ranks = None if full else tuple(ranks or ())
        self._own = {
            rank: _own_columns(parameters, rank).to(some.device) for rank in set(self.ranks or ())
        }
        self.values = torch.zeros(len(starts), self.size, dtype=some.dtype, device=some.device)
        for place, start in enumerate(starts):
            self.put(self.values, place, torch.from_numpy(np.array(start)).to(some.device))

    def own(self, place: int) -> Tensor | None:
        """Which columns a site has, (P_k,) ascending; ``None`` for all."""
        return None if self.ranks is None else self._own[self.ranks[place]]

    def padding(self, place: int) -> Tensor:
        """Whether a column is one that a site has not, (P,)."""
        found = torch.zeros(self.size, dtype=torch.bool, device=self.values.device)
        own = self.own(place)
        return found if own is None else ~found.index_fill(0, own, value=True)

    def put(self, rows: Tensor, place: int, vector: Tensor) -> None:
        """Write a site's (P_k,) numbers into its row of (K, P) ``rows``.

        Raises:
            InvalidInput: they are not as many as the site has.
        """
        own = self.own(place)
        size = self.size if own is None else len(own)
        if vector.shape != (size,):
            raise InvalidInput(
                f"adapter vector must have shape ({size},), got {tuple(vector.shape)}"
            )
        if own is None:
            rows[place] = vector.to(rows.dtype)
        else:
            rows[place, own] = vector.to(rows.dtype)

    def take(self, rows: Tensor, place: int) -> Tensor:
        """A site's (P_k,) numbers out of its row of (K, P) ``rows``."""
        own = self.own(place)
        return rows[place] if own is None else rows[place].index_select(0, own)

    def scales(self) -> Tensor | None:
        """Each site's factor to the model's own scaling alpha / r, (K,); ``None`` for ones."""
        if self.ranks is None:
            return None
        factors = [self._rank / rank for rank in self.ranks]
        return torch.tensor(factors, dtype=self.values.dtype, device=self.values.device)

    def holds(self, parameter: Tensor | None) -> bool:
        """Whether a parameter trains, so that each site has its own."""
        return id(parameter) in self._columns

    def of(self, parameter: Tensor) -> Tensor:
        """All sites' values of a parameter, a view of (K, *parameter.shape)."""
        columns, shape = self._columns[id(parameter)]
        return self.values[:, columns].view(len(self.values), *shape)


class Rows:
    """A pass under way: which site each of its n rows is of, and where their gradients go.

    Attributes:
        stack: whose tensors the rows take.
        buffer: (n, P) per-row gradients.
        sites: (n,) each row's place in the stack.
        factors: each row's factor to the scale of a product BA, (n, 1, 1), or ``None`` for ones.
    """

    def __init__(self, stack: Stack, buffer: Buffer) -> None:
        self.stack, self.buffer = stack, buffer
        self._scales = stack.scales()
        self.open(torch.zeros(0, dtype=torch.long, device=stack.values.device))

    def open(self, sites: Tensor) -> None:
        """Begin a pass over rows of these sites, (n,)."""
        self.sites = sites
        self.buffer.open(len(sites))
        self.factors = None if self._scales is None else self._scales[sites].view(-1, 1, 1)

    def of(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A parameter as each row has it, (n, *shape); as it is, (1, *shape), where none trains."""
        if not self.stack.holds(parameter):
            return parameter.detach().to(dtype).unsqueeze(0)
        return self.stack.of(parameter).index_select(0, self.sites).to(dtype)

    def close(self) -> Tensor:
        """The (n, P) gradients of the pass; zero where a row's site has no such number."""
        gradients = self.buffer.close()
        if self.stack.ranks is not None:
            for row, place in zip(gradients, self.sites.tolist(), strict=True):
                row.masked_fill_(self.stack.padding(place), 0)
        return gradients


def _model_rank(parameters: Mapping[str, nn.Parameter]) -> int:
    """The rank of the model's LoRA tensors that train; 0 where none does."""
    found = {_rank_of(name, p) for name, p in parameters.items()} - {0}
    return max(found, default=0)


def _rank_of(name: str, parameter: nn.Parameter) -> int:
    if ".lora_A." in name:
        return int(parameter.shape[0])
    return int(parameter.shape[1]) if ".lora_B." in name else 0


def _own_columns(parameters: Mapping[str, nn.Parameter], rank: int) -> Tensor:
    """The columns of the flat vector that a site of ``rank`` has, ascending."""
    return torch.cat(list(_parts(parameters, rank)))


def _parts(parameters: Mapping[str, nn.Parameter], rank: int) -> Iterable[Tensor]:
    offset = 0
    for name, parameter in parameters.items():
        places = torch.arange(offset, offset + parameter.numel()).view(parameter.shape)
        most = _rank_of(name, parameter)
        if most and not 1 <= rank <= most:
            raise InvalidInput(f"rank must be at least 1 and at most {most}, got {rank}")
        if most:
            places = places[:rank] if ".lora_A." in name else places[:, :rank]
        yield places.reshape(-1)
        offset += parameter.numel()
