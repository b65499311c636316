"""Line charts and bars as SVG: labelled at the line, ticks at round numbers, coloured by CSS.

Not covered: anything but values over rounds; zoom; more than a few lines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.documents.markup import Markup, element, join

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 34, 116, 16, 34
LABEL_GAP = 16
DOTS_UP_TO = 30


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, CSS class, figures for people, and values by round (None: not measured)."""

    name: str
    style: str
    points: tuple[tuple[int, float | None], ...]
    words: tuple[str, ...]

    @property
    def measured(self) -> tuple[tuple[int, float], ...]:
        """The points that have a value."""
        return tuple((x, y) for x, y in self.points if y is not None)


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot's area: rounds 0 to ``x_max`` across, 0 to ``y_max`` upwards."""

    x_max: int
    y_max: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.y_max


def line_chart(
    series: Sequence[Series], *, summary: str, y_max: float, target: tuple[float, str] | None = None
) -> Markup:
    """Draw lines over rounds.

    Args:
        series: first the one that matters most; drawn last, so on top.
        summary: what a person who does not see the chart is told.
        y_max: the largest value to fit.
        target: a level to mark, and its label.
    """
    last = max((x for line in series for x, _ in line.points), default=0)
    ticks = round_ticks(y_max)
    frame = Frame(x_max=max(last, 1), y_max=max(y_max, ticks[-1]))
    return element(
        "svg",
        _grid(frame, ticks),
        _rounds(frame),
        _target(frame, target) if target else None,
        *(_line(frame, line) for line in reversed(series)),
        *_end_labels(frame, series),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=summary,
        class_="chart",
    )


def bar(value: float, style: str = "") -> Markup:
    """A small bar of ``value`` in 0 to 1; the figure beside it is what a reader hears."""
    return element(
        "svg",
        element("rect", width=100, height=8, rx=1, class_="track"),
        element("rect", width=100 * value, height=8, rx=1, class_="fill"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        class_=f"bar {style}".strip(),
        aria_hidden="true",
    )


def round_ticks(highest: float, most: int = 5) -> tuple[float, ...]:
    """At most ``most`` + 1 ticks from 0 at multiples of 1, 2 or 5 times a power of ten.

    The last is the largest that does not pass ``highest``.

    >>> round_ticks(1.0), round_ticks(8.4)
    ((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 2.0, 4.0, 6.0, 8.0))
    """
    raw = highest / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    count = math.floor(highest / step + 1e-9)
    return tuple(round(step * index, 10) for index in range(count + 1))


def round_numbers(last: int, most: int = 6) -> tuple[int, ...]:
    """Whole rounds to mark from 0 to ``last``, the last one always.

    >>> round_numbers(3), round_numbers(100), round_numbers(47)
    ((0, 1, 2, 3), (0, 20, 40, 60, 80, 100), (0, 10, 20, 30, 40, 47))
    """
    step = max(1, round(round_ticks(max(last, 1), most)[1]))
    marks = [mark for mark in range(0, last, step) if last - mark >= 0.5 * step]
    return (*marks, last)


def _grid(frame: Frame, ticks: Sequence[float]) -> Markup:
    places = 0 if all(tick == int(tick) for tick in ticks) else 1 if ticks[1] >= 0.1 else 2
    parts: list[Markup] = []
    for tick in ticks:
        y = frame.y(tick)
        style = "axis" if tick == 0 else "gridline"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_=style))
        words = f"{tick:,.{places}f}" if tick else "0"
        parts.append(element("text", words, x=LEFT - 8, y=y + 4, text_anchor="end", class_="tick"))
    return join(*parts)


def _rounds(frame: Frame) -> Markup:
    marks = [
        element("text", mark, x=frame.x(mark), y=HEIGHT - 14, text_anchor="middle", class_="tick")
        for mark in round_numbers(frame.x_max)
    ]
    return join(
        *marks, element("text", "round", x=WIDTH - RIGHT + 20, y=HEIGHT - 14, class_="tick")
    )


def _target(frame: Frame, target: tuple[float, str]) -> Markup:
    value, words = target
    y = frame.y(value)
    return join(
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="target"),
        element("text", words, x=LEFT + 6, y=y + 15, class_="note"),
    )


def _line(frame: Frame, line: Series) -> Markup:
    spots = [(frame.x(x), None if y is None else frame.y(y)) for x, y in line.points]
    dots = [
        element(
            "g",
            element("circle", cx=x, cy=y, r=2.8, class_="dot"),
            element("circle", element("title", words), cx=x, cy=y, r=8, class_="hit"),
        )
        for (x, y), words in zip(spots, line.words, strict=True)
        if y is not None
    ]
    crowded = " crowded" if len(dots) > DOTS_UP_TO else ""
    stroke = element("path", d=_path(spots), class_="stroke") if len(dots) > 1 else None
    return element("g", stroke, *dots, class_=f"series {line.style}{crowded}")


def _path(spots: Sequence[tuple[float, float | None]]) -> str:
    """Straight pieces between neighbours that were measured."""
    words, pen = [], "M"
    for x, y in spots:
        if y is None:
            continue
        words.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(words)


def _end_labels(frame: Frame, series: Sequence[Series]) -> list[Markup]:
    """Name each line at its end, apart enough to be read."""
    ends = [(line, line.measured[-1]) for line in series if line.measured]
    ends.sort(key=lambda end: -end[1][1])
    heights = _spread([frame.y(y) for _, (_, y) in ends])
    return [
        element(
            "text",
            element("tspan", line.words[-1].rsplit(" ", 1)[-1], class_="value"),
            element("tspan", f" {line.name}"),
            x=frame.x(x) + 10,
            y=height + 4,
            class_=f"end {line.style}",
        )
        for (line, (x, _)), height in zip(ends, heights, strict=True)
    ]


def _spread(heights: list[float]) -> list[float]:
    """Push labels (top first) down until none touches, then back up if they leave the frame."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_GAP) if placed else height)
    excess = placed[-1] - (HEIGHT - BOTTOM - 2) if placed else 0
    return [height - max(0.0, excess) for height in placed]
