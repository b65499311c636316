"""How deep a TOML text nests, told without parsing it.

Python's parser takes a time and a memory that grow with the square of a dotted key's parts: a file
of 256 KiB can name 100,000 tables within each other, which no machine has room for. So brackets and
dotted keys are counted first, in one pass over the text.

Not covered: whether the text is TOML (the parser says so).
"""

import re

MOST_LEVELS = 32

# Strings and comments, in the order in which they stand; one that is not closed ends the text or
# its line, so that no place is looked at twice.
_OPAQUE = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\Z)'
    r"|'''.*?(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|\#[^\n]*+",
    re.DOTALL,
)
_DOTTED = re.compile(r"(?<![\w-])[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++)++")
_BRACKET = re.compile(r"[\[\]{}]")


def levels(text: str) -> int:
    """Brackets within each other and parts of the longest dotted name in ``text``, added.

    Names within brackets multiply, so n levels are at most (n / 2 + 1) squared tables and arrays
    within each other: 289 for the most that is allowed.

    >>> levels('a.b.c = [[1], {d = "[[["}]  # [[[')
    5
    """
    bare = _OPAQUE.sub("s", text)
    dotted = max((name.count(".") + 1 for name in _DOTTED.findall(bare)), default=0)
    depth = deepest = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return dotted + deepest
