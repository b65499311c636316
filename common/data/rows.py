"""Rows of CSV and JSON-lines files, plain or gzipped, one at a time and bounded.

What is covered: the file's shape. A bad row stops the reading and is named by file and line, never
by content. Not covered: what a row's values mean (common/data/readers.py).
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from common.data.caps import MAX_COLUMNS, MAX_ROW_BYTES
from common.data.records import ColumnMap
from common.errors import InvalidInput

Row = Mapping[str, Any]


def kind_of(value: object) -> str:
    """What JSON calls a value's type."""
    names = {dict: "an object", list: "a list", float: "a number", bool: "true or false"}
    names |= {str: "a string", int: "an integer"}
    return names.get(type(value), "null" if value is None else "a value of another kind")


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


def json_rows(path: Path, columns: ColumnMap) -> Iterator[tuple[int, Row]]:
    """Objects of a file, one a line; blank lines are skipped."""
    for number, text in _lines(path):
        if text.strip():
            yield number, _json_row(text, f"{path.name}:{number}")


def _json_row(text: str, where: str) -> Row:
    try:
        row = json.loads(text, object_pairs_hook=_distinct_keys, parse_int=_integer)
    except _DuplicateKey as error:
        # Which key it is may be content: only its place among the keys is told.
        raise InvalidInput(f"{where}: keys must be distinct, got one twice") from error
    except (ValueError, RecursionError):
        # The parser's message and its exception both carry the row.
        raise InvalidInput(f"{where}: row must be a JSON object, got no valid JSON") from None
    if not isinstance(row, dict):
        raise InvalidInput(f"{where}: row must be a JSON object, got {kind_of(row)}")
    if len(row) > MAX_COLUMNS:
        raise InvalidInput(f"{where}: row must have at most {MAX_COLUMNS} keys, got {len(row)}")
    return row


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


def csv_rows(path: Path, columns: ColumnMap) -> Iterator[tuple[int, Row]]:
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
    if len(values) > MAX_COLUMNS:
        raise InvalidInput(
            f"{path.name}:1: header must have at most {MAX_COLUMNS} columns, got {len(values)}"
        )
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
