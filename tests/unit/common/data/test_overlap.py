"""What a site's records share with a public set. Oracle: sets, and every pair's exact index."""

import io
import random

from rich.console import Console

from common.data import near
from common.data.near import NEAR, near_to
from common.data.overlap import Overlap, overlap, table
from common.data.records import Record
from tests.unit.common.data.test_near import corpus


def exactly_near(records: list[Record], others: list[Record]) -> int:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    said = [runs(other.text) for other in others]
    return sum(
        any(len(mine & one) / len(mine | one) >= NEAR for one in said)
        for mine in (runs(record.text) for record in records)
    )


def test_records_and_units_in_both_are_counted_as_sets_say() -> None:
    near_ones = 0
    for seed in range(5):
        records, dice = corpus(seed), random.Random(seed)
        held = [*dice.sample(records, 20), Record("quite another text", "x", "q")]
        found = overlap(records, held)
        texts = {one.text for one in held}
        others = [record for record in records if record.text not in texts]
        assert found.held == 21
        assert found.same == len(records) - len(others) >= 20
        assert found.near == exactly_near(others, held)
        near_ones += found.near
        both = {record.unit for record in records} & {one.unit for one in held} - {""}
        assert found.units == len(both) > 0
    assert near_ones > 10


def test_a_label_makes_no_other_record_and_a_missing_unit_no_common_one() -> None:
    found = overlap([Record("a b c d", "x"), Record("e f g h", "x", "p")], [Record("a b c d", "y")])
    assert found == Overlap(held=1, same=1, near=0, units=0, has_units=False)


def test_too_many_to_compare_are_not_counted_and_the_screen_says_so() -> None:
    assert near.MOST_RECORDS == 100_000
    many = [Record("a b c", "x")] * 100_000
    assert near_to(many, many[:1]) is None
    buffer = io.StringIO()
    Console(file=buffer, width=100).print(table(overlap(many, [Record("d e f", "x")]), "notes.csv"))
    assert "near ones" in buffer.getvalue()
    assert "not counted" in buffer.getvalue()
