"""A number with its noun; names and words from elsewhere without what is not for others.

Not covered: nouns whose plural is not made with an s.
"""

from pathlib import Path


def counted(count: int, noun: str) -> str:
    """``count`` and its noun.

    >>> counted(1, "round"), counted(2, "round"), counted(0, "round")
    ('1 round', '2 rounds', '0 rounds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def escaped(text: str) -> str:
    r"""``text`` on one line, without anything that a terminal would obey.

    >>> escaped("two\nlines\x1b[2J")
    'two\\nlines\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def public_name(source: str) -> str:
    """A base model or a data set, without the operator's folders.

    >>> public_name("/home/ann/sets/notes.csv"), public_name("builtin:wards")
    ('notes.csv', 'builtin:wards')
    """
    return Path(source).name if Path(source).is_absolute() else source
