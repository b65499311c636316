"""Reading records from CSV and JSON lines, plain or gzipped, one row at a time.

A bad row stops the reading and is named by file, line and column, never by content: what a file
of patients holds does not belong in a terminal or a log. What is read is normalised, so that the
same text typed on two systems is the same bytes.

What is covered: the file's shape. Not covered: what the records mean (``data check`` shows that
to the site), columns beyond those mapped (ignored), mentions inside texts (``Span``).
"""

import csv
import gzip
import itertools
import json
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from common.data.records import ColumnMap, Record
from common.errors import InvalidInput

MAX_FIELD_BYTES = 1_000_000
# A row may hold many columns that nobody mapped; no more than this is taken into memory for one.
MAX_ROW_BYTES = 16_000_000

_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".csv.gz", ".jsonl.gz", ".ndjson.gz")
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
    """Drop exact duplicates (text and label) within one privacy unit; the first stays.

    Across units nothing is dropped: whether a person's record trains would then depend on what
    other people's records say, which is a step between people before any noise. A record without
    a unit is its own unit, so it always stays.
    """
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for record in records:
        key = (record.unit, record.text, record.label)
        if record.unit and key in seen:
            continue
        seen.add(key)
        kept.append(record)
    return kept


def read_records(path: Path, columns: ColumnMap | None = None) -> Iterator[Record]:
    """Read a file's records one at a time; the format follows from the name.

    Args:
        path: a .csv, .jsonl or .ndjson file, or one of these with .gz; UTF-8, a BOM is fine.
        columns: which column holds what; text and label where not given.

    Yields:
        Normalised records, each with its line. Sensitive.

    Raises:
        InvalidInput: at once for a missing or empty file, an unknown format, a missing column or
            a bad first row; while iterating for a later one. Rows are named ``file:line``.
    """
    columns = columns or ColumnMap()
    suffix = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:])
    if suffix.lower() not in _SUFFIXES:
        raise InvalidInput(
            f"data file must end in {', '.join(_SUFFIXES[:3])} or one of these with .gz, "
            f"got {path.name!r}"
        )
    if not path.is_file():
        raise InvalidInput(f"data file must be a readable file, got {str(path)!r}")
    rows = _csv_rows if ".csv" in suffix.lower() else _json_rows
    records = _records(path, columns, rows(path, columns))
    return itertools.chain([next(records)], records)  # the first row, read before returning


def _records(
    path: Path, columns: ColumnMap, rows: Iterator[tuple[int, Mapping[str, Any]]]
) -> Iterator[Record]:
    """Turn rows into records; ``rows`` names its own faults."""
    named = columns.named()
    empty = True
    for line, row in rows:
        empty = False
        fields: dict[str, Any] = {
            name: _field(row, column, name, f"{path.name}:{line}") for name, column in named.items()
        }
        yield Record(**fields, line=line)
    if empty:
        raise InvalidInput(f"{path.name} must hold at least one record, got none")


def _field(row: Mapping[str, Any], column: str, name: str, where: str) -> str:
    """One value as normalised text, or an error that names the column and the kind of fault."""
    if column not in row:
        raise InvalidInput(f"{where}: column {column!r} must be present, got a row without it")
    value = row[column]
    if name != "text" and isinstance(value, bool | int):
        value = str(value)
    if not isinstance(value, str):
        kind = "a string" if name == "text" else "a string, an integer or a boolean"
        raise InvalidInput(f"{where}: column {column!r} must be {kind}, got {_kind(value)}")
    if "\0" in value:
        raise InvalidInput(f"{where}: column {column!r} must hold text, got a NUL character")
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_FIELD_BYTES:
        raise InvalidInput(
            f"{where}: column {column!r} must be at most {MAX_FIELD_BYTES} bytes, got {size}"
        )
    value = normalise(value)
    if name in ("label", "unit") and not value:
        # Rows of one person whose unit is not filled in must not pass for many people.
        raise InvalidInput(f"{where}: column {column!r} must hold a {name}, got nothing")
    return value


