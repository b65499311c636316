"""JSON files that two readers cannot read differently: no key twice, no NaN, a bounded size.

Not covered: nothing here knows what a key means; the models do.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import InvalidInput
from common.files import read_file


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
    try:
        return json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("more levels than a document of ours has") from error


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


def _no_constant(text: str) -> float:
    raise ValueError(f"{text}, which JSON does not have")
