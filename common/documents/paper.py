"""A sheet as a PDF (A4), by fpdf2: the same bytes whenever it is made from the same sheet.

Letters are FiraGO's (Latin, Greek, Cyrillic and more), embedded as far as they are used; a
character that it lacks is written as U+ and its number. Not covered: shaping of Arabic or Indic
scripts; tags for screen readers, for whom the HTML is.
"""

import math
import tempfile
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from fpdf import FPDF, FontFace, XPos, YPos
from fpdf.enums import Align, TableBordersLayout, VAlign, WrapMode
from fpdf.table import Table as PdfTable

from common.documents.face import FACES, drawn, face
from common.documents.printed_form import DRAWING
from common.documents.sheet import (
    Alarm,
    Block,
    Bullets,
    Code,
    Figure,
    Prose,
    Section,
    Sheet,
    Table,
    Terms,
)

# Other versions may draw otherwise, so a PDF names those that drew it.
PRODUCER = ", ".join(f"{name} {version(name)}" for name in DRAWING)
_INK, _SOFT, _RULE = (27, 36, 48), (90, 100, 114), (214, 210, 200)
_STYLES = {"lead": (18, 96, 122), "cost": (165, 86, 29), "": _INK}
_ALARM = (140, 21, 18)
_MARGIN, _WIDTH = 20.0, 170.0  # mm; A4 is 210 wide
_TERM = 44.0
_BODY, _LINE = 9.5, 4.9  # points, mm
_SMALL, _SMALL_LINE = 8.5, 4.3
_TALLEST = 250.0
_LONG_TABLE = 110.0  # longer ones go on over a page's end
_FOOT = 48.0  # a heading that begins in it would stand alone


def pdf_of(sheet: Sheet) -> bytes:
    """The whole document."""
    with tempfile.TemporaryDirectory() as folder:
        paper = _Paper(sheet.foot, is_tight=sheet.is_tight)
        for family, style, name in FACES:
            path = Path(folder, f"{name}.ttf")
            path.write_bytes(face(name))
            paper.add_font(family, style, path)
        _describe(paper, sheet)
        paper.add_page()
        _head(paper, sheet)
        for part in sheet.sections:
            _section(paper, part)
        return bytes(paper.output())


class _Paper(FPDF):
    """Pages with a foot.

    Attributes:
        air: what part of the usual space there is between things.
        size: and how large letters and lines are.
        term: how wide a column of terms is, mm.
    """

    def __init__(self, foot: str, *, is_tight: bool) -> None:
        super().__init__(format="A4")
        self.air, self.size, self.term = (0.4, 0.92, 58.0) if is_tight else (1.0, 1.0, _TERM)
        self._foot = foot
        self.set_margins(_MARGIN, 18, _MARGIN)
        self.c_margin = 0.0
        self.set_auto_page_break(True, margin=22)
        self.set_draw_color(*_RULE)
        self.set_line_width(0.2)

    def footer(self) -> None:
        """How to find the document again, and the page."""
        self.set_y(-16)
        self.line(_MARGIN, self.y - 2, _MARGIN + _WIDTH, self.y - 2)
        self.set_font("sans", "", 7.5)
        self.set_text_color(*_SOFT)
        self.cell(_WIDTH - 25, 4, drawn(self._foot), align=Align.L)
        self.cell(25, 4, f"{self.page_no()} / {{nb}}", align=Align.R)


def _describe(paper: _Paper, sheet: Sheet) -> None:
    paper.set_creation_date(datetime.fromisoformat(sheet.made_at))
    paper.set_title(drawn(f"{sheet.title}: {sheet.kind}"))
    paper.set_author("Veiltune")
    paper.set_producer(PRODUCER)
    paper.set_lang("en")


