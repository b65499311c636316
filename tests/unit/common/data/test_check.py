import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from common.data.check import DataReport, band, check, table
from common.data.readers import drop_duplicates
from common.data.records import Record


def words(text: str) -> int:
    return len(text.split())


SAMPLE = [
    Record("one two three", "x", "p"),
    Record("one two three", "x", "p"),  # again within p
    Record("one two three", "x", "q"),  # again across units
    Record("one two three", "y", "q"),  # another label is another record
    Record("", "x", "q"),
    Record("a b c d e f g", "z"),
    Record("a b c d e f g", "z"),  # without a unit: its own, so across
]


def report(records: list[Record] = SAMPLE) -> DataReport:
    return check(records, ["x", "y", "w"], words, 5)


def test_everything_is_counted() -> None:
    found = report()
    assert (found.records, found.units, found.notes_median, found.notes_max) == (7, 4, 1.5, 3)
    assert found.labels == {"x": 4, "y": 1, "w": 0}
    assert found.unknown_labels == 2
    assert (found.duplicates_within, found.duplicates_across) == (1, 2)
    assert (found.empty, found.over_long) == (1, 2)
    assert (found.tokens_median, found.tokens_max) == (3, 7)
    assert found.faults == (
        "2 records have a label outside the public set",
        "1 records have no text",
    )


def test_without_a_public_set_no_label_is_unknown() -> None:
    found = check(SAMPLE, None, words, 5)
    assert found.labels == {"x": 4, "y": 1, "z": 2}
    assert found.unknown_labels == 0


def test_no_records_are_a_fault_and_no_crash() -> None:
    assert report([]).faults == ("there is no record",)
    assert "privacy units" in shown(report([]))


@given(
    st.lists(
        st.builds(
            Record,
            text=st.sampled_from("ab"),
            label=st.sampled_from("xy"),
            unit=st.sampled_from(["", "p", "q"]),
        )
    )
)
def test_duplicates_within_are_those_that_are_dropped(records: list[Record]) -> None:
    assert report(records).duplicates_within == len(records) - len(drop_duplicates(records))


def test_the_table_shows_counts_and_no_text() -> None:
    text = shown(report())
    assert "label x" in text
    assert "under 10" in text
    assert "one two three" not in text


def test_bands_meet_without_a_gap() -> None:
    edges = [band(n) for n in (0, 1, 9, 10, 99, 100, 999, 1_000, 9_999, 10_000)]
    assert edges == [
        "none",
        "under 10",
        "under 10",
        "10-99",
        "10-99",
        "100-999",
        "100-999",
        "1,000-9,999",
        "1,000-9,999",
        "10,000 or more",
    ]


def shown(found: DataReport) -> str:
    console = Console(file=io.StringIO(), width=120, no_color=True)
    console.print(table(found))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()
