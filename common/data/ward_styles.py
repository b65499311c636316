"""How each hospital of the synthetic wards writes: headings, case, abbreviations, typing errors."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A piece of a sentence: its characters, and the tag of the mention that it is ("" for none).
Piece = tuple[str, str]

_ABBREVIATIONS = {
    "admitted": "adm",
    "year old": "yo",
    "history": "hx",
    "Past history": "PMH",
    "treated": "tx",
    "Treated": "Tx",
    "diagnosis": "dx",
    "without": "w/o",
    "discharge": "d/c",
    "Discharged": "D/c",
    "female": "F",
    "male": "M",
    "days": "d",
    "weeks": "wk",
    "follow-up": "f/u",
    "emergency department": "ED",
    "No evidence of": "No e/o",
    "presented": "p/w",
}
_ABBREVIATED = re.compile(r"\b(" + "|".join(sorted(_ABBREVIATIONS, key=len, reverse=True)) + r")\b")


@dataclass(frozen=True, slots=True)
class Style:
    """A hospital's habits. Rates are in thousandths."""

    greeting: str = ""
    headings: tuple[str, str, str] = ("", "", "")  # before the opening, the course, the plan
    bullet: str = ""
    separator: str = " "
    case: str = "as typed"  # or "upper", "lower"
    abbreviated: int = 0
    mistyped: int = 0


STYLES: tuple[Style, ...] = (
    Style(abbreviated=100, mistyped=5),
    Style(headings=("PC: ", "Course: ", "Plan: "), separator="\n", abbreviated=600),
    Style(case="lower", abbreviated=800, mistyped=25),
    Style(greeting="Dear colleague, thank you for taking over this patient. "),
    Style(bullet="- ", separator="\n", abbreviated=500, mistyped=10),
    Style(case="upper", abbreviated=700, mistyped=10),
    Style(headings=("Reason for admission: ", "Summary: ", "Follow-up: ")),
    Style(headings=("hpi ", "a/p ", "dispo "), case="lower", abbreviated=900, mistyped=15),
)


def write(
    opening: Sequence[Piece],
    course: Sequence[Sequence[Piece]],
    plan: Sequence[Piece],
    style: Style,
    below: Callable[[int], int],
) -> tuple[str, list[tuple[int, int, str]]]:
    """Lay a note out in a hospital's style.

    Args:
        opening: the first sentence.
        course: the sentences in between, in their order.
        plan: the last sentence; empty for none.
        style: the hospital's.
        below: ``below(n)`` draws an integer in [0, n).

    Returns:
        The text, and (start, end, tag) of every tagged mention in it.
    """
    first, second, third = style.headings
    # With headings the course is one paragraph; without, each sentence stands alone.
    within = " " if second else style.separator
    pieces: list[Piece] = [(style.greeting + style.bullet + first, ""), *opening]
    for number, sentence in enumerate(course):
        lead = style.separator + style.bullet + second if number == 0 else within + style.bullet
        pieces += [(lead, ""), *sentence]
    if plan:
        pieces += [(style.separator + style.bullet + third, ""), *plan]
    text, spans = "", []
    for piece, tag in pieces:
        looks = _typed(piece, tag, style, below)
        if tag:
            spans.append((len(text), len(text) + len(looks), tag))
        text += looks
    return text, spans


def _typed(piece: str, tag: str, style: Style, below: Callable[[int], int]) -> str:
    if not tag and style.abbreviated:
        piece = _ABBREVIATED.sub(
            lambda match: _ABBREVIATIONS[match[0]] if below(1000) < style.abbreviated else match[0],
            piece,
        )
    if not tag and style.mistyped:
        piece = re.sub(r"[a-z]{5,}", lambda match: _mistyped(match[0], style, below), piece)
    if style.case == "upper":
        return piece.upper()
    return piece.lower() if style.case == "lower" else piece


def _mistyped(word: str, style: Style, below: Callable[[int], int]) -> str:
    """``word``, now and then with two neighbouring letters swapped."""
    if below(1000) >= style.mistyped:
        return word
    at = 1 + below(len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
