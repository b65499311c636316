"""What a unit can add to a release: against every possible unit of small schemas."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.counting import Judged, count
from common.histograms import Histogram, MetricsSection, bins, histograms_of, sensitivity
from common.privacy.stream import Stream

EDGES = (0.5, 2.0)
LABELS = ("a", "b")
GROUPS = ("icu",)
KINDS = ("Drug", "Sign")
OF_TEXTS = ("accuracy", "classes", "loss", "groups")
OF_WORDS = ("accuracy", "entities", "loss", "groups")


def schema(names: tuple[str, ...], entities: int = 2) -> tuple[Histogram, ...]:
    asked = {
        "release": names,
        "hold_out": 0.25,
        "share": 0.1,
        "loss_edges": EDGES if "loss" in names else (),
        "groups": GROUPS if "groups" in names else (),
        "entities_per_record": entities if "entities" in names else None,
    }
    return histograms_of(MetricsSection.model_validate(asked), LABELS, KINDS)


def counted(units: list[list[Judged]], histograms: tuple[Histogram, ...], cap: int) -> np.ndarray:
    return count(
        units, lambda one: one, histograms, edges=EDGES, cap=cap, stream=Stream(b"\x05" * 32)
    )


TEXTS = [
    Judged(right, label, loss, group)
    for right in (True, False)
    for label in (0, 1)
    for loss in (0.25, 1.0, 7.0)
    for group in ("icu", "elsewhere")
]
ENTITIES = [("Drug", 0, 1), ("Drug", 3, 3), ("Drug", 5, 5), ("Sign", 7, 8)]
WORDS = [
    Judged(truth == found, 0, loss, "icu", frozenset(truth), frozenset(found))
    for truth in ([], ENTITIES[:1], ENTITIES[:3], ENTITIES)
    for found in ([], ENTITIES[:1], ENTITIES[2:])
    for loss in (0.25, 7.0)
]


@pytest.mark.parametrize("cap", [1, 2])
@pytest.mark.parametrize(
    ("names", "records"),
    [
        *[(names, TEXTS) for n in (1, 2, 4) for names in itertools.combinations(OF_TEXTS, n)],
        *[(names, WORDS) for n in (1, 2, 4) for names in itertools.combinations(OF_WORDS, n)],
    ],
)
def test_the_sensitivity_is_the_farthest_that_any_unit_moves_the_counts(
    names: tuple[str, ...], records: list[Judged], cap: int
) -> None:
    histograms = schema(names)
    farthest = 0.0
    # Every unit of up to one record more than counts, beside somebody else's.
    for size in range(1, cap + 2):
        some = itertools.combinations_with_replacement(records, size)
        for unit in itertools.islice(some, 0, None, 1 if size <= 2 else 7):
            base = [[records[0]], [records[-1]]]
            moved = counted([*base, list(unit)], histograms, cap) - counted(base, histograms, cap)
            farthest = max(farthest, float(np.linalg.norm(moved)))
    bound = sensitivity(histograms, cap)
    assert farthest <= bound * (1 + 1e-12)
    assert math.isclose(farthest, bound)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[list[Judged]], int, tuple[Histogram, ...], int]:
    is_words = draw(st.booleans())
    known, records = (OF_WORDS, WORDS) if is_words else (OF_TEXTS, TEXTS)
    names = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True))
    unit = st.lists(st.sampled_from(records), min_size=1, max_size=5)
    units = draw(st.lists(unit, min_size=1, max_size=5))
    at = draw(st.integers(0, len(units) - 1))
    cap = draw(st.integers(1, 5))
    return units, at, schema(tuple(names), draw(st.integers(1, 4))), cap


@given(datasets())
def test_neighbouring_data_sets_differ_by_at_most_the_sensitivity(
    case: tuple[list[list[Judged]], int, tuple[Histogram, ...], int],
) -> None:
    units, at, histograms, cap = case
    # A unit that is chosen from takes words of the stream: last, it moves no other's choice. Where
    # it stands does not matter to the law of the others' choices, which are fresh either way.
    others = [*units[:at], *units[at + 1 :]]
    moved = counted([*others, units[at]], histograms, cap) - counted(others, histograms, cap)
    assert np.linalg.norm(moved) <= sensitivity(histograms, cap) * (1 + 1e-12)
    assert np.all(moved >= 0)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=40), st.integers(1, 5))
def test_each_record_counts_once_in_each_histogram(records: list[Judged], cap: int) -> None:
    histograms = schema(OF_TEXTS)
    total = counted([records], histograms, cap)
    offset = 0
    for histogram in histograms:
        assert total[offset : offset + histogram.size].sum() == min(cap, len(records))
        offset += histogram.size
    assert offset == len(total) == bins(histograms)


def test_records_count_where_they_belong() -> None:
    histograms = schema(OF_TEXTS)
    total = counted([[Judged(False, 1, 0.5, "elsewhere")]], histograms, 1)
    assert total.tolist() == [
        *(0, 1),  # wrong
        *(0, 0, 0, 1),  # b: wrong
        *(0, 1, 0),  # a bin begins at its edge
        *(0, 0, 0, 1),  # no listed group, wrong
    ]


@pytest.mark.parametrize(("loss", "at"), [(float("nan"), 2), (float("inf"), 2), (-1.0, 0)])
def test_a_loss_that_is_no_number_counts_as_the_largest(loss: float, at: int) -> None:
    total = counted([[Judged(True, 0, loss)]], schema(("loss",)), 1)
    assert total.tolist() == [int(place == at) for place in range(3)]


def test_entities_are_found_missed_or_spurious_by_kind() -> None:
    truth, found = frozenset(ENTITIES[:3]), frozenset([*ENTITIES[1:2], ENTITIES[3], ("Sign", 0, 0)])
    total = counted([[Judged(False, 0, 1.0, "", truth, found)]], schema(("entities",), 9), 1)
    assert total.reshape(2, 3).tolist() == [[1, 2, 0], [0, 0, 2]]


def test_which_records_of_a_unit_count_is_chance() -> None:
    unit = [Judged(place == 0, 0, 1.0) for place in range(4)]
    histograms = schema(("accuracy",))
    right = [
        count([unit], lambda one: one, histograms, edges=(), cap=1, stream=Stream(bytes([n]) * 32))[
            0
        ]
        for n in range(200)
    ]
    # Binomial(200, 1/4): outside of this once in ten million tries.
    assert 20 < sum(right) < 84


def test_a_record_adds_no_more_entities_than_its_share() -> None:
    entities = frozenset(("Drug", n, n) for n in range(5))
    total = counted([[Judged(False, 0, 1.0, "", entities)]], schema(("entities",), 3), 1)
    assert total.sum() == 3
    assert total[1] == 3