def _kind(value: object) -> str:
    """What JSON calls a value's type."""
    names = {dict: "an object", list: "a list", float: "a number", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "an integer")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decoded lines with their number, from 1; nothing longer than a row may be is read."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while raw := _line(file, path, number + 1):
                number += 1
                yield number, _decode(raw, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidInput(
            f"{path.name}:{number + 1}: file must be whole gzip, got one cut short or damaged"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{path.name} must be readable, got: {error.strerror}") from error


def _line(file: BinaryIO | gzip.GzipFile, path: Path, number: int) -> bytes:
    raw = file.readline(MAX_ROW_BYTES + 1)
    if len(raw) > MAX_ROW_BYTES:
        raise InvalidInput(
            f"{path.name}:{number}: row must be at most {MAX_ROW_BYTES} bytes, got more"
        )
    return raw


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        # The codec's own message quotes the bytes; ours does not.
        raise InvalidInput(
            f"{path.name}:{number}: row must be UTF-8, got undecodable bytes at {error.start}"
        ) from None
    if "\0" in text:
        raise InvalidInput(f"{path.name}:{number}: row must be text, got a NUL character")
    return text


def _json_rows(path: Path, columns: ColumnMap) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, text in _lines(path):
        if text.strip():
            yield number, _json_row(text, f"{path.name}:{number}")


def _json_row(text: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text, object_pairs_hook=_distinct_keys, parse_int=_integer)
    except _DuplicateKey as error:
        # Which key it is may be content: only its place among the keys is told.
        raise InvalidInput(f"{where}: keys must be distinct, got one twice") from error
    except (ValueError, RecursionError):
        # The parser's message and its exception both carry the row.
        raise InvalidInput(f"{where}: row must be a JSON object, got no valid JSON") from None
    if not isinstance(row, dict):
        raise InvalidInput(f"{where}: row must be a JSON object, got {_row_kind(row)}")
    return row


def _row_kind(row: object) -> str:
    return "a string" if isinstance(row, str) else _kind(row)


def _integer(digits: str) -> int:
    """A JSON integer; thousands of digits are no label and cost quadratic time."""
    if len(digits) > 400:
        raise ValueError("integer must be at most 400 digits")
    return int(digits)


class _DuplicateKey(ValueError):
    """A JSON object that says two things at once."""


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise _DuplicateKey
    return row


def _csv_rows(path: Path, columns: ColumnMap) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a CSV file with a header; a quoted value may hold line ends."""
    source = _CsvSource(path)
    reader = csv.reader(source, strict=True)
    header: list[str] | None = None
    while True:
        start = source.line + 1
        source.row_bytes = 0
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:
            # csv's message may quote; strict mode refuses a quote left open or closed mid-value.
            raise InvalidInput(
                f"{path.name}:{start}: row must be CSV, got an unbalanced quote or an over-long "
                "value"
            ) from None
        if not values:
            continue
        if header is None:
            header = _header(values, columns, path)
        elif len(values) != len(header):
            raise InvalidInput(
                f"{path.name}:{start}: row must have the header's {len(header)} columns, "
                f"got {len(values)}"
            )
        else:
            yield start, dict(zip(header, values, strict=True))


def _header(values: list[str], columns: ColumnMap, path: Path) -> list[str]:
    header = [value.strip() for value in values]
    missing = [column for column in columns.named().values() if column not in header]
    if missing:
        # The names in the file are not shown: without a header its first row is a record.
        raise InvalidInput(
            f"{path.name}:1: header must name column {', '.join(map(repr, missing))}, "
            f"got {len(header)} columns without it"
        )
    twice = [column for column in columns.named().values() if header.count(column) > 1]
    if twice:
        raise InvalidInput(f"{path.name}:1: column {twice[0]!r} must be named once, got it twice")
    return header


class _CsvSource(Iterator[str]):
    """Feeds the CSV parser lines, counts them, and bounds what one row may take."""

    def __init__(self, path: Path) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
        self._path, self._lines = path, _lines(path)
        self.line, self.row_bytes = 0, 0

    def __next__(self) -> str:
        self.line, text = next(self._lines)
        self.row_bytes += len(text)
        if self.row_bytes > MAX_ROW_BYTES:
            raise InvalidInput(
                f"{self._path.name}:{self.line}: row must be at most {MAX_ROW_BYTES} bytes, "
                "got more (a quote left open?)"
            )
        return text
