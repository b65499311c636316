import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.caps import MAX_FIELD_BYTES
from common.data.readers import drop_duplicates, normalise, read_records
from common.data.records import ColumnMap, Record, require_labels
from common.errors import InvalidInput

SECRET = "Mrs Blackwood, 3 Elm Row"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def fault(path: Path, columns: ColumnMap | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        list(read_records(path, columns))
    return str(caught.value)


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_csv_row_becomes_a_record_with_its_line(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"d{ending}", b'note,dx,pid\n"one, ""two""\nthree",x,p1\n\nfour,y,p2\n')
    columns = ColumnMap(text="note", label="dx", unit="pid")
    first, second = read_records(path, columns)
    assert first == Record('one, "two"\nthree', "x", "p1")
    assert (first.line, second.line) == (2, 5)  # the quoted line end and the blank line count


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonl.gz", ".JSONL"])
def test_a_json_line_becomes_a_record_and_plain_values_become_text(
    tmp_path: Path, ending: str
) -> None:
    data = jsonl({"text": "a", "label": 3, "u": 17}, {"text": "b", "label": True, "u": "q"})
    records = list(read_records(write(tmp_path / f"d{ending}", data), ColumnMap(unit="u")))
    assert records == [Record("a", "3", "17"), Record("b", "True", "q")]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", b"\xef\xbb\xbftext,label\na,b\n")
    assert list(read_records(path)) == [Record("a", "b")]


GOOD = {"text": "fine", "label": "x"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b'{"text": "%s", "label": ' % SECRET.encode(), "valid JSON"),
        (b'["%s"]' % SECRET.encode(), "got a list"),
        (b'"%s"' % SECRET.encode(), "got a string"),
        (b'{"text": "%s"}' % SECRET.encode(), "column 'label' must be present"),
        (b'{"text": ["%s"], "label": "x"}' % SECRET.encode(), "column 'text' must be a string"),
        (b'{"text": null, "label": "x"}', "got null"),
        (b'{"text": 4, "label": "x"}', "column 'text' must be a string, got an integer"),
        (b'{"text": "%s", "label": 0.5}' % SECRET.encode(), "column 'label' must be"),
        (b'{"text": "%s", "label": " "}' % SECRET.encode(), "column 'label' must hold a label"),
        (b'{"text": "%s \xff", "label": "x"}' % SECRET.encode(), "undecodable bytes at "),
        (b'{"text": "%s \\u0000", "label": "x"}' % SECRET.encode(), "NUL"),
        (b'{"text": "%s \0", "label": "x"}' % SECRET.encode(), "NUL"),
        (b'{"text": "%s", "label": "x", "text": "y"}' % SECRET.encode(), "got one twice"),
        (b'{"text": "a", "label": %s}' % (b"9" * 5000), "valid JSON"),
        (b"[" * 100_000, "valid JSON"),
        (json.dumps({"text": "a" * MAX_FIELD_BYTES + "b", "label": "x"}).encode(), "at most"),
    ],
)
def test_a_bad_json_row_is_named_by_line_and_never_by_content(
    tmp_path: Path, row: bytes, says: str
) -> None:
    path = write(tmp_path / "d.jsonl", jsonl(GOOD, GOOD) + row + b"\n" + jsonl(GOOD))
    message = fault(path)
    assert message.startswith("d.jsonl:3: ")
    assert says in message
    assert "Blackwood" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b'"%s' % SECRET.encode(), "unbalanced quote"),
        (b'"%s"x,y' % SECRET.encode(), "unbalanced quote"),
        (SECRET.replace(",", "").encode(), "must have the header's 2 columns, got 1"),
        (b"a,b,%s" % SECRET.replace(",", "").encode(), "2 columns, got 3"),
        (b"%s \xc3(,x" % SECRET.replace(",", "").encode(), "undecodable bytes"),
        (b"\0,x", "NUL"),
        (b"a" * (MAX_FIELD_BYTES + 1) + b",x", "column 'text' must be at most"),
    ],
)
def test_a_bad_csv_row_is_named_by_line_and_never_by_content(
    tmp_path: Path, row: bytes, says: str
) -> None:
    message = fault(write(tmp_path / "d.csv", b"text,label\nfine,x\n" + row + b"\n"))
    assert message.startswith("d.csv:3: ")
    assert says in message
    assert "Blackwood" not in message


def test_no_exception_in_the_chain_shows_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", b'{"text": "%s", "label"' % SECRET.encode())
    with pytest.raises(InvalidInput) as caught:
        list(read_records(path))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("data", [b"text,kind\na,b\n", b"no header at all\na\n"])
