"""The (n, P) buffer that a backward pass fills with per-sample gradients.

A linear layer's gradient for one sample is an outer product summed over tokens. Written for each
sample apart it takes the same multiplications as the sum over the batch that autograd would form,
and here it is formed instead of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.errors import SelfCheckFailed


class GradientBuffer:
    """Per-sample gradients of ``parameters``, flat and in their order; float32 or wider. Sensitive.

    A parameter that is used more than once adds up.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._places: dict[int, tuple[str, int]] = {}
        self.size = 0
        for name, parameter in self._parameters.items():
            self._places[id(parameter)] = (name, self.size)
            self.size += parameter.numel()
        self._written: set[int] = set()
        self.rows = torch.empty(0)

    def begin(self, samples: int) -> None:
        """Make room for a batch of ``samples``; nothing is written yet."""
        first = next(iter(self._parameters.values()))
        wide = any(p.dtype == torch.float64 for p in self._parameters.values())
        dtype = torch.float64 if wide else torch.float32
        self.rows = torch.empty((samples, self.size), dtype=dtype, device=first.device)
        self._written.clear()

    def add_outer(self, parameter: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        """Add ``scale`` times the sum over tokens of ``left`` times ``right``, for each sample.

        Args:
            parameter: whose gradient it is, (o, i).
            left: (n, ..., o).
            right: (n, ..., i).
            scale: a constant of the layer.
        """
        place = self._place(parameter, left)
        a, b = _tokens(left).to(place.dtype).transpose(1, 2), _tokens(right).to(place.dtype)
        view = place.view(-1, *parameter.shape)
        if id(parameter) in self._written:
            view.baddbmm_(a, b, alpha=scale)
        else:
            torch.bmm(a, b, out=view)
            if scale != 1:
                view.mul_(scale)
        self._written.add(id(parameter))

    def add(self, parameter: Tensor, gradients: Tensor) -> None:
        """Add ``gradients``, (n, *parameter.shape)."""
        place = self._place(parameter, gradients)
        flat = gradients.reshape(len(gradients), -1)
        if id(parameter) in self._written:
            place += flat
        else:
            place.copy_(flat)
        self._written.add(id(parameter))

    def add_over_tokens(self, parameter: Tensor, gradients: Tensor) -> None:
        """Add ``gradients``, (n, ..., o), summed over tokens: a bias' gradient."""
        self.add(parameter, _tokens(gradients).to(self.rows.dtype).sum(dim=1))

    def finish(self) -> Tensor:
        """The filled (n, P) rows.

        Raises:
            SelfCheckFailed: a parameter got no gradient: clipping would miss it.
        """
        for name, parameter in self._parameters.items():
            if id(parameter) not in self._written:
                raise wrong_rows(name, parameter, "none")
        return self.rows

    def named(self, rows: Tensor) -> dict[str, Tensor]:
        """Views of ``rows`` by parameter, (n, *parameter.shape)."""
        views = {}
        for name, parameter in self._parameters.items():
            start = self._places[id(parameter)][1]
            part = rows[:, start : start + parameter.numel()]
            views[name] = part.view(-1, *parameter.shape)
        return views

    def _place(self, parameter: Tensor, gradients: Tensor) -> Tensor:
        name, start = self._places[id(parameter)]
        if len(gradients) != len(self.rows):
            raise wrong_rows(name, parameter, "other rows")
        return self.rows[:, start : start + parameter.numel()]


def wrong_rows(name: str, parameter: Tensor, found: str) -> SelfCheckFailed:
    """The error for a parameter without a row a sample.

    A site sends its refusals to the server: how many samples there are stays out of it.
    """
    return SelfCheckFailed(
        f"per-sample gradient of {name} must have one row of shape {tuple(parameter.shape)} "
        f"a sample, got {found}"
    )


def _tokens(values: Tensor) -> Tensor:
    """(n, ..., d) as (n, T, d)."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)
