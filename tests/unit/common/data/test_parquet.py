"""Parquet files, written by pyarrow itself; what unfolds to more than is taken is refused."""

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from common.data import parquet as reader
from common.data.readers import read_records
from common.data.records import ColumnMap, Record
from common.errors import InvalidInput

TAGGED = ColumnMap(words="tokens", tags="tags")


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:  # noqa: ANN401
    parquet.write_table(pa.table(columns), path, **options)
    return path


def fault(path: Path, columns: ColumnMap | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        list(read_records(path, columns))
    return str(caught.value)


def test_rows_are_what_other_formats_give(tmp_path: Path) -> None:
    columns = {
        "text": ["one", " cafe\u0301 "],
        "label": ["x", "y"],
        "pid": [7, 8],
        "other": [1.5, None],
    }
    path = write(tmp_path / "d.parquet", columns)
    found = list(read_records(path, ColumnMap(unit="pid")))
    assert found == [Record("one", "x", "7"), Record("caf\u00e9", "y", "8")]
    assert [record.line for record in found] == [1, 2]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
@pytest.mark.parametrize("dictionary", [True, False])
def test_lists_of_words_and_tags_are_read(
    kind: pa.DataType, dictionary: bool, tmp_path: Path
) -> None:
    words = [["No", "fever", "."], ["Asthma"]] * 700
    tags = [["O", "B-Sign", "O"], ["B-Sign"]] * 700
    columns = {"tokens": pa.array(words, kind), "tags": pa.array(tags, kind)}
    path = write(tmp_path / "d.parquet", columns, use_dictionary=dictionary, row_group_size=300)
    found = list(read_records(path, TAGGED))
    assert [list(record.words) for record in found] == words
    assert [list(record.tags) for record in found] == tags
    assert found[1399].line == 1400


texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf"]), max_size=20)


@settings(max_examples=30)
@given(st.lists(st.tuples(texts, st.sampled_from("xyz")), min_size=1, max_size=9))
def test_what_parquet_holds_is_what_json_lines_hold(rows: list[tuple[str, str]]) -> None:
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lines = "\n".join(json.dumps({"text": t, "label": x}) for t, x in rows)
        (Path(folder) / "d.jsonl").write_text(lines)
        columns = {"text": [t for t, _ in rows], "label": [x for _, x in rows]}
        path = write(Path(folder) / "d.parquet", columns)
        assert list(read_records(path)) == list(read_records(Path(folder) / "d.jsonl"))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["a"]}, "column 'label' must be there once, got it among 1 none"),
        ({"text": ["a"], "label": [1.5]}, "column 'label' must be of strings, integers or"),
        ({"text": [b"secret"], "label": ["x"]}, "got binary"),
        (
            {"text": [["a"]], "label": ["x"]},
            "d.parquet:1: column 'text' must be a string, got a li",
        ),
        ({"text": ["a", None], "label": ["x", "x"]}, "d.parquet:2: column 'text' must be a string"),
        ({"text": ["a" * 1_000_001], "label": ["x"]}, "d.parquet:1: column 'text' must be at most"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}, "at least one"),
    ],
)
def test_a_bad_column_or_row_is_named_and_its_content_is_not(
    columns: dict[str, Any], says: str, tmp_path: Path
) -> None:
    found = fault(write(tmp_path / "d.parquet", columns))
    assert says in found
    assert "secret" not in found


def test_bytes_that_are_no_text_are_named_by_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe secret"], pa.binary()).view(pa.string())
    found = fault(write(tmp_path / "d.parquet", {"text": raw, "label": ["x", "x"]}))
    assert found == "d.parquet:2: column 'text' must be UTF-8, got undecodable bytes"


@pytest.mark.parametrize("damage", ["cut", "garbage", "bytes", "empty"])
def test_a_damaged_file_is_one_error_without_content(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"text": ["secret " * 90] * 50, "label": ["x"] * 50})
    whole = path.read_bytes()
    made = {
        "cut": whole[: len(whole) // 2],
        "garbage": b"PAR1" + b"secret" * 40 + b"PAR1",
        "bytes": whole[:4] + b"\xff" * 60 + whole[64:],
        "empty": b"",
    }
    path.write_bytes(made[damage])
    found = fault(path)
    assert found.startswith("d.parquet must be a whole Parquet file")
    assert "secret" not in found


def test_a_small_file_that_unfolds_beyond_memory_is_refused_before_it_does(tmp_path: Path) -> None:
    # A hundred thousand pointers to one word of 400,000 letters: 40 GB from less than 100 kB.
    values = pa.DictionaryArray.from_arrays(
        pa.array([0] * 100_000, pa.int32()), pa.array(["a" * 400_000])
    )
    row = pa.ListArray.from_arrays(pa.array([0, 100_000], pa.int32()), values)
    path = write(tmp_path / "d.parquet", {"tokens": row, "tags": row})
    assert path.stat().st_size < 1_000_000
    script = (
        "import resource, sys; from pathlib import Path;"
        "from common.data.readers import read_records; from common.data.records import ColumnMap;"
        "from common.errors import InvalidInput; import pyarrow.parquet;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: list(read_records(Path(sys.argv[1]), ColumnMap(words='tokens', tags='tags')))\n"
        "except InvalidInput as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    said, more_mib = done.stdout.splitlines()
    assert said == ("d.parquet:1: column 'tokens' must be at most 1000000 bytes, got 40000000000")
    assert int(more_mib) < 300


def test_encodings_that_share_prefixes_between_values_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.parquet",
        {"text": ["a" * 900_000] * 3, "label": ["x"] * 3},
        use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY", "label": "PLAIN"},
    )
    assert "got DELTA_BYTE_ARRAY" in fault(path)


@pytest.mark.parametrize(
    ("cap", "value", "says"),
    [
        ("MAX_ROWS", 2, "must hold at most 2 records, got 3"),
        ("MAX_COLUMNS", 1, "must have at most 1 columns, got 2"),
        ("MAX_PART_BYTES", 50, "must unpack to at most 50 bytes in a row group"),
        ("MAX_PART_VALUES", 2, "must have at most 2 values of a column in a row group, got 3"),
    ],
)
def test_what_the_footer_says_is_judged_before_any_page(
    cap: str, value: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, cap, value)
    path = write(tmp_path / "d.parquet", {"text": ["abc"] * 3, "label": ["x", "y", "z"]})
    assert says in fault(path)


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "d.parquet", {"text": ["a"], "label": ["x"]})
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:  # noqa: ANN401
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'veiltune[parquet]'" in fault(path)
