"""A number with its noun, and words from elsewhere without what a terminal would obey.

Not covered: nouns whose plural is not made with an s.
"""


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
