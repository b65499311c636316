"""What a public set shares with a site's records, counted for the site's own eyes.

A job's hold-out must share no unit with any site. Only the site can see whether it does, and what
it sees is a fact about its records: nothing here is in any message or log.

Not covered: a unit that both know by other names and tell of in other words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from common.data.near import NEAR, RUN_WORDS, near_to
from common.data.records import Record


@dataclass(frozen=True, slots=True)
class Overlap:
    """A site's records beside a public set. Sensitive: exact counts of private records.

    Attributes:
        held: records of the public set.
        same: the site's records whose text is in it, word by word.
        near: further ones that say almost what one of it says; None where there are too many to
            count.
        units: names of units that are in both; of the records that have one.
        has_units: whether both sides name units at all.
    """

    held: int
    same: int
    near: int | None
    units: int
    has_units: bool


def overlap(records: Sequence[Record], held: Sequence[Record]) -> Overlap:
    """Compare a site's ``records`` with a public set, ``held``. Sensitive."""
    said = {record.text for record in held}
    others = [record for record in records if record.text not in said]
    own, public = ({record.unit for record in side} - {""} for side in (records, held))
    return Overlap(
        held=len(held),
        same=len(records) - len(others),
        near=near_to(others, held),
        units=len(own & public),
        has_units=bool(own and public),
    )


def table(found: Overlap, name: str) -> Table:
    """The comparison as a table for a terminal."""
    shown = Table(title=f"Beside {name}, {found.held:,} records (for this site only)")
    shown.title_justify = "left"
    shown.add_column("of this site's")
    shown.add_column("count", justify="right")
    shown.add_column("note")
    near = "not counted" if found.near is None else f"{found.near:,}"
    units = f"{found.units:,}" if found.has_units else "not counted"
    named = "by name: two sets may name two units alike" if found.has_units else "one has no units"
    shown.add_row("records in it, word by word", f"{found.same:,}", "whatever their label")
    shown.add_row("near ones", near, f"{NEAR:.0%} of runs of {RUN_WORDS} words shared")
    shown.add_row("units in it", units, named)
    return shown
