"""One row of a data set, and which column holds what.

A record is sensitive: it never goes into a log, an error or a message.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.errors import InvalidInput

OUTSIDE = "O"  # the tag of a word that belongs to no entity


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a text are a mention of kind ``tag``."""

    start: int
    end: int
    tag: str


@dataclass(frozen=True, slots=True)
class Record:
    """A text and its label, or its words and their tags. Sensitive.

    Attributes:
        text: what the model reads; of words, all of them with a space between.
        label: one of the job's public labels; may be "" where words have tags.
        unit: whose record it is, such as a patient; "" makes the record a unit of its own.
        group: where it comes from, such as a hospital; for partitions by nature.
        spans: tagged mentions in the text, by their characters.
        words: what the model reads in a token task; else empty.
        tags: a public label for each of ``words``, IOB2.
        sex: as the source has it, for results by group; "" where unknown.
        age: years or a band, as the source has it; "" where unknown.
        line: where the file holds it, from 1; 0 where there is no file. No part of equality.
    """

    text: str
    label: str
    unit: str = ""
    group: str = ""
    spans: tuple[Span, ...] = ()
    sex: str = ""
    age: str = ""
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)

    @property
    def content(self) -> tuple[object, ...]:
        """What makes two records duplicates of each other, whosever they are."""
        return self.text, self.label, self.words, self.tags

    def marks(self) -> tuple[str, ...]:
        """Every public label that it has: one a word, or one in all."""
        return (self.label,) if self.label or not self.words else self.tags

    def topic(self) -> str:
        """What it is sorted by: its label, else its most frequent kind of entity, else ``O``.

        >>> Record("no fever", "", words=("no", "fever"), tags=("O", "B-Sign")).topic()
        'Sign'
        """
        if self.label or not self.words:
            return self.label
        kinds = Counter(tag[2:] for tag in self.tags if tag != OUTSIDE)
        return min(kinds, key=lambda kind: (-kinds[kind], kind), default=OUTSIDE)


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """The names of the columns; "" for one that the file does not have.

    With ``words`` and ``tags`` a row is a list of words with a tag each, and text and label are not
    looked for.
    """

    text: str = "text"
    label: str = "label"
    unit: str = ""
    group: str = ""
    sex: str = ""
    age: str = ""
    words: str = ""
    tags: str = ""

    def __post_init__(self) -> None:
        pair = ("words", "tags") if self.words or self.tags else ("text", "label")
        empty = [name for name in pair if not getattr(self, name)]
        if empty:
            raise InvalidInput(f"{empty[0]} column must be named, got ''")

    def named(self) -> dict[str, str]:
        """The record's field for each column that the file must have."""
        pair = ("words", "tags") if self.words else ("text", "label")
        fields = (*pair, "unit", "group", "sex", "age")
        return {name: column for name in fields if (column := getattr(self, name))}


def require_labels(records: Iterable[Record], labels: Iterable[str], source: str) -> None:
    """Check that every label is in the public set.

    Args:
        records: Sensitive.
        labels: the job's public labels.
        source: the file's name, for the error.

    Raises:
        InvalidInput: names file and line, never the text or the label, which may be private too.
    """
    public = frozenset(labels)
    for position, record in enumerate(records, start=1):
        if not public.issuperset(record.marks()):
            where = f"{source}:{record.line}" if record.line else f"{source}: record {position}"
            raise InvalidInput(
                f"{where}: label must be one of the job's {len(public)} public labels, got another"
            )