def _head(paper: _Paper, sheet: Sheet) -> None:
    x, y = paper.get_x(), paper.get_y()
    paper.set_draw_color(*_STYLES["lead"])
    for at in range(3):
        paper.circle(x + 1.6 + at * 1.0, y + 2.2, 1.5)
    paper.set_draw_color(*_RULE)
    paper.set_x(x + 7)
    _write(paper, f"Veiltune · {sheet.kind}", 9, 4.6, _SOFT, width=_WIDTH - 7)
    paper.ln(1.5)
    _write(paper, sheet.title, 21, 9, bold=True)
    paper.ln(0.8)
    if sheet.facts:
        _write(paper, " · ".join(sheet.facts), 9, 4.6, _SOFT)
    paper.ln(3)
    if sheet.alarm:
        _alarm(paper, sheet.alarm)
    if sheet.figures:
        _figures(paper, sheet.figures)


def _figures(paper: _Paper, figures: tuple[Figure, ...]) -> None:
    """Boxes abreast between two rules, three in a row."""
    abreast = min(3, len(figures))
    width = _WIDTH / abreast
    for start in range(0, len(figures), abreast):
        row = figures[start : start + abreast]
        paper.line(_MARGIN, paper.y, _MARGIN + _WIDTH, paper.y)
        top = paper.y + 3
        bottom = max(
            _figure(paper, f, _MARGIN + at * width, top, width) for at, f in enumerate(row)
        )
        paper.set_xy(_MARGIN, bottom + 3)
    paper.line(_MARGIN, paper.y, _MARGIN + _WIDTH, paper.y)
    paper.ln(2)


def _figure(paper: _Paper, figure: Figure, x: float, y: float, width: float) -> float:
    paper.set_xy(x, y)
    size = 17 if len(figure.value) < 16 else 11
    _write(paper, figure.value, size, 7, _STYLES[figure.style], width=width - 4, at=x)
    paper.set_x(x)
    _write(paper, figure.name, 8, 4, _SOFT, width=width - 4, at=x)
    return paper.y


def _section(paper: _Paper, part: Section) -> None:
    first = next((block for block in part.blocks if not isinstance(block, Prose)), None)
    needed = max(_FOOT, 42 + (_height(paper, first) if isinstance(first, Table) else 0.0))
    if part.on_new_page or paper.y > paper.h - needed:
        paper.add_page()
    else:
        paper.ln(5 * paper.air)
    _write(paper, part.title, 13, 6.5, bold=True)
    paper.ln(1.2 * paper.air)
    for block in part.blocks:
        _block(paper, block)


def _block(paper: _Paper, block: Block) -> None:
    if isinstance(block, Prose):
        _write(paper, block.text, _BODY, _LINE)
        paper.ln(1.6)
    elif isinstance(block, Bullets):
        _bullets(paper, block)
    elif isinstance(block, Terms):
        _terms(paper, block)
    elif isinstance(block, Table):
        _table(paper, block)
    else:
        _alarm(paper, block)


def _bullets(paper: _Paper, block: Bullets) -> None:
    for item in block.items:
        _keep(paper, item, _WIDTH - 5)
        paper.set_x(_MARGIN)
        _font(paper, _BODY, _SOFT)
        paper.cell(5, _LINE * paper.size, "\N{EN DASH}")
        _write(paper, item, _BODY, _LINE, width=_WIDTH - 5, at=_MARGIN + 5)
        paper.ln(0.8)
    paper.ln(0.8)


def _terms(paper: _Paper, block: Terms) -> None:
    for term, words in block.pairs:
        _keep(paper, words, _WIDTH - paper.term)
        top, page = paper.y, paper.page
        _write(paper, term, _SMALL, _SMALL_LINE, _SOFT, width=paper.term - 4)
        after, after_page = paper.y, paper.page
        paper.page = page
        paper.set_xy(_MARGIN + paper.term, top)
        _write(
            paper, words, _SMALL, _SMALL_LINE, width=_WIDTH - paper.term, at=_MARGIN + paper.term
        )
        if paper.page == after_page:
            paper.set_y(max(paper.y, after))
        paper.ln(paper.air)
    paper.ln(paper.air)


