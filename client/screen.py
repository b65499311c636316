"""Tables and lines on a site's terminal. What they hold is printed as text, never as markup.

Words that came from elsewhere move no cursor: what is not printable is shown escaped.
"""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.words import escaped

_WIDTH = 160  # of a file or a pipe, which has none


def table(names: Sequence[str], rows: Iterable[Sequence[object]], numbers: str = "") -> Table:
    """Aligned columns without lines; no heading when ``names`` are all empty.

    Args:
        names: of the columns.
        rows: a cell may be a styled ``Text``.
        numbers: names, separated by spaces, of columns that are set to the right.
    """
    made = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(names)
    )
    for name in names:
        right = name and name in numbers.split()
        made.add_column(name, overflow="fold", justify="right" if right else "left")
    for row in rows:
        made.add_row(*(_cell(cell) for cell in row))
    return made


def show(content: Table | Text) -> None:
    """Print to stdout, as wide as the terminal is."""
    width = None if sys.stdout.isatty() else _WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    if isinstance(content, Text):
        lines = "\n".join(escaped(line) for line in content.plain.split("\n"))
        content = Text(lines, content.style)
    console.print(content, soft_wrap=isinstance(content, Text))


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return Text(escaped(value.plain), value.style)
    return Text(escaped(str(value)))
