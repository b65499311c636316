"""Reading records from CSV, JSON lines and Parquet, one row at a time.

A bad row stops the reading and is named by file, line and column, never by content: what a file
of patients holds does not belong in a terminal or a log. What is read is normalised, so that the
same text typed on two systems is the same bytes.

Not covered: what the records mean (``data check`` shows that to the site), columns beyond those
mapped (ignored), mentions by their characters (``Span``); words with tags are read.
"""

import itertools
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from common.data.caps import MAX_FIELD_BYTES, MAX_FILE_BYTES, MAX_ROWS, MAX_WORDS
from common.data.parquet import parquet_rows
from common.data.records import ColumnMap, Record
from common.data.rows import Row, csv_rows, json_rows, kind_of
from common.errors import InvalidInput

_Rows = Callable[[Path, ColumnMap], Iterator[tuple[int, Row]]]
_READERS: dict[str, _Rows] = {
    ".csv": csv_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".parquet": parquet_rows,
}
_LISTS = ("words", "tags")
_REMOVED = {
    code: None
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs") and chr(code) not in "\t\n"
}
_LINE_ENDS = re.compile(r"\r\n?|[\u2028\u2029\x85]")


def normalise(text: str) -> str:
    r"""The form in which every text is kept: NFC, no control characters, trimmed.

    Line ends become newlines. Removed are the control characters (Cc) except tab and newline, and
    the format characters (Cf), among them zero-width and bidirectional marks, which let two texts
    look alike that are not (joiners that Indic and Arabic scripts and emoji use go with them).
    Lone surrogates go too: no tokenizer takes them.

    Guarantee: ``normalise(normalise(text)) == normalise(text)``.

    >>> normalise("  caf\u0065\u0301\u200b \x07ok\r\n")
    'café ok'
    """
    text = _LINE_ENDS.sub("\n", text)
    return unicodedata.normalize("NFC", text.translate(_REMOVED)).strip()


def drop_duplicates(records: Iterable[Record]) -> list[Record]:
    """Drop exact duplicates (text or words, label or tags) within a privacy unit; the first stays.

    Across units nothing is dropped: whether a person's record trains would then depend on what
    other people's records say, which is a step between people before any noise. A record without
    a unit is its own unit, so it always stays.
    """
    seen: set[tuple[object, ...]] = set()
    kept = []
    for record in records:
        key = (record.unit, *record.content)
        if record.unit and key in seen:
            continue
        seen.add(key)
        kept.append(record)
    return kept


def read_records(path: Path, columns: ColumnMap | None = None) -> Iterator[Record]:
    """Read a file's records one at a time; the format follows from the name.

    Args:
        path: a .csv, .jsonl or .ndjson file, UTF-8, a BOM is fine, or one of these with .gz; or a
            .parquet file.
        columns: which column holds what; text and label where not given. Words and tags are lists
            in JSON and Parquet, and in CSV what white space divides.

    Yields:
        Normalised records, each with its line (of Parquet: its row). Sensitive.

    Raises:
        InvalidInput: at once for a missing, empty or too large file, an unknown format, a missing
            column or a bad first row; while iterating for a later one. Rows are named
            ``file:line``.
    """
    columns = columns or ColumnMap()
    rows = _reader(path)
    if not path.is_file():
        raise InvalidInput(f"data file must be a readable file, got {str(path)!r}")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise InvalidInput(f"{path.name} must be at most {MAX_FILE_BYTES} bytes, got {size}")
    records = _records(path, columns, rows)
    return itertools.chain([next(records)], records)  # the first row, read before returning


def _reader(path: Path) -> _Rows:
    suffix = path.suffix.lower()
    is_zipped = suffix == ".gz"
    if is_zipped:
        suffix = Path(path.stem).suffix.lower()
    if suffix not in _READERS or (is_zipped and suffix == ".parquet"):
        raise InvalidInput(
            "data file must end in .csv, .jsonl, .ndjson or one of these with .gz, or in "
            f".parquet, got {path.name!r}"
        )
    return _READERS[suffix]


def _records(path: Path, columns: ColumnMap, rows: _Rows) -> Iterator[Record]:
    """Turn rows into records; ``rows`` names its own faults."""
    named, is_csv = columns.named(), rows is csv_rows
    count = 0
    for line, row in rows(path, columns):
        count += 1
        if count > MAX_ROWS:
            raise InvalidInput(f"{path.name} must hold at most {MAX_ROWS} records, got more")
        where = f"{path.name}:{line}"
        fields: dict[str, Any] = {}
        for name, column in named.items():
            if column not in row:
                raise InvalidInput(
                    f"{where}: column {column!r} must be present, got a row without it"
                )
            at = f"{where}: column {column!r}"
            if name in _LISTS:
                fields[name] = _words(row[column], at, is_csv=is_csv)
            else:
                fields[name] = _field(row[column], name, at)
        yield Record(**(_tagged(fields, where) if columns.words else fields), line=line)
    if not count:
        raise InvalidInput(f"{path.name} must hold at least one record, got none")


def _field(value: object, name: str, at: str) -> str:
    """One value as normalised text, or an error that names the column and the kind of fault."""
    if name != "text" and isinstance(value, bool | int):
        value = str(value)
    if not isinstance(value, str):
        kind = "a string" if name == "text" else "a string, an integer or a boolean"
        raise InvalidInput(f"{at} must be {kind}, got {kind_of(value)}")
    _require_text(value, at)
    _require_size(_bytes(value), at)
    value = normalise(value)
    if name in ("label", "unit") and not value:
        # Rows of one person whose unit is not filled in must not pass for many people.
        raise InvalidInput(f"{at} must hold a {name}, got nothing")
    return value


def _words(value: object, at: str, *, is_csv: bool) -> tuple[str, ...]:
    """A list of words or tags, each normalised; a word of nothing but marks becomes empty."""
    if is_csv and isinstance(value, str):
        value = value.split()
    if not isinstance(value, list):
        raise InvalidInput(f"{at} must be a list of strings, got {kind_of(value)}")
    if not 1 <= len(value) <= MAX_WORDS:
        raise InvalidInput(f"{at} must hold 1 to {MAX_WORDS} words, got {len(value)}")
    for word in value:
        if not isinstance(word, str):
            raise InvalidInput(f"{at} must be a list of strings, got {kind_of(word)} in it")
        _require_text(word, at)
    _require_size(sum(map(_bytes, value)), at)
    return tuple(map(normalise, value))


def _tagged(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a record of words."""
    words, tags = fields["words"], fields["tags"]
    if len(words) != len(tags):
        raise InvalidInput(
            f"{where}: tags must be one for each word, got {len(tags)} for {len(words)} words"
        )
    if not all(tags):
        raise InvalidInput(f"{where}: every word must have a tag, got an empty one")
    return {"text": " ".join(words), "label": "", **fields}


def _bytes(value: str) -> int:
    return len(value.encode("utf-8", "surrogatepass"))


def _require_text(value: str, at: str) -> None:
    if "\0" in value:
        raise InvalidInput(f"{at} must hold text, got a NUL character")


def _require_size(size: int, at: str) -> None:
    if size > MAX_FIELD_BYTES:
        raise InvalidInput(f"{at} must be at most {MAX_FIELD_BYTES} bytes, got {size}")
