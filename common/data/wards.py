"""``builtin:wards``: synthetic discharge notes of several hospitals, the default data set.

The label is the department that treated the PRESENT problem. A note also names earlier, excluded,
stable and relatives' problems of other departments, under the same names, so the words that occur
say less than who did what when. Sites differ in style and in their mix of labels; a patient's
notes share conditions and a writer. Nobody's record went into it.

The bytes depend on the arguments alone: only PCG64's raw 64-bit output is used, which NumPy keeps
stable across versions and platforms, as it does not promise for ``Generator`` (NEP 19,
https://numpy.org/neps/nep-0019-rng-policy.html).

Not covered: medicine; the privacy of anybody (there is none to protect).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from numpy.random import PCG64, SeedSequence

from common.data import ward_words as words
from common.data.records import Record, Span
from common.data.tagging import tag_set, tag_words
from common.data.ward_styles import STYLES, Piece, write
from common.data.ward_words import Problem
from common.errors import InvalidInput

LABELS: tuple[str, ...] = tuple(sorted(words.PROBLEMS))
HOSPITALS = ("A", "B", "C", "D", "E", "F", "G", "H")
TAGS = ("CONDITION", "MEDICATION")
TAG_SET = tag_set(TAGS)  # of a job of token classification
SPLITS = ("train", "dev", "test")
# About 600, 100 and 200 notes a hospital, at 3 notes a patient on average.
PATIENTS = {"train": 200, "dev": 34, "test": 67}

MAX_NOTES = 12
AGE_BANDS = ((40, "18-39"), (65, "40-64"), (80, "65-79"), (200, "80 and over"))
_LEAST_WORDS, _MORE_WORDS = 8, 18  # of distracting sentences in a note, before slots are filled
_CHRONIC = 3  # long-standing problems of a patient
_SHARED_RATE = 0.14  # notes on a problem that two departments treat
_UNDECIDED_RATE = 0.30  # of those, notes that do not say which
_TELLING_SYMPTOM_RATE = 0.30  # symptoms drawn from those of the label's department
_SAME_DEPARTMENT_RATE = 0.30  # distractors that belong to the label's department

T = TypeVar("T")


class Dice:
    """Choices from a PCG64 stream's raw output, in integer arithmetic."""

    def __init__(self, *entropy: int) -> None:
        self._bits = PCG64(SeedSequence(entropy))
        self._pool: list[int] = []

    def below(self, bound: int) -> int:
        """An integer in [0, bound); biased by less than bound / 2^64."""
        if not self._pool:
            self._pool = self._bits.random_raw(256).tolist()
        return (self._pool.pop() * bound) >> 64

    def chance(self, probability: float) -> bool:
        """Whether something of ``probability`` happens, to a millionth."""
        return self.below(1_000_000) < round(probability * 1_000_000)

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``, each alike."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """One of ``items`` in proportion to integer ``weights``."""
        mark = self.below(sum(weights))
        for item, weight in zip(items[:-1], weights[:-1], strict=True):
            mark -= weight
            if mark < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in random order (Fisher-Yates)."""
        deck = list(items)
        for i in range(len(deck) - 1, 0, -1):
            j = self.below(i + 1)
            deck[i], deck[j] = deck[j], deck[i]
        return deck


@dataclass(frozen=True, slots=True)
class Patient:
    """What a patient's notes have in common."""

    unit: str
    sex: str
    age: int
    chronic: tuple[Problem, ...]
    home: str  # the department that sees them most


@dataclass(frozen=True, slots=True)
class _Stay:
    department: str
    problem: Problem
    finding: str  # settles whose problem it is, where two departments treat it


