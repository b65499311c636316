"""Epsilon against time, for a terminal and as an SVG: a staircase below the site's maximum.

Not covered: more than one line; zoom.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from client.spending import Point

_BLOCKS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 60, 8  # of the terminal's area, in characters

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 24, 30, 36
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.name { font-weight: 600; fill: #1f2328 }
.grid { stroke: #d0d7de; stroke-width: 1 }
.most { stroke: #cf222e; stroke-width: 1; stroke-dasharray: 4 3 }
.spent { stroke: #0969da; stroke-width: 2; fill: none }
.area { fill: #0969da; opacity: 0.1 }
@media (prefers-color-scheme: dark) {
  text { fill: #8d96a0 } .name { fill: #e6edf3 } .grid { stroke: #30363d }
  .most { stroke: #ff7b72 } .spent { stroke: #58a6ff } .area { fill: #58a6ff }
}
"""


def draw(points: Sequence[Point], max_epsilon: float) -> str:
    """The staircase in block characters, with the maximum as a dashed line; at least one point."""
    top = _highest(points, max_epsilon)
    heights = [value / top * _HEIGHT for value in _sampled(points)]
    most = min(_HEIGHT - 1, math.ceil(max_epsilon / top * _HEIGHT) - 1)
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        empty = "╌" if row == most else " "
        cells = "".join(_cell(height - row, empty) for height in heights)
        lines.append(f"{_tick(row, top):>7} ┤{cells}".rstrip())
    first, last = points[0].at[:10], points[-1].at[:10]
    lines.append(f"{'0':>7} └{'─' * _WIDTH}")
    lines.append(f"{'':8}{first}{last:>{_WIDTH - len(first) + 1}}")
    return "\n".join(lines)


def svg(points: Sequence[Point], max_epsilon: float, title: str) -> str:
    """The staircase as an SVG of its own, in light and dark."""
    top = 1.08 * _highest(points, max_epsilon)
    times = [_seconds(point.at) for point in points]
    span = (times[-1] - times[0]) or 1.0

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (seconds - times[0]) / span

    def y(epsilon: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(epsilon / top, 1)

    # A staircase starts where the first charge was made, from nothing.
    steps = [f"M{x(times[0]):.1f} {y(0):.1f}V{y(points[0].epsilon):.1f}"]
    steps += [
        f"H{x(seconds):.1f}V{y(point.epsilon):.1f}"
        for seconds, point in zip(times[1:], points[1:], strict=True)
    ]
    path = "".join([*steps, f"H{WIDTH - RIGHT}"])
    last = points[-1].epsilon
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="name" x="{LEFT}" y="16">{escape(title)}</text>',
        *(_grid(y(tick), tick) for tick in _ticks(top)),
        f'<path class="area" d="{path}V{y(0):.1f}Z"/><path class="spent" d="{path}"/>',
        f'<line class="most" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(max_epsilon):.1f}" '
        f'y2="{y(max_epsilon):.1f}"/>',
        _label(WIDTH - RIGHT, y(max_epsilon) - 5, f"maximum {max_epsilon:g}"),
        _label(WIDTH - RIGHT, y(last) - 6, f"{last:.2f}", "name"),
        f'<text x="{LEFT}" y="{HEIGHT - 12}">{points[0].at[:10]}</text>',
        _label(WIDTH - RIGHT, HEIGHT - 12, points[-1].at[:10]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _highest(points: Sequence[Point], max_epsilon: float) -> float:
    """What the picture must reach; an epsilon without bound is cut off."""
    return max(max_epsilon, *(p.epsilon for p in points if math.isfinite(p.epsilon)), 0.0)


def _sampled(points: Sequence[Point]) -> list[float]:
    """The staircase's value at each column; evenly in time."""
    times = [_seconds(point.at) for point in points]
    first, span = times[0], times[-1] - times[0]
    if not span:
        return [points[-1].epsilon] * _WIDTH
    found, index = [], 0
    for column in range(_WIDTH):
        now = first + span * column / (_WIDTH - 1)
        while index + 1 < len(points) and times[index + 1] <= now:
            index += 1
        found.append(points[index].epsilon)
    return found


def _cell(filled: float, empty: str) -> str:
    eighths = round(8 * max(0.0, min(1.0, filled)))
    return _BLOCKS[eighths] if eighths else empty


def _tick(row: int, top: float) -> str:
    """The value at the upper edge of a row, for every other one."""
    return f"{(row + 1) / _HEIGHT * top:.3g}" if row % 2 else ""


def _ticks(top: float) -> list[float]:
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 1e3, math.inf)
                if top / s <= 6)  # fmt: skip
    return [step * n for n in range(int(top / step) + 1)] if math.isfinite(step) else [0.0]


def _grid(y: float, tick: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _label(LEFT - 8, y + 4, f"{tick:g}")


def _label(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="end">{words}</text>'


def _seconds(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
