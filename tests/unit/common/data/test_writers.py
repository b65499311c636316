from pathlib import Path

import pytest

from common.data import wards
from common.data.readers import read_records
from common.data.records import ColumnMap, Record
from common.data.writers import write_records
from common.errors import InvalidInput


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    notes = wards.generate("dev", hospitals=wards.HOSPITALS, patients_per_hospital=3)
    path = tmp_path / "notes.jsonl"
    columns = write_records(path, notes)
    assert columns == ColumnMap(unit="unit", group="group", sex="sex", age="age")
    read = list(read_records(path, columns))
    assert [(r.text, r.label, r.unit, r.group, r.sex, r.age) for r in read] == [
        (r.text, r.label, r.unit, r.group, r.sex, r.age) for r in notes
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_field_that_some_records_lack_gets_no_column(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    columns = write_records(
        path, [Record("a", "x", "", "g", (), "male"), Record("b", "y", "", "g")]
    )
    assert columns == ColumnMap(group="group")
    assert list(read_records(path, columns)) == [
        Record("a", "x", group="g"),
        Record("b", "y", group="g"),
    ]


def test_nothing_and_another_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="records must be at least one"):
        write_records(tmp_path / "d.jsonl", [])
    with pytest.raises(InvalidInput, match=r"must end in \.jsonl, got 'd\.csv'"):
        write_records(tmp_path / "d.csv", [Record("a", "b")])


def test_units_are_never_lost_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="unit must be given for all records or for none"):
        write_records(tmp_path / "d.jsonl", [Record("a", "x", "p"), Record("b", "y")])


def test_words_with_their_tags_read_back(tmp_path: Path) -> None:
    notes = wards.generate("dev", hospitals=("A", "B"), patients_per_hospital=3)
    columns = write_records(tmp_path / "d.jsonl", notes, tagged=True)
    assert (columns.words, columns.tags, columns.unit) == ("words", "tags", "unit")
    found = list(read_records(tmp_path / "d.jsonl", columns))
    assert [(r.words, r.tags, r.unit) for r in found] == [(r.words, r.tags, r.unit) for r in notes]
    with pytest.raises(InvalidInput, match="must have words and tags, got some without"):
        write_records(tmp_path / "e.jsonl", [Record("a", "x")], tagged=True)
