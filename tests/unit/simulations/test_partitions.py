from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.data.records import Record
from common.errors import InvalidInput
from simulations.partitions import partition, site_names


def make(owners: list[tuple[int, str]]) -> list[Record]:
    """Records that differ in their text; unit 0 is none. A unit's group follows from its number."""
    return [
        Record(f"note {i}", label, f"u{unit}" if unit else "", f"g{(unit or i) % 3}")
        for i, (unit, label) in enumerate(owners)
    ]


data = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=60).map(
    make
)
schemes = st.sampled_from(
    ["iid", "dirichlet:0.5", "dirichlet:20", "natural", "shards:2", "quantity:0.5"]
)


def deal(records: list[Record], how: str, sites: int, seed: int) -> dict[str, list[Record]]:
    """Deal, or give the example up where the request cannot be met."""
    try:
        return partition(records, how, sites, seed)
    except InvalidInput:
        assume(False)
        raise


@given(data, schemes, st.integers(1, 5), st.integers(0, 2**32))
def test_every_record_goes_to_exactly_one_site(
    records: list[Record], how: str, sites: int, seed: int
) -> None:
    dealt = deal(records, how, sites, seed)
    texts = Counter(record.text for site in dealt.values() for record in site)
    assert texts == Counter(record.text for record in records)
    assert list(dealt) == list(site_names(sites))
    assert all(dealt.values())


@given(data, schemes, st.integers(1, 5), st.integers(0, 2**32))
def test_a_unit_stays_whole_and_order_is_kept(
    records: list[Record], how: str, sites: int, seed: int
) -> None:
    dealt = deal(records, how, sites, seed)
    places: dict[str, set[str]] = {}
    for name, mine in dealt.items():
        numbers = [int(record.text.split()[1]) for record in mine]
        assert numbers == sorted(numbers)
        for record in mine:
            if record.unit:
                places.setdefault(record.unit, set()).add(name)
    assert all(len(names) == 1 for names in places.values())


@given(data, schemes, st.integers(1, 5), st.integers(0, 2**32))
def test_the_seed_decides(records: list[Record], how: str, sites: int, seed: int) -> None:
    assert deal(records, how, sites, seed) == deal(records, how, sites, seed)


FOUR_HUNDRED = make([(0, "abcd"[i % 4]) for i in range(400)])


def test_another_seed_deals_another_way() -> None:
    assert partition(FOUR_HUNDRED, "iid", 3, 1) != partition(FOUR_HUNDRED, "iid", 3, 2)
    first, second = (partition(FOUR_HUNDRED, "dirichlet:0.5", 3, seed) for seed in (1, 2))
    assert first != second


def test_quantity_skews_sizes_and_leaves_labels_as_they_are() -> None:
    dealt = partition(FOUR_HUNDRED, "quantity:0.4", 4, 2)
    sizes = sorted(len(site) for site in dealt.values())
    assert sizes[-1] > 4 * sizes[0]
    largest = max(dealt.values(), key=len)
    shares = [count / len(largest) for count in Counter(r.label for r in largest).values()]
    assert all(abs(share - 0.25) < 0.1 for share in shares)
    even = [len(site) for site in partition(FOUR_HUNDRED, "quantity:1000", 4, 2).values()]
    assert max(even) < 1.15 * min(even)


def test_iid_sites_differ_by_one_unit_at_most() -> None:
    sizes = [len(site) for site in partition(FOUR_HUNDRED, "iid", 7, 3).values()]
    assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    def largest_share(how: str) -> float:
        dealt = partition(FOUR_HUNDRED, how, 4, 5)
        return sum(max(Counter(r.label for r in site).values()) for site in dealt.values()) / 400

    assert largest_share("dirichlet:0.1") > 0.6
    assert largest_share("dirichlet:1000") < 0.35  # 0.25 were even


