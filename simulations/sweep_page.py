"""A sweep as one HTML page: the leaderboard, and its score over epsilon, rounds and bytes.

It holds no script and fetches nothing, as the report of a run (``server/report``), whose style it
has.
"""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from common.documents.markup import Markup, element, join, page_head, table
from common.files import write_file
from common.words import counted
from simulations.axes import EPSILON
from simulations.charts import Line, Point, chart, numbers, places, powers
from simulations.leaderboard import (
    Failure,
    Standing,
    epsilon_of,
    failed_row,
    heads,
    row,
    without_result,
)

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
_FAILED = _PALETTE[4]
_Words = tuple[str, str, str]  # what is measured, the axis, and what that counts


def write_page(
    found: Sequence[Standing], name: str, measure: str, path: Path, failed: Sequence[Failure] = ()
) -> None:
    """Write the page of a sweep, whole or not at all.

    Raises:
        StorageFailed: the disk refused.
    """
    write_file(path, page(found, name, measure, failed).encode(), mode=0o644)


def page(found: Sequence[Standing], name: str, measure: str, failed: Sequence[Failure] = ()) -> str:
    """The whole document."""
    css = files("common.documents").joinpath("style.css").read_text("utf-8") + _colours()
    settings = len(found) + len(without_result(found, failed))
    body = element(
        "main",
        element(
            "header",
            element("div", "Veiltune, simulated federations", class_="eyebrow"),
            element("h1", f"{name}: {counted(settings, 'setting')}"),
            element("p", _lede(found, failed, measure), class_="lede"),
        ),
        element("section", element("h2", "Leaderboard"), _board(found, failed, measure)),
        _failures(failed),
        _costs(found, measure),
    )
    document = element("html", page_head(f"{name}: sweep", css), element("body", body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _lede(found: Sequence[Standing], failed: Sequence[Failure], measure: str) -> str:
    runs = sum(standing.seeds for standing in found) + len(failed)
    without = f", {len(failed)} without a result" if failed else ""
    return (
        f"{counted(runs, 'run')}{without}; {measure} on the public hold-out, mean over seeds with "
        "Student's 95 % interval. The best of many settings looks better than it is."
        f"{_promise(found)}"
    )


def _promise(found: Sequence[Standing]) -> str:
    """What epsilon is here: a promise, or what it would be."""
    if not found or all(standing.private for standing in found):
        return ""
    if all(standing.epsilon is None for standing in found):
        return " No run has any privacy."
    which = "No run" if not any(standing.private for standing in found) else "Not every run"
    return (
        f" {which} promises privacy to anybody: where noise comes from the seed, epsilon is what a "
        "deployment would spend."
    )


def _colours() -> str:
    light = "".join(f".colour{i} {{ color: {day}; }}\n" for i, (day, _) in enumerate(_PALETTE))
    dark = "".join(f".colour{i} {{ color: {night}; }}\n" for i, (_, night) in enumerate(_PALETTE))
    return (
        ".whisker { stroke: currentColor; stroke-width: 1.4; opacity: .55; }\n"
        ".chart text.end { fill: currentColor; }\n"
        "tr.failed th, tr.failed td { color: var(--soft); }\n"
        "tr.failed td:nth-child(2) { color: var(--failed); }\n"
        f":root {{ --failed: {_FAILED[0]}; }}\n"
        ".plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }\n"
        f"{light}@media (prefers-color-scheme: dark) {{\n"
        f":root {{ --failed: {_FAILED[1]}; }}\n{dark}}}\n"
    )


def _board(found: Sequence[Standing], failed: Sequence[Failure], measure: str) -> Markup:
    names = [
        element("th", words, class_="num" if i else None, scope="col")
        for i, words in enumerate(heads(measure))
    ]
    rows = [_row(row(standing)) for standing in found]
    rows += [
        _row(failed_row(setting, runs), "failed") for setting, runs in without_result(found, failed)
    ]
    return table(names, rows)


def _row(cells: tuple[str, ...], style: str | None = None) -> Markup:
    first, *others = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        *(element("td", cell, class_="num") for cell in others),
        class_=style,
    )


def _failures(failed: Sequence[Failure]) -> Markup | None:
    """Why runs came to nothing."""
    if not failed:
        return None
    names = [element("th", words, scope="col") for words in ("run", "why its job could not end")]
    rows = [
        element("tr", element("th", one.words, scope="row"), element("td", one.reason))
        for one in failed
    ]
    return element("section", element("h2", "Failed runs"), table(names, rows), class_="failures")


def _costs(found: Sequence[Standing], measure: str) -> Markup | None:
    """The plots, of settings whose figures are of all seeds."""
    whole = [standing for standing in found if not standing.failed]
    if not whole:
        return None
    words = "Settings with a failed run are not drawn: the mean of those that ended flatters them."
    note = element("p", words, class_="soft small") if len(whole) < len(found) else None
    return element("section", element("h2", "What it costs"), note, _plots(whole, measure))


def _plots(found: Sequence[Standing], measure: str) -> Markup:
    colours = {name: i for i, name in enumerate(dict.fromkeys(s.name for s in found))}
    up = {i: standing.bytes_up for i, standing in enumerate(found)}
    down = {i: s.bytes_down for i, s in enumerate(found) if s.bytes_down is not None}
    shown = [_over_epsilon(found, colours, measure), _over_rounds(found, colours, measure)]
    of_up = measure, "bytes up", "that all sites sent in the whole job"
    shown.append(_over_bytes(up, found, colours, of_up))
    if len(down) == len(found):  # a result of an earlier version does not say
        of_down = measure, "bytes down", "that were sent to all sites in the whole job"
        shown.append(_over_bytes(down, found, colours, of_down))
    return element("div", *shown, class_="plots")


def _point(standing: Standing, x: float) -> Point:
    words = f"{standing.name}, epsilon {epsilon_of(standing)}: {standing.score:.3f}"
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
    asked = standing.setting.get(EPSILON)
    is_without = standing.epsilon is None
    return epsilon_of(standing) if asked is None or is_without else str(asked)


def _over_bytes(
    sizes: Mapping[int, float], found: Sequence[Standing], colours: dict[str, int], words: _Words
) -> Markup:
    """Scores over ``sizes``, of each standing by its place in ``found``."""
    measure, label, caption = words
    at = [(standing, max(sizes[i], 1)) for i, standing in enumerate(found)]
    at.sort(key=lambda one: one[0].score)
    lines = [
        Line(
            name,
            colour,
            tuple(_point(s, math.log10(size)) for s, size in at if s.name == name),
            is_joined=False,
        )
        for name, colour in colours.items()
    ]
    title = f"{measure} over {label}"
    drawn = chart(lines, powers(label, [size for _, size in at]), title)
    return _figure(drawn, title, caption)


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
