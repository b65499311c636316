"""Which words of a record can be read off one site's update.

The gradient of a linear map is a sum over tokens, so its rows span what the tokens put into it: in
the first layer each input follows from one token and its place alone, and every token of the
vocabulary can be tried at every place. Where a record has fewer tokens than the adapter's rank, the
true ones lie in the span and no other does. Source: the span check of Petrov et al. (2024),
https://arxiv.org/abs/2405.15586, here for the gradient of LoRA's B, which sees tokens through A.

Not covered: records of more tokens than the rank, steps of several records and adapters of later
layers, for which this attack finds less; stronger attacks that search or train on priors.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an attack read.

    Attributes:
        tokens: (T,) the likeliest token at each place.
        residuals: (T,) how far each lies outside the span, as a share of its length.
    """

    tokens: NDArray[np.int64]
    residuals: Floats

    def right(self, truth: Sequence[int]) -> int:
        """How many tokens are those of the record, each at its place."""
        return int((self.tokens == np.asarray(truth)).sum())


def span(gradient: Floats, tokens: int) -> Floats:
    """An orthonormal basis (tokens, r) of what the inputs make of a gradient's rows (m, r)."""
    _, _, rows = np.linalg.svd(gradient, full_matrices=False)
    basis: Floats = rows[:tokens]
    return basis


def outside(inputs: Floats, basis: Floats) -> Floats:
    """The share of each input's length that lies outside the span, (...) for inputs (..., r)."""
    inside = np.linalg.norm(inputs @ basis.T, axis=-1) ** 2
    whole = np.maximum(np.linalg.norm(inputs, axis=-1) ** 2, 1e-300)
    share: Floats = np.sqrt(np.clip(1 - inside / whole, 0, 1))
    return share


class Reader:
    """Finds the token whose input lies closest to every span, at each place.

    Args:
        bases: one (T, r) for each matrix.
    """

    def __init__(self, bases: Sequence[Floats]) -> None:
        self._bases, self._seen = bases, 0
        places = len(bases[0])
        self._least = np.full(places, np.inf)
        self._tokens = np.zeros(places, dtype=np.int64)

    def take(self, inputs: Sequence[Floats]) -> None:
        """Try the next tokens: what they put into every matrix at every place, (v, T, r) each."""
        pairs = zip(inputs, self._bases, strict=True)
        far = np.sum([outside(tried, basis) for tried, basis in pairs], axis=0)
        nearest = far.argmin(axis=0)
        least = far[nearest, np.arange(far.shape[1])]
        self._tokens = np.where(least < self._least, nearest + self._seen, self._tokens)
        self._least = np.minimum(least, self._least)
        self._seen += len(far)

    def recovered(self) -> Recovered:
        """What was found among all that were tried."""
        return Recovered(self._tokens, self._least / len(self._bases))


_WIDTH, _LINE, _GAP = 960, 30, 8
_GLYPH = 8.6  # pixels of a character of 14 px monospace


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the picture: a heading, words, and which of them are the record's own."""

    heading: str
    words: Sequence[str]
    right: Sequence[bool]


def picture(title: str, rows: Sequence[Row], note: str) -> str:
    """The record beside what was read of it, as SVG that fetches nothing."""
    parts, y = [], 64.0
    for row in rows:
        parts.append(f'<text class="head" x="24" y="{y}">{html.escape(row.heading)}</text>')
        y += 12
        placed = list(_placed(row))
        for x, line, width, word, right in placed:
            top = y + line * (_LINE + _GAP)
            kind = "right" if right else "wrong"
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{_LINE}" rx="4"/>'
                f'<text class="word" x="{x + width / 2:.1f}" y="{top + 20:.1f}">'
                f"{html.escape(word)}</text>"
            )
        y += (placed[-1][1] + 1 if placed else 1) * (_LINE + _GAP) + 32
    parts.append(f'<text class="note" x="24" y="{y - 8:.1f}">{html.escape(note)}</text>')
    height = y + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}" font-family="sans-serif">{_STYLE}'
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>'
        f'<text class="title" x="24" y="32">{html.escape(title)}</text>{"".join(parts)}</svg>\n'
    )


_STYLE = (
    "<style>.title{font-size:18px;font-weight:600;fill:#1d2733}"
    ".head{font-size:14px;font-weight:600;fill:#1d2733}.note{font-size:13px;fill:#52606d}"
    ".word{font-size:14px;font-family:monospace;text-anchor:middle;fill:#1d2733}"
    ".right{fill:#f7c9b6;stroke:#b8431a}.wrong{fill:#eef1f4;stroke:#c5ced6}</style>"
)


def _placed(row: Row) -> Iterator[tuple[float, int, float, str, bool]]:
    """Each word's x, line and width."""
    x, line = 24.0, 0
    for word, right in zip(row.words, row.right, strict=True):
        width = max(28.0, len(word) * _GLYPH + 14)
        if x + width > _WIDTH - 24:
            x, line = 24.0, line + 1
        yield x, line, width, word, right
        x += width + _GAP
