import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from functools import cache
from itertools import pairwise

import pytest

from common.data import ward_words, wards
from common.data.readers import normalise
from common.data.records import Record
from common.errors import InvalidInput

# sha256 of ``as_json`` of the default train split: what every platform and run must give. It
# changes when the wards do, and then the numbers in docs/data.md are to be measured again.
GOLDEN_SHA256 = "fcbb13fba701008e338b50cb131650901bf5d0944bd8bc6488ef9c3f9b0e5741"


def as_json(records: list[Record]) -> bytes:
    # Of the words and their tags, which follow from text and spans, a hash of their own is below.
    rows = [{k: v for k, v in asdict(r).items() if k not in ("words", "tags")} for r in records]
    return json.dumps(rows, sort_keys=True).encode()


@cache  # not on import: every process that runs tests would do so
def train() -> list[Record]:
    return wards.generate("train")


@cache
def every_style() -> list[Record]:
    return wards.generate("train", hospitals=wards.HOSPITALS, patients_per_hospital=80)


def test_the_default_notes_are_the_same_bytes_everywhere() -> None:
    assert hashlib.sha256(as_json(train())).hexdigest() == GOLDEN_SHA256


def test_words_have_the_tags_of_the_mentions_that_they_are_in() -> None:
    for record in every_style():
        # Read back by another way: from the characters, a mark for each.
        owner: list[int | None] = [None] * len(record.text)
        for number, span in enumerate(record.spans):
            owner[span.start : span.end] = [number] * (span.end - span.start)
        at, last = 0, None
        for word, tag in zip(record.words, record.tags, strict=True):
            at = record.text.index(word, at)
            mine = owner[at]
            assert set(owner[at : at + len(word)]) == {mine}
            prefix = "I-" if mine == last else "B-"
            assert tag == ("O" if mine is None else prefix + record.spans[mine].tag)
            last, at = mine, at + len(word)
        assert "".join(record.words) == "".join(record.text.split())
    assert {tag for record in train() for tag in record.tags} == set(wards.TAG_SET)


WORDS_SHA256 = "3afbc0d145f796b2a28a759d0f555d2d92d7409a32c056d0fc1ae84f4ee898ca"


def test_the_words_and_tags_are_the_same_everywhere() -> None:
    rows = json.dumps([[record.words, record.tags] for record in train()]).encode()
    assert hashlib.sha256(rows).hexdigest() == WORDS_SHA256


