"""Lines over a few labelled places, and points over powers of ten, as SVG.

Not covered: more lines than colours; they are used again from the first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.documents.markup import Markup, element, join
from server.report.plots import round_ticks

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 44, 150, 14, 40
LABEL_GAP = 15
COLOURS = 8


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a place across, with half of its interval, and what it says to a pointer."""

    x: float
    y: float
    half_width: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Line:
    """A named line, or points alone; ``colour`` is its number among those of the page."""

    name: str
    colour: int
    points: tuple[Point, ...]
    is_joined: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """What lies across: marks at places between ``low`` and ``high``, and what they count."""

    label: str
    low: float
    high: float
    marks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Pixels from the left."""
        span = (self.high - self.low) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.low) / span


def places(label: str, names: Sequence[str]) -> Axis:
    """An axis of names, one after the other."""
    marks = tuple((float(i), name) for i, name in enumerate(names))
    return Axis(label, -0.25, len(names) - 0.75, marks)


def powers(label: str, values: Sequence[float]) -> Axis:
    """An axis of powers of ten around ``values``, which are drawn at their logarithm."""
    low = math.floor(math.log10(min(values)) - 0.05)
    high = math.ceil(math.log10(max(values)) + 0.05)
    marks = tuple((float(power), _short(10.0**power)) for power in range(low, high + 1))
    return Axis(label, low, high, marks)


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def numbers(label: str, last: int) -> Axis:
    """An axis of whole numbers from 0 to ``last``."""
    marks = tuple((tick, f"{tick:g}") for tick in round_ticks(max(last, 1), 6) if tick == int(tick))
    return Axis(label, 0, max(last, 1), marks)


def chart(lines: Sequence[Line], axis: Axis, summary: str) -> Markup:
    """The lines over the axis, from 0 to 1 upwards or as high as they go."""
    tops = [p.y + (p.half_width or 0) for line in lines for p in line.points]
    ticks = round_ticks(min(1.0, max([*tops, 0.1]) * 1.05))
    top = max(ticks[-1], max([*tops, 0.0]))
    return element(
        "svg",
        *(_level(tick, top) for tick in ticks),
        *(_mark(axis, place, words) for place, words in axis.marks),
        element("text", axis.label, x=WIDTH - RIGHT + 30, y=HEIGHT - 18, class_="tick"),
        *(_line(line, axis, top) for line in reversed(lines)),
        *_labels(lines, axis, top),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=summary,
        class_="chart",
    )


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _level(tick: float, top: float) -> Markup:
    y = _y(tick, top)
    style = "gridline" if tick else "axis"
    return join(
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_=style),
        element("text", f"{tick:g}", x=LEFT - 8, y=y + 4, text_anchor="end", class_="tick"),
    )


def _mark(axis: Axis, place: float, words: str) -> Markup:
    x, y = axis.at(place), HEIGHT - 18
    return element("text", words, x=x, y=y, text_anchor="middle", class_="tick")


def _line(line: Line, axis: Axis, top: float) -> Markup:
    spots = [(axis.at(p.x), _y(p.y, top), p) for p in line.points]
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y, _) in enumerate(spots))
    stroke = element("path", d=path, class_="stroke") if line.is_joined and len(spots) > 1 else None
    dots = [
        join(
            _whisker(x, p, top),
            element("circle", cx=x, cy=y, r=3.2, class_="dot"),
            element("circle", element("title", p.words), cx=x, cy=y, r=8, class_="hit"),
        )
        for x, y, p in spots
    ]
    return element("g", stroke, *dots, class_=f"series colour{line.colour % COLOURS}")


def _whisker(x: float, point: Point, top: float) -> Markup | None:
    if point.half_width is None:
        return None
    ends = [_y(max(0.0, point.y + sign * point.half_width), top) for sign in (-1, 1)]
    return element("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_="whisker")


def _labels(lines: Sequence[Line], axis: Axis, top: float) -> list[Markup]:
    """Each line's name at its end, apart enough to be read."""
    ends = sorted((line for line in lines if line.points), key=lambda line: -line.points[-1].y)
    placed: list[float] = []
    for line in ends:
        height = _y(line.points[-1].y, top)
        placed.append(max(height, placed[-1] + LABEL_GAP) if placed else height)
    excess = max(0.0, placed[-1] - (HEIGHT - BOTTOM)) if placed else 0.0
    return [
        element(
            "text",
            line.name,
            x=axis.at(line.points[-1].x) + 12,
            y=height - excess + 4,
            class_=f"end colour{line.colour % COLOURS}",
        )
        for line, height in zip(ends, placed, strict=True)
    ]
