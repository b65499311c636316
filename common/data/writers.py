"""Writing records as a file that ``read_records`` gives back: simulations deal out homes with it.

Not covered: ``Span`` (the reader knows no column for it).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from common.data.records import ColumnMap, Record
from common.errors import InvalidInput
from common.files import write_file

_SHARED = ("unit", "group", "sex", "age")


def write_records(path: Path, records: Sequence[Record], *, tagged: bool = False) -> ColumnMap:
    """Write records as JSON lines, mode 0600, whole or not at all.

    Args:
        path: ends in .jsonl; its folder exists.
        records: at least one. Sensitive.
        tagged: whether words and tags are written, and not text and label.

    Returns:
        The mapping to read the file with: a column for each field that every record fills.

    Raises:
        InvalidInput: no records, another ending, units on some records only, or no words to write.
        StorageFailed: the file cannot be written.
    """
    if path.suffix != ".jsonl":
        raise InvalidInput(f"path must end in .jsonl, got {path.name!r}")
    if not records:
        raise InvalidInput("records must be at least one, got none")
    if tagged and not all(record.words for record in records):
        raise InvalidInput("records must have words and tags, got some without")
    if len({bool(record.unit) for record in records}) > 1:
        # Without the column one person's records would become people of their own.
        raise InvalidInput("unit must be given for all records or for none, got some without")
    full = [name for name in _SHARED if all(getattr(record, name) for record in records)]
    pair = ("words", "tags") if tagged else ("text", "label")
    names = (*pair, *full)
    lines = (json.dumps({name: getattr(record, name) for name in names}) for record in records)
    write_file(path, "".join(f"{line}\n" for line in lines).encode("utf-8"))
    return ColumnMap(**{name: name for name in (*full, *pair)})