def test_hash_randomisation_changes_nothing() -> None:
    script = (
        "import hashlib; from common.data import wards; "
        "print(hashlib.sha256(repr(wards.generate('dev')).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_two_thousand_notes_take_less_than_two_seconds() -> None:
    start = time.process_time()
    count = len(wards.generate("train", hospitals=("A", "B", "C", "D"), patients_per_hospital=180))
    assert (time.process_time() - start) * 2000 / count < 2


def test_a_hospital_has_about_six_hundred_notes_of_patients_with_one_to_twelve() -> None:
    sizes = Counter(record.group for record in train())
    assert set(sizes) == {"A", "B", "C"}
    assert all(500 < size < 720 for size in sizes.values())
    notes = Counter(record.unit for record in every_style())
    assert min(notes.values()) == 1
    assert max(notes.values()) == 12


def test_splits_share_no_patient_and_no_note() -> None:
    splits = [wards.generate(split) for split in wards.SPLITS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not {r.unit for r in splits[one]} & {r.unit for r in splits[other]}
        assert not {r.text for r in splits[one]} & {r.text for r in splits[other]}


def test_a_further_hospital_leaves_the_others_alone() -> None:
    two = wards.generate("dev", hospitals=("A", "B"))
    three = wards.generate("dev", hospitals=("A", "B", "C"))
    assert three[: len(two)] == two


def test_another_seed_writes_other_notes() -> None:
    assert {r.text for r in wards.generate("dev", seed=1)}.isdisjoint(
        r.text for r in wards.generate("dev", seed=2)
    )


def test_spans_are_mentions_from_the_vocabulary_in_order() -> None:
    problems = [p for group in ward_words.PROBLEMS.values() for p in group]
    problems += [item.problem for item in ward_words.SHARED]
    known = {
        "CONDITION": {n.lower() for p in problems for n in (*p.names, *p.known)},
        "MEDICATION": {m.lower() for p in problems for m in (*p.medications, *p.usual)},
    }
    for record in every_style():
        mentions = [(record.text[s.start : s.end].lower(), s.tag) for s in record.spans]
        assert all(mention in known[tag] for mention, tag in mentions)
        assert all(a.end <= b.start for a, b in pairwise(record.spans))
        assert "CONDITION" in {tag for _, tag in mentions}


def test_every_note_names_problems_of_several_departments_and_the_labels_own() -> None:
    departments: dict[str, set[str]] = {}
    for department, problems in ward_words.PROBLEMS.items():
        for problem in problems:
            for name in (*problem.names, *problem.known):
                departments.setdefault(name.lower(), set()).add(department)
    for item in ward_words.SHARED:
        for name in item.problem.names:
            departments.setdefault(name.lower(), set()).update(item.findings)
    several = 0
    for record in every_style():
        named = [
            departments[record.text[s.start : s.end].lower()]
            for s in record.spans
            if s.tag == "CONDITION"
        ]
        assert any(record.label in found for found in named)
        several += len(set().union(*named)) > 1
    assert several > 0.9 * len(every_style())


def test_notes_are_of_the_length_promised_and_normalised_already() -> None:
    lengths = sorted(len(record.text.split()) for record in every_style())
    assert lengths[0] >= 20
    assert lengths[-1] <= 100
    assert lengths[len(lengths) // 20] >= 25
    assert lengths[len(lengths) * 19 // 20] <= 75
    for record in every_style():
        assert normalise(record.text) == record.text
        assert not re.search(r"  |\{|\}| ,|\.\.", record.text)


def test_every_department_occurs_everywhere_and_the_mix_differs_by_site() -> None:
    mixes = {
        group: Counter(r.label for r in train() if r.group == group) for group in ("A", "B", "C")
    }
    assert all(set(mix) == set(wards.LABELS) for mix in mixes.values())
    busiest = {tuple(label for label, _ in mix.most_common(3)) for mix in mixes.values()}
    assert len(busiest) == 3


def test_a_patient_keeps_sex_age_hospital_and_number() -> None:
    seen: dict[str, tuple[str, str, str]] = {}
    for record in train():
        facts = (record.sex, record.age, record.group)
        assert seen.setdefault(record.unit, facts) == facts
        assert record.unit.startswith(f"{record.group}-1")
    assert {sex for sex, _, _ in seen.values()} == {"female", "male"}
    assert {age for _, age, _ in seen.values()} == {band for _, band in wards.AGE_BANDS}


def test_the_dice_are_fair() -> None:
    dice = wards.Dice(11)
    counts = Counter(dice.weighted("abc", (1, 2, 5)) for _ in range(8000))
    # Five standard deviations of a binomial around 1000, 2000 and 5000.
    for item, expected in (("a", 1000), ("b", 2000), ("c", 5000)):
        assert abs(counts[item] - expected) < 5 * (expected * (1 - expected / 8000)) ** 0.5
    orders = Counter("".join(dice.shuffled("xyz")) for _ in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 5 * 29 for count in orders.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"split": "all"}, "split must be one of"),
        ({"hospitals": ()}, "hospitals must be 1 to 8"),
        ({"hospitals": tuple("ABCDEFGHI")}, "hospitals must be 1 to 8"),
        ({"hospitals": ("A", "A")}, "distinct"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"patients_per_hospital": 0}, "patients_per_hospital must be 1 to 9999"),
        ({"patients_per_hospital": 10_000}, "patients_per_hospital must be"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        wards.generate(**{"split": "train", **arguments})  # type: ignore[arg-type]
