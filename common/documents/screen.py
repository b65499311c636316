"""A sheet as one HTML file: no script, nothing fetched, in the report's look.

Not covered: navigation between documents beyond the cover's links.
"""

from importlib.resources import files

from common.documents.markup import Markup, breakable, element, join, page_head, table
from common.documents.sheet import (
    Alarm,
    Block,
    Bullets,
    Code,
    Figure,
    Link,
    Prose,
    Section,
    Sheet,
    Table,
    shown,
)

_CSS = ("style.css", "documents.css")


def html_of(sheet: Sheet) -> bytes:
    """The whole page, UTF-8."""
    css = _css()
    main = element(
        "main",
        _head(sheet),
        *(_section(part) for part in sheet.sections),
        element("footer", element("p", _words(sheet.foot), class_="soft small")),
    )
    page = element(
        "html",
        page_head(shown(f"{sheet.title}: {sheet.kind}"), css),
        element("body", main),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n".encode()


def _css() -> str:
    return "".join(files("common.documents").joinpath(name).read_text("utf-8") for name in _CSS)


def _head(sheet: Sheet) -> Markup:
    circles = [element("circle", cx=x, cy=8, r=6.5) for x in (8, 12, 16)]
    mark = element("svg", *circles, viewBox="0 0 24 16", class_="mark", aria_hidden="true")
    return element(
        "header",
        element("div", mark, f"Veiltune · {sheet.kind}", class_="eyebrow"),
        element("h1", _words(sheet.title)),
        element("p", _words(" · ".join(sheet.facts)), class_="facts") if sheet.facts else None,
        _alarm(sheet.alarm) if sheet.alarm else None,
        _figures(sheet.figures) if sheet.figures else None,
    )


def _alarm(alarm: Alarm) -> Markup:
    return element(
        "div",
        element("strong", _words(alarm.title)),
        element("p", _words(alarm.text)),
        class_="banner",
        role="alert",
    )


def _figures(figures: tuple[Figure, ...]) -> Markup:
    rows = [
        element(
            "div",
            element("dt", _words(f.name)),
            element("dd", _words(f.value)),
            class_=f.style or None,
        )
        for f in figures
    ]
    return element("dl", *rows, class_="figures")


def _section(part: Section) -> Markup:
    style = "new-page" if part.on_new_page else None
    blocks = (_block(block) for block in part.blocks)
    return element("section", element("h2", part.title), *blocks, class_=style)


def _block(block: Block) -> Markup:
    if isinstance(block, Prose):
        return element("p", _words(block.text), class_="prose")
    if isinstance(block, Bullets):
        items = [element("li", _words(item)) for item in block.items]
        return element("ul", *items, class_="prose")
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Alarm):
        return _alarm(block)
    pairs = [
        part
        for term, words in block.pairs
        for part in (element("dt", _words(term)), element("dd", _words(words)))
    ]
    return element("dl", *pairs, class_="terms")


def _table(block: Table) -> Markup:
    heads = [
        element("th", _words(name), class_="num" if at in block.numeric else None)
        for at, name in enumerate(block.heads)
    ]
    return table(heads, [_row(row, block.numeric) for row in block.rows])


def _row(row: tuple[str, ...], numeric: frozenset[int]) -> Markup:
    cells = [element("th", _words(row[0]), scope="row")]
    for at, words in enumerate(row[1:], start=1):
        cells.append(element("td", _words(words), class_="num" if at in numeric else None))
    return element("tr", *cells)


def _words(text: str) -> Markup:
    """Words as they are, a code in its own face; a long name may be broken."""
    if isinstance(text, Code):
        return element("code", shown(text))
    if isinstance(text, Link):
        return element("a", shown(text), href=text.href)
    words = (breakable(word) if len(word) > 24 else join(word) for word in shown(text).split(" "))
    return Markup(" ".join(words))
