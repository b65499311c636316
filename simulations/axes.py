"""What a sweep varies: the settings that ``--sweep`` names, and every combination of them.

A value is TOML or a bare word, and may bring further keys that belong to it:
``aggregation.rule=median,krum+aggregation.byzantine=2`` is two settings, of one key and of two.

Not covered: whether a setting is possible (the job's own checks say so, before anything is run).
"""

import itertools
import math
import re
from collections.abc import Sequence

from common.errors import InvalidInput
from simulations.scenario import SEEDS, parse_value

MOST_RUNS = 10_000
EPSILON, NONE = "privacy.epsilon", "none"

# Keys with their values, in the order in which they were typed.
Setting = tuple[tuple[str, object], ...]

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'[^']*'")
_COMMA = re.compile(",")
_ALONG = re.compile(r"\+(?=[\w-]+\.[\w.-]+\s*=)")  # before a key: no sign of a number


def parse_axis(text: str) -> tuple[Setting, ...]:
    """``SECTION.KEY=A,B+SECTION.OTHER=X,...`` as its settings.

    >>> parse_axis("privacy.epsilon=1,none")
    ((('privacy.epsilon', 1),), (('privacy.epsilon', 'none'),))
    >>> parse_axis("aggregation.rule=krum+aggregation.byzantine=2")
    ((('aggregation.rule', 'krum'), ('aggregation.byzantine', 2)),)

    Raises:
        InvalidInput: no ``=``, no value, one twice, a key twice in a setting, or a seed's key.
    """
    name, _, listed = text.partition("=")
    found = tuple(_parse(f"{name}={part.strip()}") for part in _cut(_COMMA, listed, text))
    keys = {key for setting in found for key, _ in setting}
    if any(len(dict(setting)) < len(setting) for setting in found):
        raise InvalidInput(f"--sweep must name each key once, got {text!r}")
    is_empty = any(value == "" for setting in found for _, value in setting)
    if is_empty or len(set(map(frozen, found))) < len(found):
        raise InvalidInput(f"--sweep must be SECTION.KEY=A,B,... of distinct values, got {text!r}")
    if seeded := sorted(SEEDS & keys):
        raise InvalidInput(f"--sweep must vary seeds by --seeds, got {seeded[0]}")
    return found


def _parse(text: str) -> Setting:
    """One value with its key, and those that it brings."""
    return tuple(parse_value(part.strip()) for part in _cut(_ALONG, text, text))


def _cut(at: re.Pattern[str], text: str, whole: str) -> list[str]:
    """``text`` between the places outside of strings and brackets where ``at`` matches."""
    bare, depth = "", 0
    for character in _STRING.sub(lambda found: "s" * len(found[0]), text):
        depth -= character in "]}"
        bare += "s" if depth else character
        depth += character in "[{"
        if depth < 0 or character in "\"'":
            break
    if depth or len(bare) < len(text):
        raise InvalidInput(f"--sweep must close its brackets and quotes, got {whole!r}")
    places = [found.start() for found in at.finditer(bare)]
    starts, ends = [0, *(place + 1 for place in places)], [*places, len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def frozen(value: object) -> object:
    """A value of TOML that can be a key: equal for equal values, as 1 and 1.0 are.

    >>> frozen(["query", {"rank": 1}]) == frozen(["query", {"rank": 1.0}])
    True
    """
    if isinstance(value, dict):
        return dict, tuple(sorted((key, frozen(inner)) for key, inner in value.items()))
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def settings(axes: Sequence[str], seeds: int) -> list[Setting]:
    """Every combination of the axes' values; one without any where there is no axis.

    Raises:
        InvalidInput: an axis that is none, a key in two of them, or too many runs.
    """
    named = [parse_axis(text) for text in axes]
    keys = [key for axis in named for key in {key for setting in axis for key, _ in setting}]
    if len(set(keys)) < len(keys):
        raise InvalidInput(f"--sweep must name each key once, got {', '.join(sorted(keys))}")
    runs = math.prod(map(len, named)) * seeds
    if runs > MOST_RUNS:
        raise InvalidInput(f"sweep must have at most {MOST_RUNS} runs, got {runs}")
    return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*named)]


def in_words(value: object) -> str:
    """A value as people read it.

    >>> in_words(["query", True]), in_words({"A": 2}), in_words(0.5)
    ('[query, true]', '{A 2}', '0.5')
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {in_words(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_words, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