def test_a_missing_label_column_is_named_before_any_record_is_taken(
    tmp_path: Path, data: bytes
) -> None:
    path = write(tmp_path / "d.csv", data)
    with pytest.raises(InvalidInput, match=r"d\.csv:1: header must name column .*'label'"):
        read_records(path)  # not iterated


@pytest.mark.parametrize(
    ("name", "data"), [("d.csv", b""), ("d.csv", b"text,label\n"), ("d.jsonl", b"\n \n")]
)
def test_a_file_without_a_record_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    message = fault(write(tmp_path / name, data))
    assert message == f"{name} must hold at least one record, got none"


def test_an_empty_unit_is_refused_where_units_are_mapped(tmp_path: Path) -> None:
    # Two rows of one patient without an id would pass for two patients.
    path = write(tmp_path / "d.csv", b"text,label,pid\na,x,p\nb,x,\n")
    assert (
        fault(path, ColumnMap(unit="pid")) == "d.csv:3: column 'pid' must hold a unit, got nothing"
    )


def test_a_gzip_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(*[GOOD] * 1000))[:-9])
    assert "must be whole gzip" in fault(path)


@pytest.mark.parametrize("data", [b"plain text", b"\x1f\x8b\x08\x00garbage-garbage"])
def test_what_is_no_gzip_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(data)
    assert "must be whole gzip" in fault(path)


def test_an_unknown_format_and_a_missing_file_are_errors_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"must end in \.csv, \.jsonl"):
        read_records(tmp_path / "d.xlsx")
    with pytest.raises(InvalidInput, match=r"or in \.parquet, got 'd\.parquet\.gz'"):
        read_records(tmp_path / "d.parquet.gz")
    with pytest.raises(InvalidInput, match="must be a readable file"):
        read_records(tmp_path / "d.csv")
    with pytest.raises(InvalidInput, match="label column must be named"):
        ColumnMap(label="")


@pytest.mark.slow
def test_an_endless_row_is_not_taken_into_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl.gz", b"[" + b" " * 20_000_000)
    assert "d.jsonl.gz:1: row must be at most" in fault(path)
    path = write(tmp_path / "d.csv.gz", b'text,label\n"' + b"aaaaaaa\n" * 2_500_000)
    assert "a quote left open?" in fault(path)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_a_normalised_text_is_nfc_without_controls(text: str) -> None:
    result = normalise(text)
    assert unicodedata.is_normalized("NFC", result)
    assert not [
        c
        for c in result
        if unicodedata.category(c)[0] == "C"
        and c not in "\t\n"
        and unicodedata.category(c) in ("Cc", "Cf", "Cs")
    ]
    assert result == result.strip()
    result.encode()  # no lone surrogate is left


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301", "\u00e9"),  # UAX 15: canonical composition
        ("\u212b", "\u00c5"),  # the angstrom sign's canonical form
        ("a\u200bb\u202ec\ufeffd", "abcd"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("\ta\tb \x1b[0m\x00", "a\tb [0m"),
        ("\u00a0 x \u3000", "x"),
    ],
)
def test_normalise_by_example(text: str, expected: str) -> None:
    assert normalise(text) == expected


rows = st.builds(
    Record,
    text=st.sampled_from(["a", "b"]),
    label=st.sampled_from(["x", "y"]),
    unit=st.sampled_from(["", "p", "q"]),
)


@given(st.lists(rows), st.sampled_from(["p", "q"]))
def test_dropping_duplicates_never_looks_across_units(records: list[Record], gone: str) -> None:
    kept = drop_duplicates(records)
    without = drop_duplicates([r for r in records if r.unit != gone])
    assert without == [r for r in kept if r.unit != gone]
    assert set(kept) == set(records)
    assert [r for r in kept if not r.unit] == [r for r in records if not r.unit]
    of_units = [r for r in kept if r.unit]
    assert len(of_units) == len(set(of_units))


