"""JSON files that two readers cannot read differently, as I-JSON (RFC 7493) has it.

No key twice, no NaN, no number beyond what a double holds, no half of a surrogate pair, a bounded
size. A whole number beyond 2^53 - 1 is a double's or none: RFC 8785 writes 1e16 in 17 digits.

Not covered: nothing here knows what a key means; the models do.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc8785

from common.errors import InvalidInput
from common.files import read_file

_MOST_EXACT = 2**53 - 1
_LONGEST = 22  # characters of a double below 1e21; RFC 8785 writes the others with an exponent
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # of a surrogate pair, or perhaps both


def read_json(path: Path, *, max_bytes: int) -> Any:  # noqa: ANN401 -- what JSON can hold
    """Parse a file of at most ``max_bytes``.

    Raises:
        InvalidInput: missing, too large, or no JSON.
    """
    data = read_file(path, max_bytes=max_bytes)
    try:
        return parse_json(data)
    except ValueError as error:
        raise InvalidInput(f"{path.name} must be JSON in UTF-8, got: {error}") from error


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 -- what JSON can hold
    """Parse a document.

    Raises:
        ValueError: no JSON.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")  # json's own lets more pass
    try:
        found = json.loads(
            text,
            object_pairs_hook=_no_key_twice,
            parse_constant=_no_constant,
            parse_int=_exact,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("more levels than a document of ours has") from error
    if _HALF.search(text):
        _require_whole(found)
    return found


def without_infinity(value: Any) -> Any:  # noqa: ANN401 -- what JSON can hold
    """``value`` with null for what JSON has no number for, such as an epsilon without bound.

    >>> without_infinity({"epsilon": [math.inf, 2.5]})
    {'epsilon': [None, 2.5]}
    """
    if isinstance(value, dict):
        return {key: without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_key_twice(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of a repeated key may see two documents."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"key {key[:80]!r} twice")
        table[key] = value
    return table


def _exact(text: str) -> int | float:
    """A whole number; beyond 2^53 - 1 a double, if that is how RFC 8785 writes it."""
    if len(text) <= _LONGEST:
        number = int(text)
        if abs(number) <= _MOST_EXACT:
            return number
        if rfc8785.dumps(double := float(number)) == text.encode():
            return double
    raise ValueError(f"{text[:40]}, which not every reader can hold")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]}, which not every reader can hold")
    return number


def _require_whole(found: object) -> None:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair, which is no character") from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text}, which JSON does not have")
