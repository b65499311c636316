"""HTML and SVG elements in which every string from outside is escaped by construction.

Only ``element`` makes ``Markup``; anything else that becomes a child or an attribute is escaped, so
a site or a label named ``<script>`` is shown, not run. Not covered: which tags make sense together.
"""

import base64
import hashlib
import html
import re

VOID = frozenset({"meta", "link", "wbr", "line", "circle", "rect", "path"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None


def element(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """Return ``<tag ...>children</tag>``.

    Attribute names are Python's: ``class_`` is class, ``stroke_width`` is stroke-width. Children
    and attributes that are None are left out.

    >>> element("td", "a < b", class_="num")
    '<td class="num">a &lt; b</td>'
    """
    inner = join(*children)
    words = "".join(
        f' {_name(key)}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in VOID and not inner:
        return Markup(f"<{tag}{words}>" if tag in {"meta", "link", "wbr"} else f"<{tag}{words}/>")
    return Markup(f"<{tag}{words}>{inner}</{tag}>")


def join(*children: Child) -> Markup:
    """Put children after one another, each escaped unless it is markup."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child))
            for child in children
            if child is not None
        )
    )


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after a joint, or else after 24 characters.

    >>> breakable("lost_card")
    'lost_<wbr>card'
    """
    pieces = re.findall(r"[^_./-]{1,24}[_./-]*|[_./-]{1,24}", name)
    return join(*[part for piece in pieces for part in (element("wbr"), piece)][1:])


def style_element(css: str) -> Markup:
    """A style element; ``css`` is ours and goes in as it is, for its hash to match."""
    return Markup(f"<style>{css}</style>")


def page_head(title: str, css: str) -> Markup:
    """A page's head: a policy that forbids script and fetching, and lets this style in alone."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        style_element(css),
    )


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 2):g}"


def table(heads: list[Markup], rows: list[Markup]) -> Markup:
    """A table that scrolls by itself where it is too wide."""
    head = element("thead", element("tr", *heads))
    return element("div", element("table", head, element("tbody", *rows)), class_="scroll")
