"""A sweep as one HTML page: the leaderboard, and its score over epsilon, bytes and rounds.

It holds no script and fetches nothing, as the report of a run (``server/report``), whose style it
has.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from common.documents.markup import Markup, element, join, page_head, table
from common.files import write_file
from simulations.charts import Line, Point, chart, numbers, places, powers
from simulations.leaderboard import Standing

_PALETTE = (
    ("#12607a", "#5fb4cd"),
    ("#a5561d", "#df9a5f"),
    ("#6b4f86", "#b79ccb"),
    ("#3f7d3a", "#86c47f"),
    ("#a3201d", "#e2736f"),
    ("#7a6a12", "#cdbb55"),
    ("#1f4fa3", "#7fa6ea"),
    ("#8a3d6b", "#d98cba"),
)


def write_page(found: Sequence[Standing], name: str, measure: str, path: Path) -> None:
    """Write the page of a sweep, whole or not at all.

    Raises:
        StorageFailed: the disk refused.
    """
    write_file(path, page(found, name, measure).encode(), mode=0o644)


def page(found: Sequence[Standing], name: str, measure: str) -> str:
    """The whole document."""
    css = files("common.documents").joinpath("style.css").read_text("utf-8") + _colours()
    runs = sum(standing.seeds for standing in found)
    body = element(
        "main",
        element(
            "header",
            element("div", "Veiltune, simulated federations", class_="eyebrow"),
            element("h1", f"{name}: {len(found)} settings"),
            element("p", _lede(runs, measure), class_="lede"),
        ),
        element("section", element("h2", "Leaderboard"), _board(found, measure)),
        element("section", element("h2", "What it costs"), _plots(found, measure)),
    )
    document = element("html", page_head(f"{name}: sweep", css), element("body", body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _lede(runs: int, measure: str) -> str:
    return (
        f"{runs} runs; {measure} on the public hold-out, mean over seeds with Student's 95 % "
        "interval. The best of many settings looks better than it is."
    )


def _colours() -> str:
    light = "".join(f".colour{i} {{ color: {day}; }}\n" for i, (day, _) in enumerate(_PALETTE))
    dark = "".join(f".colour{i} {{ color: {night}; }}\n" for i, (_, night) in enumerate(_PALETTE))
    return (
        ".whisker { stroke: currentColor; stroke-width: 1.4; opacity: .55; }\n"
        ".chart text.end { fill: currentColor; }\n"
        ".plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }\n"
        f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    )


def _board(found: Sequence[Standing], measure: str) -> Markup:
    heads = [
        element("th", words, class_="num" if i else None, scope="col")
        for i, words in enumerate(
            ("setting", measure, "95 %", "seeds", "epsilon", "bytes up", "rounds", "seconds")
        )
    ]
    return table(heads, [_row(standing) for standing in found])


def _row(standing: Standing) -> Markup:
    cells = (
        f"{standing.score:.3f}",
        "-" if standing.half_width is None else f"± {standing.half_width:.3f}",
        str(standing.seeds),
        _epsilon(standing),
        f"{standing.bytes_up:,.0f}",
        f"{standing.rounds:g}",
        f"{standing.seconds:.1f}",
    )
    return element(
        "tr",
        element("th", standing.name, scope="row"),
        *(element("td", cell, class_="num") for cell in cells),
    )


def _epsilon(standing: Standing) -> str:
    return "none" if standing.epsilon is None else f"{standing.epsilon:.3g}"


def _plots(found: Sequence[Standing], measure: str) -> Markup:
    colours = {name: i for i, name in enumerate(dict.fromkeys(s.name for s in found))}
    shown = [_over_epsilon(found, colours, measure), _over_bytes(found, colours, measure)]
    shown.append(_over_rounds(found, colours, measure))
    return element("div", *shown, class_="plots")


def _point(standing: Standing, x: float) -> Point:
    words = f"{standing.name}, epsilon {_epsilon(standing)}: {standing.score:.3f}"
    return Point(x, standing.score, standing.half_width, words)


def _over_epsilon(found: Sequence[Standing], colours: dict[str, int], measure: str) -> Markup:
    ordered = sorted(found, key=lambda s: math.inf if s.epsilon is None else s.epsilon)
    names = list(dict.fromkeys(_asked(s) for s in ordered))
    lines = [
        Line(
            name,
            colour,
            tuple(_point(s, names.index(_asked(s))) for s in ordered if s.name == name),
        )
        for name, colour in colours.items()
    ]
    drawn = chart(lines, places("epsilon", names), f"{measure} over epsilon")
    return _figure(drawn, f"{measure} over epsilon", "of each site; none is without privacy")


def _asked(standing: Standing) -> str:
    """The epsilon that was asked for, or what was spent where that was not varied."""
    asked = standing.setting.get("privacy.epsilon")
    return _epsilon(standing) if asked is None else str(asked)


def _over_bytes(found: Sequence[Standing], colours: dict[str, int], measure: str) -> Markup:
    rising = sorted(found, key=lambda s: s.score)
    lines = [
        Line(
            name,
            colour,
            tuple(_point(s, math.log10(max(s.bytes_up, 1))) for s in rising if s.name == name),
            is_joined=False,
        )
        for name, colour in colours.items()
    ]
    axis = powers("bytes up", [max(s.bytes_up, 1) for s in found])
    drawn = chart(lines, axis, f"{measure} over bytes sent by sites")
    return _figure(drawn, f"{measure} over bytes", "that all sites sent in the whole job")


def _over_rounds(found: Sequence[Standing], colours: dict[str, int], measure: str) -> Markup:
    best = {s.name: s for s in reversed(found)}  # each name's best standing
    lines = [
        Line(
            name,
            colour,
            tuple(
                Point(i, y, None, f"{name}, round {i}: {y:.3f}")
                for i, y in enumerate(best[name].by_round, start=1)
            ),
        )
        for name, colour in colours.items()
    ]
    last = max(len(line.points) for line in lines)
    drawn = chart(lines, numbers("round", last), f"{measure} after each round")
    return _figure(
        drawn, f"{measure} after each round", "each name's best setting, mean over seeds"
    )


def _figure(drawn: Markup, title: str, words: str) -> Markup:
    caption = element("figcaption", join(element("b", title), f", {words}"))
    return element("figure", drawn, caption)
