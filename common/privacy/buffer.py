"""The flat buffer that per-sample gradients are written into, one row a sample.

Not covered: parameters spread over several devices; layers that see something other than the batch
in their first dimension when it happens to be as long as the batch (position ids without a batch
dimension, T = n): the self-check on neighbours is what finds those.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import SelfCheckFailed

# Rows start 64 bytes apart or a multiple, so that every row of a parameter is aligned as any other:
# matrix products take another path by alignment, and a record would differ with its row.
_ALIGNED = 16


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    columns: slice
    shape: torch.Size


class Buffer:
    """(n, P) numbers, opened before a backward pass and complete after it.

    Every trainable parameter has its columns. What is written twice is added, as autograd adds the
    uses of a parameter, and a parameter that is never written makes ``close`` refuse.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        dtypes = {parameter.dtype for parameter in parameters.values()}
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.device = next((p.device for p in parameters.values()), torch.device("cpu"))
        self._places: dict[int, _Place] = {}
        self._written: set[int] = set()
        offset = 0
        for name, parameter in parameters.items():
            columns = slice(offset, offset + parameter.numel())
            self._places[id(parameter)] = _Place(name, columns, parameter.shape)
            offset = columns.stop
        self.size = offset
        self._whole = torch.empty(0, dtype=self.dtype, device=self.device)
        self.open(0)

    def open(self, samples: int) -> None:
        """Make room for ``samples`` rows; nothing counts as written.

        Rows of an earlier pass are overwritten.
        """
        self._written.clear()
        stride = -(-self.size // _ALIGNED) * _ALIGNED
        if self._whole.numel() < samples * stride:
            self._whole = torch.empty(samples * stride, dtype=self.dtype, device=self.device)
        whole = self._whole[: samples * stride].view(samples, stride)
        self._rows = whole[:, : self.size]

    def holds(self, parameter: Tensor | None) -> bool:
        """Whether the parameter has columns here."""
        return id(parameter) in self._places

    def names(self, parameters: Iterator[nn.Parameter]) -> list[str]:
        """The names of those parameters that have columns here."""
        return [self._places[id(p)].name for p in parameters if self.holds(p)]

    def add_outer(self, parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
        """Add each sample's sum over positions of the outer product left x right.

        Args:
            parameter: of shape (L, R).
            left: (n, ..., L).
            right: (n, ..., R).

        Raises:
            SelfCheckFailed: the first dimension of either is not n.
        """
        self.require_rows(parameter, left, right)
        place = self._places[id(parameter)]
        rows = self._rows[:, place.columns].view(len(self._rows), *place.shape)
        factors = self._positions(left).transpose(1, 2), self._positions(right)
        if id(parameter) in self._written:
            rows.baddbmm_(*factors)
        else:
            torch.bmm(*factors, out=rows)
            self._written.add(id(parameter))

    def add_positions(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add each sample's sum over positions of ``gradient``, (n, ..., *parameter.shape[-1:])."""
        self.require_rows(parameter, gradient)
        self.add(parameter, self._positions(gradient).sum(dim=1))

    def add(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add one gradient a sample, (n, *parameter.shape)."""
        self.require_rows(parameter, gradient)
        rows = self._rows[:, self._places[id(parameter)].columns]
        if id(parameter) in self._written:
            rows += gradient.flatten(1)
        else:
            rows.copy_(gradient.flatten(1))
            self._written.add(id(parameter))

    def close(self) -> Tensor:
        """The (n, P) rows, whose stride is longer than P. Sensitive.

        Raises:
            SelfCheckFailed: a parameter was never written.
        """
        for key, place in self._places.items():
            if key not in self._written:
                raise refused(place.name, place.shape, "none: was it used?")
        return self._rows

    def _positions(self, tensor: Tensor) -> Tensor:
        """(n, ..., D) as (n, positions, D), in the buffer's dtype."""
        flat = tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
        return flat.to(self.dtype)

    def require_rows(self, parameter: nn.Parameter, *tensors: Tensor) -> None:
        """Refuse a tensor whose first dimension is not the batch."""
        place = self._places[id(parameter)]
        if any(tensor.dim() < 2 or len(tensor) != len(self._rows) for tensor in tensors):
            raise refused(place.name, place.shape, "other rows")


def refused(name: str, shape: torch.Size, found: str) -> SelfCheckFailed:
    """What clipping would miss.

    A site sends its refusals to the server: how many samples there are stays out of them.
    """
    return SelfCheckFailed(
        f"per-sample gradient of {name} must have one row of shape {tuple(shape)} "
        f"a sample, got {found}"
    )