def test_natural_gives_each_group_a_site_or_joins_the_small_ones() -> None:
    records = [Record("t", "a", group=group) for group in "ccccccbbbbaaad"]
    assert {n: {r.group for r in s} for n, s in partition(records, "natural", 4, 0).items()} == {
        "A": {"a"},
        "B": {"b"},
        "C": {"c"},
        "D": {"d"},
    }
    two = partition(records, "natural", ["north", "south"], 0)
    assert {n: {r.group for r in s} for n, s in two.items()} == {
        "north": {"c", "d"},
        "south": {"a", "b"},
    }


@pytest.mark.parametrize(
    ("records", "how", "sites", "says"),
    [
        (FOUR_HUNDRED, "natural", 4, "at most the 3 groups"),
        ([Record("t", "a")], "natural", 1, "got one without a group"),
        ([Record("t", "a", "u", g) for g in "xy"], "natural", 1, "got one in 2 groups"),
        ([Record("t", "a", "u"), Record("s", "a", "u")], "iid", 2, "at most the 1 privacy units"),
        (FOUR_HUNDRED, "iid", 0, "sites must be 1 to"),
        (FOUR_HUNDRED, "iid", ["A", "A"], "distinct names"),
        (FOUR_HUNDRED, "dirichlet:0", 2, "ALPHA above 0"),
        (FOUR_HUNDRED, "dirichlet:nan", 2, "ALPHA above 0"),
        (FOUR_HUNDRED, "dirichlet:", 2, "ALPHA above 0"),
        (FOUR_HUNDRED, "by name", 2, "must be natural, iid, dirichlet:ALPHA"),
        (FOUR_HUNDRED, "dirichlet:0.001", 40, "must leave no site empty"),
        (FOUR_HUNDRED, "shards:0", 2, "shards:K with K from 1 to 9999"),
        (FOUR_HUNDRED, "shards:-1", 2, "shards:K with K from 1 to 9999"),
        (FOUR_HUNDRED, "shards:300", 2, "must cut the data's 400 privacy units into 600 shards"),
    ],
)
def test_what_cannot_be_dealt_is_an_error(
    records: list[Record], how: str, sites: int | list[str], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        partition(records, how, sites, 0)


def test_site_names_stay_distinct_past_the_alphabet() -> None:
    names = site_names(60)
    assert len(set(names)) == 60
    assert names[25:28] == ("Z", "S27", "S28")


def test_shards_are_those_of_mcmahan_et_al() -> None:
    # 200 units of 10 labels, 10 sites, 2 shards each: 20 shards of 10 units, so of one label each.
    records = [Record(f"note {i}", f"l{i % 10}") for i in range(200)]
    dealt = partition(records, "shards:2", 10, 4)
    assert {len(mine) for mine in dealt.values()} == {20}
    kinds = [len({record.label for record in mine}) for mine in dealt.values()]
    assert set(kinds) <= {1, 2}
    assert 2 in kinds
    assert partition(records, "shards:2", 10, 5) != dealt
    one = partition(records, "shards:1", 10, 4)
    assert all(len({record.label for record in mine}) == 1 for mine in one.values())
    assert len({mine[0].label for mine in one.values()}) == 10


def test_shards_sort_people_by_their_most_frequent_label_and_words_by_their_entities() -> None:
    people = [
        Record(f"{unit} {n}", label, unit)
        for unit, labels in (("p", "aab"), ("q", "bba"), ("r", "a"), ("s", "b"))
        for n, label in enumerate(labels)
    ]
    dealt = partition(people, "shards:1", 2, 0)
    assert {frozenset(r.unit for r in mine) for mine in dealt.values()} == {
        frozenset("pr"),
        frozenset("qs"),
    }
    words = [
        Record(f"w {i}", "", words=("w", str(i)), tags=("O", f"B-{'XY'[i % 2]}")) for i in range(8)
    ]
    for mine in partition(words, "shards:1", 2, 0).values():
        assert len({record.topic() for record in mine}) == 1
