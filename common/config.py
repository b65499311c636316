"""Reading a TOML file into a frozen model: unknown keys refused, every error at once.

Not covered: nothing here knows what a key means; the models do.
"""

import codecs
import difflib
import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Strict, StringConstraints, ValidationError

from common.errors import InvalidInput
from common.nesting import MOST_LEVELS, levels

MAX_CONFIG_BYTES = 256 * 1024

# One path component, one certificate URI segment, one line of a log: nothing else fits.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
# A released version's number (PEP 440, the usual ones), so that no other words stand in its place.
VERSION_PATTERN = (
    r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}(?:(?:a|b|rc|\.post|\.dev)[0-9]{1,6}){0,2}"
    r"(?:\+[0-9a-z.]{1,20})?"
)
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}\z")]
# As they are written in TOML, and nothing that could be taken for them.
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]  # a whole number too
# What a model can learn; common/tasks has a module for each.
TaskName = Literal["seq-cls", "token-cls"]
# What each is judged by on a public hold-out, as people read it.
SCORES: dict[TaskName, str] = {"seq-cls": "accuracy", "token-cls": "entity F1"}
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MOST_FAULTS = 50  # said at once
RECORD = "record"  # the privacy unit that is one row
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]


class Section(BaseModel):
    """A frozen table of a config file; a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def check_name(kind: str, value: str) -> str:
    """Return ``value`` if it may name a site, a job or a data set.

    Raises:
        InvalidInput: it could be a path, an option or a line of its own.
    """
    if not re.fullmatch(NAME_PATTERN, value):
        raise InvalidInput(
            f"{kind} must be 1 to 63 letters, digits, '-' or '_', starting with a letter or "
            f"digit, got {value[:80]!r}"
        )
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file of at most 256 KiB and 32 levels.

    Raises:
        InvalidInput: the file is missing, not a plain file, too large, too deep, or no TOML.
    """
    if not path.is_file():
        raise InvalidInput(f"config file must be a readable file, got {str(path)!r}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise InvalidInput(f"{path.name} must be at most {MAX_CONFIG_BYTES} bytes, got more")
        return parse_toml(data, path.name)
    except OSError as error:
        raise InvalidInput(f"config file must be readable, got {path}: {error.strerror}") from error


def parse_toml(data: bytes, name: str) -> dict[str, Any]:
    """Parse a TOML document of at most 32 levels; ``name`` is how errors call it.

    Raises:
        InvalidInput: it is deeper, or no TOML in plain UTF-8.
    """
    if data.startswith(_BYTE_ORDER_MARKS):
        raise InvalidInput(f"{name} must be UTF-8 without a byte order mark, got one")
    try:
        text = data.decode("utf-8")
        depth = levels(text)
        if depth <= MOST_LEVELS:
            return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not TOML, not UTF-8, or an integer too long for Python to read.
        raise InvalidInput(f"{name} must be TOML in UTF-8, got: {error}") from error
    raise InvalidInput(f"{name} must nest at most {MOST_LEVELS} levels, got {depth}")


def parse(
    model: type[Model],
    data: Mapping[str, Any],
    source: str,
    context: Mapping[str, bool] | None = None,
) -> Model:
    """Validate ``data``; ``source`` names the file in the error, ``context`` is for validators.

    Raises:
        InvalidInput: one message that names every offending key.
    """
    try:
        return model.model_validate(dict(data), context=context)
    except ValidationError as error:
        found = error.errors()
        told = [_sentence(model, item) for item in found[:_MOST_FAULTS]]
        if len(found) > _MOST_FAULTS:
            told.append(f"and {len(found) - _MOST_FAULTS} more")
        raise InvalidInput(f"{source}: {'; '.join(told)}") from error


def faults(model: type[BaseModel], data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What ``parse`` would say, one sentence a fault, each with the top key that it is about."""
    try:
        model.model_validate(dict(data))
    except ValidationError as error:
        return [
            (str(item["loc"][0]) if item["loc"] else "", _sentence(model, item))
            for item in error.errors()[:_MOST_FAULTS]
        ]
    return []


_CONDITIONS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "a match of {pattern}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "literal_error": "{expected}",
    "finite_number": "finite",
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def _sentence(model: type[BaseModel], item: Any) -> str:  # noqa: ANN401 -- pydantic's ErrorDetails
    location = [str(part) for part in item["loc"] if part != "[key]"]
    name = ".".join(location) or "file"
    if item["type"] == "missing":
        return f"{name} must be given, got nothing"
    if item["type"] == "extra_forbidden":
        return f"{name} must be a known key{_hint(model, location)}, got {_short(item['input'])}"
    if item["type"] == "value_error":
        # A validator of ours: its message is a sentence already.
        message = str(item["ctx"]["error"])
        return message if " must be " in message else f"{name} {message}"
    condition = _CONDITIONS.get(item["type"])
    if condition is None:
        return f"{name} must be valid ({item['msg']}), got {_short(item['input'])}"
    return f"{name} must be {condition.format(**item.get('ctx', {}))}, got {_short(item['input'])}"


def _hint(model: type[BaseModel], location: list[str]) -> str:
    """Name the known keys that an unknown one may have meant."""
    section: Any = model
    for part in location[:-1]:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        if field is None:
            return ""
        section = field.annotation
    if not hasattr(section, "model_fields"):
        return ""
    close = difflib.get_close_matches(location[-1], section.model_fields, n=1)
    return f" (did you mean {close[0]}?)" if close else f" ({', '.join(section.model_fields)})"


# What is wrong may be as deep and as long as a file can make it.
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 200, 200


def _short(value: object) -> str:
    try:
        text = _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number too long to write"
    return text if len(text) <= 80 else text[:77] + "..."
