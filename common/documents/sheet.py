"""A document as headings, sentences and figures, before it is HTML or PDF.

Both are drawn from the same sheet, so that they cannot say different things. Every string is text:
whoever draws it escapes it. Not covered: pictures; text that runs from right to left.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InvalidInput

NO_BREAK = "\N{NO-BREAK SPACE}"


class Code(str):
    """A hash, a key or a command: shown in a narrower face, and broken anywhere."""

    __slots__ = ()


class Link(str):
    """Words that lead to another file of the bundle, where a screen shows them.

    Attributes:
        href: relative to ``documents/``.
    """

    __slots__ = ("href",)
    href: str

    def __new__(cls, words: str, href: str) -> "Link":
        """The words, with where they lead."""
        link = super().__new__(cls, words)
        link.href = href
        return link


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """Sentences that stand alone."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms and what is said of each."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first cell of a row names it.

    Attributes:
        heads: of the columns.
        rows: as many cells each.
        numeric: columns that are aligned right.
        widths: each column's share of the width.

    Raises:
        InvalidInput: a row or ``widths`` of another length.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(row) for row in self.rows} | ({len(self.widths)} if self.widths else set())
        if lengths - {len(self.heads)}:
            raise InvalidInput(f"rows must have {len(self.heads)} cells, got {sorted(lengths)}")


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a reader must see before anything else."""

    title: str
    text: str


Block = Prose | Bullets | Terms | Table | Alarm


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is under it; a long one may begin a page in print."""

    title: str
    blocks: tuple[Block, ...]
    on_new_page: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that stands out; ``style`` is ``lead``, ``cost`` or empty."""

    name: str
    value: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A whole document.

    Attributes:
        kind: what sort of document, in small print over the title.
        title: what it is about.
        facts: said under the title, parted by dots.
        figures: the few that matter most.
        alarm: said in red before them.
        sections: the rest.
        made_at: when its evidence was put together, as 2026-11-28T01:00:00Z.
        foot: at the foot of every printed page: how to find it again.
        is_tight: whether it is printed closer, to stay on one page.
    """

    kind: str
    title: str
    facts: tuple[str, ...]
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]
    made_at: str
    foot: str
    alarm: Alarm | None = None
    is_tight: bool = False


def section(title: str, *blocks: Block | None, on_new_page: bool = False) -> Section:
    """A section of the blocks that are there."""
    return Section(title, tuple(b for b in blocks if b is not None), on_new_page)


def prose(sentences: Sequence[str]) -> tuple[Prose, ...]:
    """A paragraph each."""
    return tuple(Prose(words) for words in sentences if words)


def shown(text: str) -> str:
    r"""``text`` on one line, without what could turn or hide the words around it.

    No-break spaces stay; other control and format characters (a right-to-left override among them)
    are written out.

    >>> shown("one\ntwo \u202egnp")
    'one two \\u202egnp'
    """
    line = " ".join(text.replace("\t", " ").splitlines())
    kept = (c if c.isprintable() or c == NO_BREAK else _written(c) for c in line)
    return "".join(kept)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()
