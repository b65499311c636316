"""A number with its noun.

Not covered: nouns whose plural is not made with an s.
"""


def counted(count: int, noun: str) -> str:
    """``count`` and its noun.

    >>> counted(1, "round"), counted(2, "round"), counted(0, "round")
    ('1 round', '2 rounds', '0 rounds')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
