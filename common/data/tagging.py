"""Words of a text, and IOB2 tags for them from its mentions.

Not covered: mentions that overlap each other; scripts without spaces, whose runs of letters are one
word each.
"""

import re
from collections.abc import Sequence

from common.data.records import OUTSIDE, Span

# Letters, digits and what joins them, or one other sign.
_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[tuple[int, int]]:
    """Start and end of every word; each sign that is neither letter nor digit is one.

    >>> [text[a:b] for text in ["BP 130/80."] for a, b in split_words(text)]
    ['BP', '130', '/', '80', '.']
    """
    return [match.span() for match in _WORD.finditer(text)]


def tag_words(text: str, spans: Sequence[Span]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words of a text and a tag for each: ``B-`` and ``I-`` of the mention that it touches.

    >>> tag_words("No type 2 diabetes.", [Span(3, 18, "CONDITION")])[1]
    ('O', 'B-CONDITION', 'I-CONDITION', 'I-CONDITION', 'O')
    """
    places = split_words(text)
    tags, last = [], None
    for start, end in places:
        touched = next((span for span in spans if span.start < end and start < span.end), None)
        prefix = "" if touched is None else "I-" if touched is last else "B-"
        tags.append(OUTSIDE if touched is None else prefix + touched.tag)
        last = touched
    return tuple(text[start:end] for start, end in places), tuple(tags)


def tag_set(kinds: Sequence[str]) -> tuple[str, ...]:
    """The whole public set of tags for some kinds of entities.

    >>> tag_set(["Drug"])
    ('O', 'B-Drug', 'I-Drug')
    """
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))