def generate(
    split: str,
    *,
    seed: int = 0,
    hospitals: Sequence[str] = ("A", "B", "C"),
    patients_per_hospital: int | None = None,
) -> list[Record]:
    """Write the notes of ``hospitals``; their order gives each its style and label mix.

    A hospital's notes do not depend on how many follow it. Splits share no patient.

    Args:
        split: train, dev or test.
        seed: of everything; the same seed gives the same bytes everywhere.
        hospitals: 1 to 8 distinct names, which become the records' group.
        patients_per_hospital: without it 200, 34 or 67 by split (3 notes each on average).

    Returns:
        Records by hospital, then patient, then note.

    Raises:
        InvalidInput: an argument outside its range.
    """
    if split not in SPLITS:
        raise InvalidInput(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 1 <= len(hospitals) <= len(STYLES) or len(set(hospitals)) != len(hospitals):
        raise InvalidInput(
            f"hospitals must be 1 to {len(STYLES)} distinct names, got {len(hospitals)}"
        )
    if seed < 0:
        raise InvalidInput(f"seed must be at least 0, got {seed}")
    patients = PATIENTS[split] if patients_per_hospital is None else patients_per_hospital
    if not 1 <= patients <= 9_999:
        raise InvalidInput(f"patients_per_hospital must be 1 to 9999, got {patients}")
    return [
        record
        for position, hospital in enumerate(hospitals)
        for number in range(patients)
        for record in _notes_of_patient(seed, split, position, hospital, number)
    ]


def label_weights(position: int) -> tuple[int, ...]:
    """How often the hospital at ``position`` sees each of ``LABELS``, as integer weights."""
    busy = {(position * 3 + step) % len(LABELS) for step in (0, 1, 4)}
    return tuple(3 if index in busy else 1 for index in range(len(LABELS)))


def _notes_of_patient(
    seed: int, split: str, position: int, hospital: str, number: int
) -> list[Record]:
    dice = Dice(seed, SPLITS.index(split), position, number)
    unit = f"{hospital}-{(SPLITS.index(split) + 1) * 10_000 + number}"
    patient = _patient(dice, unit, position)
    return [_note(dice, patient, position, hospital) for _ in range(_note_count(dice))]


def _note_count(dice: Dice) -> int:
    """1 to 12, most often 1 or 2, on average 3."""
    return dice.weighted(range(1, MAX_NOTES + 1), (34, 22, 14, 9, 6, 4, 3, 3, 2, 1, 1, 1))


def _patient(dice: Dice, unit: str, position: int) -> Patient:
    home = dice.weighted(LABELS, label_weights(position))
    lasting = [problem for label in LABELS for problem in words.PROBLEMS[label] if problem.known]
    return Patient(
        unit=unit,
        sex=dice.pick(("female", "male")),
        age=18 + dice.below(40) + dice.below(38),
        chronic=tuple(dice.shuffled(lasting)[:_CHRONIC]),
        home=home,
    )


def _note(dice: Dice, patient: Patient, position: int, hospital: str) -> Record:
    """One stay. Sentences are chosen first, their order next, their looks last."""
    stay = _stay(dice, patient, position)
    slots = _Slots(dice, patient, stay)
    opening = slots.fill(dice.pick(words.OPENING))
    course = [slots.fill(template) for template in _course(dice, stay)]
    plan = slots.fill(dice.pick(words.CLOSING)) if dice.chance(0.6) else []
    text, places = write(opening, course, plan, STYLES[position], dice.below)
    spans = tuple(Span(*place) for place in places)
    words_, tags = tag_words(text, spans)
    return Record(
        text=text,
        label=stay.department,
        unit=patient.unit,
        group=hospital,
        spans=spans,
        words=words_,
        tags=tags,
        sex=patient.sex,
        age=next(band for upper, band in AGE_BANDS if patient.age < upper),
    )


def _stay(dice: Dice, patient: Patient, position: int) -> _Stay:
    if dice.chance(0.4):
        department = patient.home
    else:
        department = dice.weighted(LABELS, label_weights(position))
    shared = [item for item in words.SHARED if department in item.findings]
    if not shared or not dice.chance(_SHARED_RATE):
        return _Stay(department, dice.pick(words.PROBLEMS[department]), "")
    item = dice.pick(shared)
    finding = "" if dice.chance(_UNDECIDED_RATE) else dice.pick(item.findings[department])
    return _Stay(department, item.problem, finding)


def _course(dice: Dice, stay: _Stay) -> list[str]:
    """The templates between opening and plan: the treated problem among its distractors."""
    treated = dice.pick(words.TREATED)
    distractors = [dice.pick(words.EXCLUDED)]
    wanted = _LEAST_WORDS + dice.below(_MORE_WORDS)
    while sum(len(template.split()) for template in distractors) < wanted:
        distractors.append(dice.pick(dice.weighted(_DISTRACTORS, (3, 4, 4, 1))))
    chosen = dice.shuffled([treated, *dict.fromkeys(distractors)])
    if stay.finding:
        chosen.insert(chosen.index(treated) + 1, stay.finding)
    return chosen


_DISTRACTORS = (words.EXCLUDED, words.PREVIOUS, words.HISTORY, words.FAMILY)
_SLOT = re.compile(r"\{(\w+)\}")


class _Slots:
    """Fills templates; within one sentence a letter keeps its problem."""

    def __init__(self, dice: Dice, patient: Patient, stay: _Stay) -> None:
        self._dice, self._patient, self._stay = dice, patient, stay
        self._used = {stay.problem}

    def fill(self, template: str) -> list[Piece]:
        """Turn a template into pieces, tagged where they mention something; a capital leads."""
        problems: dict[str, Problem] = {}
        said: set[str] = set()
        pieces: list[Piece] = []
        for number, part in enumerate(_SLOT.split(template)):
            piece = self._piece(part, problems, said) if number % 2 else (part, "")
            said.add(piece[0])
            if piece[0]:
                pieces.append(piece)
        first, tag = pieces[0]
        return [(first[0].upper() + first[1:], tag), *pieces[1:]]

    def _piece(self, slot: str, problems: dict[str, Problem], said: set[str]) -> Piece:
        plain = self._plain(slot, said)
        if plain:
            return plain, ""
        letter = "P" if slot == "PN" else slot[0]
        if letter not in problems:
            problems[letter] = self._problem(letter)
        problem, lasting = problems[letter], letter in "HI"
        if len(slot) == 1:
            return self._dice.pick(problem.known if lasting else problem.names), TAGS[0]
        choices = problem.usual if lasting else problem.medications
        return self._dice.pick([name for name in choices if name not in said]), TAGS[1]

    def _plain(self, slot: str, said: set[str]) -> str:
        """What fills a slot that is no mention; "" for one that is."""
        dice, patient = self._dice, self._patient
        fillers: dict[str, Sequence[str]] = {
            "S": self._symptoms(),
            "T": self._symptoms(),
            "TEST": words.TESTS,
            "WHEN": words.WHEN,
            "REL": words.RELATIVES,
        }
        if slot == "AGE":
            return str(patient.age)
        if slot == "SEX":
            return patient.sex
        if slot == "DAYS":
            return str(2 + dice.below(9))
        return dice.pick([f for f in fillers[slot] if f not in said]) if slot in fillers else ""

    def _symptoms(self) -> tuple[str, ...]:
        """Often those of another department: what was excluded had to look likely first."""
        if self._dice.chance(_TELLING_SYMPTOM_RATE):
            return words.SYMPTOMS[self._stay.department]
        return words.SYMPTOMS[self._dice.pick(LABELS)]

    def _problem(self, letter: str) -> Problem:
        """The problem that plays a role; no problem plays two in one note."""
        if letter == "P":
            return self._stay.problem
        chronic = [item for item in self._patient.chronic if item not in self._used]
        if letter in "HI":
            problem = self._dice.pick(chronic) if chronic else self._distractor(lasting=True)
        else:
            problem = self._distractor(lasting=False)
        self._used.add(problem)
        return problem

    def _distractor(self, *, lasting: bool) -> Problem:
        while True:
            department = self._dice.pick(LABELS)
            if self._dice.chance(_SAME_DEPARTMENT_RATE):
                department = self._stay.department
            problem = self._dice.pick(words.PROBLEMS[department])
            if problem not in self._used and (problem.known or not lasting):
                return problem
