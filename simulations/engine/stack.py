"""The trained tensors of K sites side by side, (K, P) in the order of the model's flat vector.

A site of a lower rank than the model's has numbers in the leading rows of A and columns of B alone
(``common/layout.py``): the others are zero, and take no gradient and no noise.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.layout import Places
from common.privacy.buffer import Buffer


class Stack:
    """K sites' values of a model's trainable parameters, all at what the model has now.

    Attributes:
        values: (K, P), on the model's device; a site's row is its state.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], within: Sequence[Places | None]
    ) -> None:
        """Stack as many sites as there are ``within``: which of the P numbers each has."""
        self._columns: dict[int, tuple[slice, torch.Size]] = {}
        offset = 0
        for parameter in parameters.values():
            columns = slice(offset, offset + parameter.numel())
            self._columns[id(parameter)] = columns, parameter.shape
            offset = columns.stop
        self.size = offset
        start = torch.cat([p.detach().ravel() for p in parameters.values()])
        self.values = start.repeat(len(within), 1)
        self._own = [None if w is None else torch.from_numpy(w).to(start.device) for w in within]
        for place in range(len(within)):
            self.keep_own(self.values[place], place)

    def keep_own(self, row: Tensor, place: int) -> None:
        """Set what a site has not to zero in its (P,) ``row``."""
        own = self._own[place]
        if own is not None:
            others = torch.ones_like(row, dtype=torch.bool).index_fill_(0, own, 0)
            row.masked_fill_(others, 0)

    def put(self, rows: Tensor, place: int, vector: Tensor) -> None:
        """Write a site's own numbers, (P_k,), into its row of (K, P) ``rows``."""
        own = self._own[place]
        if own is None:
            rows[place] = vector
        else:
            rows[place, own] = vector.to(rows.dtype)

    def take(self, rows: Tensor, place: int) -> Tensor:
        """A site's own numbers, (P_k,), out of its row of (K, P) ``rows``."""
        own = self._own[place]
        return rows[place] if own is None else rows[place].index_select(0, own)

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
    """

    def __init__(self, stack: Stack, buffer: Buffer) -> None:
        self.stack, self.buffer = stack, buffer
        self.sites = torch.zeros(0, dtype=torch.long, device=stack.values.device)

    def open(self, sites: Sequence[int]) -> None:
        """Begin a pass over rows of these sites."""
        self.sites = torch.tensor(sites, device=self.sites.device)
        self.buffer.open(len(sites))

    def of(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """A parameter as each row has it, (n, *shape); as it is, (1, *shape), where none trains."""
        if not self.stack.holds(parameter):
            return parameter.detach().to(dtype).unsqueeze(0)
        return self.stack.of(parameter).index_select(0, self.sites).to(dtype)

    def close(self) -> Tensor:
        """The (n, P) gradients of the pass, zero where a row's site has no such number."""
        gradients = self.buffer.close()
        for row, place in zip(gradients, self.sites.tolist(), strict=True):
            self.stack.keep_own(row, place)
        return gradients
