"""One row of a data set, and which column holds what.

A record is sensitive: it never goes into a log, an error or a message.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from common.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` (exclusive) of a text are a mention of kind ``tag``."""

    start: int
    end: int
    tag: str


@dataclass(frozen=True, slots=True)
class Record:
    """A text and its label. Sensitive.

    Attributes:
        text: what the model reads.
        label: one of the job's public labels.
        unit: whose record it is, such as a patient; "" makes the record a unit of its own.
        group: where it comes from, such as a hospital; for partitions by nature.
        spans: tagged mentions in the text, for token tasks.
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
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """The names of the columns; "" for one that the file does not have."""

    text: str = "text"
    label: str = "label"
    unit: str = ""
    group: str = ""
    sex: str = ""
    age: str = ""

    def __post_init__(self) -> None:
        if not self.text or not self.label:
            empty = "text" if not self.text else "label"
            raise InvalidInput(f"{empty} column must be named, got ''")

    def named(self) -> dict[str, str]:
        """The record's field for each column that the file must have."""
        fields = ("text", "label", "unit", "group", "sex", "age")
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
        if record.label not in public:
            where = f"{source}:{record.line}" if record.line else f"{source}: record {position}"
            raise InvalidInput(
                f"{where}: label must be one of the job's {len(public)} public labels, got another"
            )
