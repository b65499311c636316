"""What a site's data holds, counted for the site's own eyes.

Everything here is computed from records and leaves no site: no message carries a ``DataReport``,
and nothing of it goes into a log.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.table import Table

from common.data.near import NEAR, RUN_WORDS, NearCounts, near_duplicates
from common.data.records import Record
from common.words import escaped

# Upper ends of the bands in which label counts are shown to others in the room.
_BANDS = ((9, "under 10"), (99, "10-99"), (999, "100-999"), (9_999, "1,000-9,999"))


_NEAR_NOTE = f"kept; {NEAR:.0%} of runs of {RUN_WORDS} words shared"


@dataclass(frozen=True, slots=True)
class DataReport:
    """Counts over one data set. Sensitive: exact counts of private records.

    Attributes:
        records: rows read.
        units: privacy units; a record without one counts as its own.
        notes_median: records of a unit, median over units.
        notes_max: records of the largest unit.
        labels: exact count of each label, of the public set first and in its order; of words where
            those have tags.
        unknown_labels: records whose label is outside the public set.
        duplicates_within: records that ``drop_duplicates`` would drop.
        duplicates_across: records whose text and label another unit has had before.
        near: records that say almost what an earlier one says; None where there are too many to
            count.
        empty: records whose text is empty once normalised.
        over_long: records of more tokens than the model takes.
        tokens_median: tokens of a record, median.
        tokens_max: tokens of the longest record.
        max_length: tokens that the model takes; 0 where no model is known.
        length_unit: what lengths were counted in.
    """

    records: int
    units: int
    notes_median: float
    notes_max: int
    labels: dict[str, int]
    unknown_labels: int
    duplicates_within: int
    duplicates_across: int
    near: NearCounts | None
    empty: int
    over_long: int
    tokens_median: float
    tokens_max: int
    max_length: int
    length_unit: str = "tokens"

    @property
    def faults(self) -> tuple[str, ...]:
        """What keeps the data from being used as it is, in words; empty when nothing does."""
        found = []
        if not self.records:
            found.append("there is no record")
        if self.unknown_labels:
            found.append(f"{self.unknown_labels} records have a label outside the public set")
        if self.empty:
            found.append(f"{self.empty} records have no text")
        return tuple(found)


def check(
    records: Iterable[Record],
    labels: Iterable[str] | None,
    token_count: Callable[[str], int],
    max_length: int,
    unit: str = "tokens",
) -> DataReport:
    """Count what a site should know about its data before a job sees it.

    Args:
        records: as read, before ``drop_duplicates``. Sensitive.
        labels: the job's public labels; None to take whatever occurs.
        token_count: tokens of a text under the job's tokenizer, special ones included.
        max_length: tokens that the model takes; the rest of a longer text is cut off. 0 where no
            model is known, and then no text is over-long.
        unit: what ``token_count`` counts, for people.
    """
    records = list(records)
    counts = Counter(mark for record in records for mark in record.marks())
    public = dict.fromkeys(labels) if labels is not None else dict.fromkeys(sorted(counts))
    owners = [_unit(number, record) for number, record in enumerate(records)]
    units = Counter(owners)
    within, across = _duplicates(records)
    tokens = [token_count(record.text) for record in records]
    return DataReport(
        records=len(records),
        units=len(units),
        notes_median=statistics.median(units.values()) if units else 0,
        notes_max=max(units.values(), default=0),
        labels={label: counts[label] for label in public},
        unknown_labels=sum(not public.keys() >= set(record.marks()) for record in records),
        duplicates_within=within,
        duplicates_across=across,
        near=near_duplicates(records, owners),
        empty=sum(not record.text for record in records),
        over_long=sum(count > max_length for count in tokens) if max_length else 0,
        tokens_median=statistics.median(tokens) if tokens else 0,
        tokens_max=max(tokens, default=0),
        max_length=max_length,
        length_unit=unit,
    )


def band(count: int) -> str:
    """The band that a count falls into.

    >>> band(0), band(42), band(12_345)
    ('none', '10-99', '10,000 or more')
    """
    if not count:
        return "none"
    return next((name for upper, name in _BANDS if count <= upper), "10,000 or more")


def table(report: DataReport) -> Table:
    """The report as a table for a terminal."""
    shown = Table(title="Data check (for this site only)", title_justify="left")
    shown.add_column("what")
    shown.add_column("count", justify="right")
    shown.add_column("note")
    shown.add_row("records", f"{report.records:,}", "")
    shown.add_row(
        "privacy units",
        f"{report.units:,}",
        f"median {report.notes_median:g}, at most {report.notes_max} records each",
    )
    near = report.near
    for name, count, note in (
        ("duplicates within a unit", report.duplicates_within, "dropped before training"),
        ("duplicates across units", report.duplicates_across, "kept: they are other people's"),
        ("near-duplicates within a unit", near and near.within, _NEAR_NOTE),
        ("near-duplicates across units", near and near.across, _NEAR_NOTE),
        ("empty texts", report.empty, ""),
        ("over-long texts", report.over_long, _length_note(report)),
        ("labels outside the set", report.unknown_labels, ""),
    ):
        shown.add_row(name, "not counted" if count is None else f"{count:,}", note)
    shown.add_section()
    for label, count in report.labels.items():
        shown.add_row(f"label {escaped(label)}", f"{count:,}", band(count))
    return shown


def _length_note(report: DataReport) -> str:
    found = f"median {report.tokens_median:g}, longest {report.tokens_max}"
    if not report.max_length:
        return f"no job, no limit; in {report.length_unit}: {found}"
    return f"cut at {report.max_length} {report.length_unit} ({found})"


def _unit(number: int, record: Record) -> tuple[str, int]:
    """A key that is the record's own where it has no unit."""
    return (record.unit, -1) if record.unit else ("", number)


def _duplicates(records: list[Record]) -> tuple[int, int]:
    """Records seen before in their own unit, and those seen before in another only."""
    first_units: dict[tuple[object, ...], set[tuple[str, int]]] = {}
    within = across = 0
    for number, record in enumerate(records):
        units = first_units.setdefault(record.content, set())
        unit = _unit(number, record)
        within += unit in units
        across += bool(units) and unit not in units
        units.add(unit)
    return within, across
