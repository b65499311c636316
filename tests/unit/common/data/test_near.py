"""Near-duplicates. Oracle: the exact Jaccard index of every pair."""

import random
from collections.abc import Callable
from itertools import combinations

import pytest

from common.data import near
from common.data.check import check, table
from common.data.near import NEAR, NearCounts, jaccard, near_duplicates, runs
from common.data.records import Record


def units(records: list[Record]) -> list[tuple[str, int]]:
    return [(r.unit, -1) if r.unit else ("", i) for i, r in enumerate(records)]


def corpus(seed: int, texts: int = 60) -> list[Record]:
    """Texts of 10 to 70 words and copies of them with a few words changed; several a unit."""
    dice = random.Random(seed)
    records = []
    for _ in range(texts):
        words = [f"w{dice.randrange(400)}" for _ in range(dice.randrange(10, 70))]
        for _ in range(dice.randrange(1, 5)):
            copy = list(words)
            for _ in range(dice.randrange(5)):
                copy[dice.randrange(len(copy))] = f"w{dice.randrange(400)}"
            unit = f"p{dice.randrange(4)}" if dice.random() < 0.8 else ""
            records.append(Record(" ".join(copy), dice.choice("xy"), unit))
    return records


def by_every_pair(records: list[Record]) -> NearCounts:
    """The definition, word by word, with sets made anew."""
    within = across = 0
    owners = units(records)
    sets = []
    for record in records:
        words = record.text.lower().split()
        sets.append({tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))})
    for i, record in enumerate(records):
        like = [
            owners[j]
            for j in range(i)
            if (records[j].text, records[j].label) != (record.text, record.label)
            and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= NEAR
        ]
        within += owners[i] in like
        across += bool(like) and owners[i] not in like
    return NearCounts(within, across)


def test_counts_are_those_of_the_exact_index_over_all_pairs() -> None:
    counted = [(near_duplicates(made, units(made)), made) for made in map(corpus, range(6))]
    for found, records in counted:
        assert found == by_every_pair(records)
    assert sum(found.within for found, _ in counted if found) > 10
    assert sum(found.across for found, _ in counted if found) > 60


def templated(records: int, own_words: int) -> list[Record]:
    """Notes of 60 shared words and some that each has alone; five a unit."""
    shared = [f"w{i}" for i in range(60)]
    own = [[f"n{i}x{word}" for word in range(own_words)] for i in range(records)]
    return [
        Record(" ".join([*shared, *own[i]]), "x", f"p{i % -(-records // 5)}")
        for i in range(records)
    ]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Record]], tuple[object, int]]:
    """What is counted, and how many pairs were compared for it."""

    def count(records: list[Record]) -> tuple[object, int]:
        pairs: list[float] = []

        def noted(first: frozenset[str], second: frozenset[str]) -> float:
            pairs.append(jaccard(first, second))
            return pairs[-1]

        monkeypatch.setattr(near, "jaccard", noted)
        return near_duplicates(records, units(records)), len(pairs)

    return count


def test_notes_of_a_template_cost_about_one_comparison_each(
    compared: Callable[[list[Record]], tuple[object, int]],
) -> None:
    # 58 shared runs and one own: 58/60 are shared by any two, so all but the first are near.
    assert compared(templated(200, 1)) == (NearCounts(160, 39), 199)
    assert compared(templated(800, 1)) == (NearCounts(640, 159), 799)


def test_a_crowd_that_just_is_not_near_is_not_compared_pair_by_pair(
    compared: Callable[[list[Record]], tuple[object, int]],
) -> None:
    # 58 shared runs and 10 own: 58/78 = 0.74. Each is compared with 32 at most, of four own 4.
    crowd = templated(400, 10)
    found, pairs = compared(crowd)
    assert found == NearCounts(0, 0)
    assert 10 * len(crowd) < pairs <= 36 * len(crowd)


def test_a_near_one_is_found_in_a_crowd() -> None:
    # The last is one of them with its last word changed, so 67/69 of their runs are shared.
    crowd = templated(400, 10)
    later = Record(crowd[150].text.rsplit(" ", 1)[0] + " other", "x", "new")
    assert near_duplicates([*crowd, later], units([*crowd, later])) == NearCounts(0, 1)


def test_the_index_by_hand() -> None:
    first, second = runs("a b c d e"), runs("A, b c d f!")
    assert first == {"a b c", "b c d", "c d e"}
    assert jaccard(first, second) == 2 / 4
    assert runs("") == {""}
    assert runs("two words") == {"two words"}


def test_an_exact_duplicate_is_no_near_one() -> None:
    same = [Record("a b c d", "x", unit) for unit in ("p", "p", "q")]
    assert near_duplicates(same, units(same)) == NearCounts(0, 0)
    other = [*same, Record("A b c d.", "x", "q"), Record("a b c d", "y", "r")]
    assert near_duplicates(other, units(other)) == NearCounts(1, 1)


def test_beyond_what_is_counted_the_report_says_so() -> None:
    records = [Record(str(i), "x") for i in range(100_001)]
    assert near_duplicates(records, units(records)) is None
    report = check([Record("a", "x")], None, len, 0)
    assert report.near == NearCounts(0, 0)
    rows = list(table(report).columns[1].cells)
    assert rows[4:6] == ["0", "0"]


def test_the_estimate_proposes_nearly_every_pair_that_is_near() -> None:
    # The bands' own arithmetic at the very threshold: fewer than one in ten thousand is missed.
    assert (1 - NEAR**5) ** 25 < 1e-4
    pairs = sum(jaccard(runs(a.text), runs(b.text)) >= NEAR for a, b in combinations(corpus(7), 2))
    assert pairs > 10