def _keep(paper: _Paper, words: str, width: float) -> None:
    """Begin a page where the words would be parted that one page can hold."""
    _font(paper, _BODY, _INK, code=isinstance(words, Code))
    height = paper.multi_cell(
        width,
        _LINE * paper.size,
        drawn(words),
        dry_run=True,
        output="HEIGHT",
        wrapmode=WrapMode.WORD,
    )
    if isinstance(height, float) and height < _TALLEST and paper.will_page_break(height):
        paper.add_page()


def _table(paper: _Paper, block: Table) -> None:
    columns = range(len(block.heads))
    if paper.will_page_break(_height(paper, block)):
        paper.add_page()
    _font(paper, _SMALL, _INK)
    head = FontFace(emphasis="", color=_SOFT, size_pt=8 * paper.size)
    with paper.table(
        width=_WIDTH,
        col_widths=block.widths or tuple(1 for _ in columns),
        text_align=tuple(Align.R if at in block.numeric else Align.L for at in columns),
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        headings_style=head,
        line_height=_SMALL_LINE * paper.size,
        padding=(1.1 * paper.air, 3.0, 1.1 * paper.air, 0),
        v_align=VAlign.T,
        wrapmode=WrapMode.WORD,
    ) as grid:
        _row(grid, block.heads)
        for row in block.rows:
            _row(grid, row)
    paper.ln(2.5 * paper.air)


def _height(paper: _Paper, block: Table) -> float:
    """About how high a table is; 0 for one that a page cannot hold with others."""
    _font(paper, _SMALL, _INK)
    shares = block.widths or tuple(1 for _ in block.heads)
    widths = [_WIDTH * part / sum(shares) - 3.0 for part in shares]
    height = 0.0
    for row in (block.heads, *block.rows):
        cells = zip(row, widths, strict=True)
        lines = max(math.ceil(1.1 * paper.get_string_width(drawn(c)) / w) for c, w in cells)
        height += max(1, lines) * _SMALL_LINE * paper.size + 2.2 * paper.air
        if height > _LONG_TABLE:
            return 0.0
    return height


def _row(grid: PdfTable, cells: tuple[str, ...]) -> None:
    row = grid.row()
    for words in cells:
        is_code = isinstance(words, Code)
        row.cell(drawn(words), style=FontFace(family="mono", size_pt=8) if is_code else None)


def _alarm(paper: _Paper, alarm: Alarm) -> None:
    top = paper.y
    paper.set_xy(_MARGIN + 5, top + 3)
    _write(paper, alarm.title, 13, 6.5, _ALARM, width=_WIDTH - 10, at=_MARGIN + 5, bold=True)
    _write(paper, alarm.text, _BODY, _LINE, width=_WIDTH - 10, at=_MARGIN + 5)
    paper.set_draw_color(*_ALARM)
    paper.set_line_width(0.8)
    paper.rect(_MARGIN, top, _WIDTH, paper.y - top + 3)
    paper.set_draw_color(*_RULE)
    paper.set_line_width(0.2)
    paper.set_xy(_MARGIN, paper.y + 7)


def _write(
    paper: _Paper,
    words: str,
    size: float,
    line: float,
    color: tuple[int, int, int] = _INK,
    *,
    width: float = _WIDTH,
    at: float | None = None,
    bold: bool = False,
) -> None:
    _font(paper, size, color, bold=bold, code=isinstance(words, Code))
    if at is not None:
        paper.set_x(at)
    paper.multi_cell(
        width,
        line * paper.size,
        drawn(words),
        align=Align.L,
        new_x=XPos.LMARGIN,
        new_y=YPos.NEXT,
        wrapmode=WrapMode.CHAR if isinstance(words, Code) else WrapMode.WORD,
    )


def _font(
    paper: _Paper,
    size: float,
    color: tuple[int, int, int],
    *,
    bold: bool = False,
    code: bool = False,
) -> None:
    paper.set_font("mono" if code else "sans", "B" if bold else "", size * paper.size)
    paper.set_text_color(*color)
