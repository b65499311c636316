import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.records import Record
from common.data.units import privacy_units
from common.errors import InvalidInput

letters = st.sampled_from("abc")
tables = st.lists(st.builds(Record, text=letters, label=letters, unit=letters), max_size=20)


def test_each_row_is_a_unit_of_its_own_even_where_a_patient_is_known() -> None:
    rows = [Record("x", "l", "p"), Record("x", "l", "p"), Record("y", "l", "q")]
    assert privacy_units(rows, "record") == [[row] for row in rows]


def test_a_patients_rows_are_one_unit_wherever_they_lie() -> None:
    rows = [Record("x", "l", "p"), Record("y", "l", "q"), Record("z", "m", "p")]
    assert privacy_units(rows, "patient_id") == [[rows[0], rows[2]], [rows[1]]]


@given(tables, letters)
def test_taking_a_unit_away_leaves_the_others_as_they_are(rows: list[Record], gone: str) -> None:
    rest = privacy_units([row for row in rows if row.unit != gone], "patient_id")
    assert rest == [u for u in privacy_units(rows, "patient_id") if u[0].unit != gone]


@given(tables)
def test_a_duplicate_is_dropped_within_its_unit_alone(rows: list[Record]) -> None:
    kept = [row for unit in privacy_units(rows, "patient_id") for row in unit]
    assert sorted(map(repr, kept)) == sorted(map(repr, set(rows)))


def test_a_row_without_a_unit_is_refused_by_its_line_alone() -> None:
    rows = [Record("x", "l", "p", line=2), Record("secret", "l", "", line=3)]
    with pytest.raises(InvalidInput, match="line 3: patient_id must be given") as refused:
        privacy_units(rows, "patient_id")
    assert "secret" not in str(refused.value)