def test_a_label_outside_the_public_set_is_named_by_line_only() -> None:
    records = [Record("a", "x", line=2), Record(SECRET, "Blackwood", line=7)]
    with pytest.raises(InvalidInput) as caught:
        require_labels(records, ["x", "y"], "notes.csv")
    assert str(caught.value) == (
        "notes.csv:7: label must be one of the job's 2 public labels, got another"
    )
    require_labels(records[:1], ["x", "y"], "notes.csv")


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=20))
def test_what_json_wrote_is_read_back_normalised(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    pairs = [
        (t.replace("\0", ""), label) for t, label in pairs if normalise(label) and "\0" not in label
    ]
    if not pairs:
        return
    path = tmp_path_factory.mktemp("rows") / "d.jsonl"
    write(path, jsonl(*({"text": t, "label": label} for t, label in pairs)))
    read = [(r.text, r.label) for r in read_records(path)]
    assert read == [(normalise(t), normalise(label)) for t, label in pairs]


def test_a_records_line_is_no_part_of_what_it_is() -> None:
    make: Callable[[int], Record] = lambda line: Record("a", "b", line=line)  # noqa: E731
    assert make(1) == make(2)
    assert hash(make(1)) == hash(make(2))


def test_the_cap_is_on_a_row_and_not_on_the_file(tmp_path: Path) -> None:
    rows = b"".join(b"%d %s,x\n" % (i, b"a" * 900_000) for i in range(20))  # 18 MB
    path = write(tmp_path / "d.csv", b"text,label\n" + rows)
    assert sum(1 for _ in read_records(path)) == 20


TAGGED = ColumnMap(words="tokens", tags="tags")
WORDS = Record("No caf\u00e9 .", "", words=("No", "caf\u00e9", "."), tags=("O", "B-Place", "O"))


def test_words_and_tags_are_lists_in_json_and_divided_by_space_in_csv(tmp_path: Path) -> None:
    row = {"tokens": ["No", "cafe\u0301", "."], "tags": ["O", "B-Place", "O"], "text": 7}
    path = write(tmp_path / "d.jsonl", json.dumps(row).encode())
    assert list(read_records(path, TAGGED)) == [WORDS]
    path = write(tmp_path / "d.csv", "tokens,tags\nNo caf\u00e9 .,O B-Place  O\n".encode())
    assert list(read_records(path, TAGGED)) == [WORDS]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tags must be one for each word, got 1 for 2"),
        ({"tokens": [], "tags": []}, "column 'tokens' must hold 1 to 100000 words, got 0"),
        ({"tokens": ["a"] * 100_001, "tags": []}, "got 100001"),
        ({"tokens": "secret", "tags": ["O"]}, "column 'tokens' must be a list of strings"),
        ({"tokens": ["secret", 5], "tags": ["O", "O"]}, "got an integer in it"),
        ({"tokens": ["secret\0"], "tags": ["O"]}, "got a NUL character"),
        ({"tokens": ["secret"], "tags": ["\u200b"]}, "every word must have a tag"),
        ({"tokens": ["x" * 600_000, "y" * 400_001], "tags": ["O", "O"]}, "at most 1000000 bytes"),
        ({"tokens": ["secret"]}, "column 'tags' must be present"),
    ],
)
def test_a_bad_row_of_words_is_named_by_line_and_never_by_content(
    row: dict[str, object], says: str, tmp_path: Path
) -> None:
    good = json.dumps({"tokens": ["a"], "tags": ["O"]})
    found = fault(write(tmp_path / "d.jsonl", f"{good}\n{json.dumps(row)}".encode()), TAGGED)
    assert found.startswith("d.jsonl:2: ")
    assert says in found
    assert "secret" not in found


def test_a_word_of_nothing_but_marks_keeps_its_place(tmp_path: Path) -> None:
    row = {"tokens": ["a", "\u200b", "b"], "tags": ["O", "B-X", "I-X"]}
    (found,) = read_records(write(tmp_path / "d.jsonl", json.dumps(row).encode()), TAGGED)
    assert found.words == ("a", "", "b")


def test_more_rows_columns_or_bytes_than_are_taken_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.data.readers.MAX_ROWS", 2)
    monkeypatch.setattr("common.data.rows.MAX_COLUMNS", 3)
    three = write(tmp_path / "d.csv", b"text,label\n" + b"a,x\n" * 3)
    assert fault(three) == "d.csv must hold at most 2 records, got more"
    wide = write(tmp_path / "w.csv", b"text,label,c,d\na,x,1,2\n")
    assert "header must have at most 3 columns, got 4" in fault(wide)
    keys = write(tmp_path / "w.jsonl", b'{"text": "a", "label": "x", "c": 1, "d": 2}')
    assert "row must have at most 3 keys, got 4" in fault(keys)
    monkeypatch.setattr("common.data.readers.MAX_FILE_BYTES", 10)
    assert fault(wide) == "w.csv must be at most 10 bytes, got 23"
