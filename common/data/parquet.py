"""Rows of a Parquet file, read a batch at a time with what a few bytes can unfold to bounded.

Parquet packs so well that a small file can unfold to more than any memory: a value named once and
pointed to a million times, a page of zeros. So the footer is looked at before any page: rows,
columns, bytes once unpacked and values of each part; strings stay packed as pointers into their
dictionary until one row is wanted, and encodings that share prefixes between values are refused.

pyarrow is an extra (``veiltune[parquet]``): it is large, and its parser need not be on the machine
of a site that has no such files. Not covered: a file whose pages contradict its own footer.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.data.caps import MAX_COLUMNS, MAX_FIELD_BYTES, MAX_ROWS, MAX_WORDS
from common.data.records import ColumnMap
from common.data.rows import Row
from common.errors import InvalidInput

BATCH_ROWS = 1024
MAX_PART_BYTES = 1 << 30  # of the mapped columns of a row group, unpacked
MAX_PART_VALUES = 100_000_000
_FOOTER_STRING_BYTES, _FOOTER_ITEMS = 16_000_000, 1_000_000
# All but DELTA_BYTE_ARRAY, where each value repeats as much of the one before as it likes.
_ENCODINGS = {
    "PLAIN",
    "RLE",
    "BIT_PACKED",
    "PLAIN_DICTIONARY",
    "RLE_DICTIONARY",
    "DELTA_BINARY_PACKED",
    "DELTA_LENGTH_BYTE_ARRAY",
    "BYTE_STREAM_SPLIT",
}


def parquet_rows(path: Path, columns: ColumnMap) -> Iterator[tuple[int, Row]]:
    """Rows with their number, from 1; of the mapped columns alone.

    Raises:
        InvalidInput: pyarrow is not installed, a column is missing or of a type that holds neither
            text nor labels, the file is damaged or unfolds to more than is taken.
    """
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise InvalidInput(
            f"{path.name} must be read with pyarrow, got an installation without it "
            "(pip install 'veiltune[parquet]')"
        ) from error
    wanted = list(dict.fromkeys(columns.named().values()))
    try:
        file = _open(path, wanted)
        for number, (batch, row) in enumerate(_places(file, wanted), start=1):
            where = f"{path.name}:{number}"
            yield number, {name: _value(batch.column(name)[row], where, name) for name in wanted}
    except (arrow.ArrowException, OSError) as error:
        # Arrow's own words may quote values.
        raise InvalidInput(
            f"{path.name} must be a whole Parquet file of a kind that is read here, "
            f"got a {type(error).__name__}"
        ) from None


def _places(file: Any, wanted: Sequence[str]) -> Iterator[tuple[Any, int]]:  # noqa: ANN401
    """Every row as its batch and its place there; a batch lies in one row group, as arrow needs."""
    for part in range(file.num_row_groups):
        for batch in file.iter_batches(
            BATCH_ROWS, row_groups=[part], columns=wanted, use_threads=False
        ):
            for row in range(batch.num_rows):
                yield batch, row


def _open(path: Path, wanted: Sequence[str]) -> Any:  # noqa: ANN401 -- pyarrow is untyped
    from pyarrow import parquet

    limits = {
        "thrift_string_size_limit": _FOOTER_STRING_BYTES,
        "thrift_container_size_limit": _FOOTER_ITEMS,
    }
    footer = parquet.ParquetFile(path, **limits)
    _require_columns(path, footer.schema_arrow, wanted)
    metadata = footer.metadata
    if metadata.num_rows > MAX_ROWS:
        raise InvalidInput(
            f"{path.name} must hold at most {MAX_ROWS} records, got {metadata.num_rows}"
        )
    leaves = [i for i in range(metadata.num_columns) if _top(footer.schema, i) in wanted]
    for part in range(metadata.num_row_groups):
        group = metadata.row_group(part)
        _require_small(path, [group.column(i) for i in leaves])
    packed = [
        footer.schema.column(i).path
        for i in leaves
        if footer.schema.column(i).physical_type == "BYTE_ARRAY"
    ]
    return parquet.ParquetFile(path, metadata=metadata, read_dictionary=packed, **limits)


def _top(schema: Any, leaf: int) -> str:  # noqa: ANN401 -- pyarrow is untyped
    """The name of the column that a leaf of the schema belongs to."""
    column = schema.column(leaf)
    is_flat = column.max_repetition_level == 0
    return str(column.path if is_flat else column.path.split(".")[0])


def _require_columns(path: Path, schema: Any, wanted: Sequence[str]) -> None:  # noqa: ANN401
    from pyarrow import types

    names = list(schema.names)
    if len(names) > MAX_COLUMNS:
        raise InvalidInput(f"{path.name} must have at most {MAX_COLUMNS} columns, got {len(names)}")
    for column in wanted:
        if names.count(column) != 1:
            found = "twice" if column in names else f"among {len(names)} none of that name"
            raise InvalidInput(f"{path.name}: column {column!r} must be there once, got it {found}")
        kind = schema.field(column).type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        inner = kind.value_type if is_list else kind
        inner = inner.value_type if types.is_dictionary(inner) else inner
        is_text = types.is_string(inner) or types.is_large_string(inner)
        if not is_text and (is_list or not (types.is_integer(inner) or types.is_boolean(inner))):
            raise InvalidInput(
                f"{path.name}: column {column!r} must be of strings, integers or booleans, or of "
                f"lists of strings, got {kind}"
            )


def _require_small(path: Path, chunks: Sequence[Any]) -> None:
    size = sum(chunk.total_uncompressed_size for chunk in chunks)
    if size > MAX_PART_BYTES:
        raise InvalidInput(
            f"{path.name} must unpack to at most {MAX_PART_BYTES} bytes in a row group, got {size}"
        )
    for chunk in chunks:
        if chunk.num_values > MAX_PART_VALUES:
            raise InvalidInput(
                f"{path.name} must have at most {MAX_PART_VALUES} values of a column in a row "
                f"group, got {chunk.num_values}"
            )
        strange = set(chunk.encodings) - _ENCODINGS
        if strange:
            raise InvalidInput(
                f"{path.name} must be written with {', '.join(sorted(_ENCODINGS))}, "
                f"got {', '.join(sorted(strange))}"
            )


def _value(scalar: Any, where: str, column: str) -> object:  # noqa: ANN401 -- pyarrow is untyped
    """One cell as Python has it; a list is measured before it is unfolded."""
    words = getattr(scalar, "values", None)
    try:
        if words is None:
            return scalar.as_py()
        _require_unfolded(words, f"{where}: column {column!r}")
        return words.to_pylist()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{where}: column {column!r} must be UTF-8, got undecodable bytes"
        ) from None


def _require_unfolded(words: Any, at: str) -> None:  # noqa: ANN401 -- pyarrow is untyped
    """A million words may all be pointers to one long one."""
    from pyarrow import compute

    if len(words) > MAX_WORDS:
        raise InvalidInput(f"{at} must hold 1 to {MAX_WORDS} words, got {len(words)}")
    lengths = compute.binary_length(getattr(words, "dictionary", words))
    if hasattr(words, "indices"):
        lengths = compute.take(lengths, words.indices)
    size = compute.sum(lengths).as_py() or 0
    if size > MAX_FIELD_BYTES:
        raise InvalidInput(f"{at} must be at most {MAX_FIELD_BYTES} bytes, got {size}")
