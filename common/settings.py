"""A settings file that may be wrong: every fault of it, and what of it can still be used.

Not covered: what the settings mean; their values, where a key is none of ours (it may be a secret
that stands under a misspelt name).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from common.config import faults, read_toml
from common.diagnosis import Finding, fault, ok
from common.errors import InvalidInput

_UNKNOWN = " must be a known key"


@dataclass(frozen=True, slots=True)
class Settings:
    """A file's faults, one sentence each, and the top-level tables and keys that have none."""

    name: str
    faults: tuple[str, ...]
    usable: Mapping[str, Any]

    def findings(self, path: Path, said: str) -> Iterator[Finding]:
        """A line for each fault, or one that says ``said``."""
        for words in self.faults:
            yield fault(self.name, words, f"correct that in {path}")
        if not self.faults:
            yield ok(self.name, said)


def read_settings(path: Path, model: type[BaseModel]) -> Settings:
    """Read ``path`` as far as it can be read."""
    try:
        content = read_toml(path)
    except InvalidInput as error:
        return Settings(path.name, (str(error),), {})
    found = faults(model, content)
    wrong = {key for key, _ in found}
    usable = {key: value for key, value in content.items() if key not in wrong}
    return Settings(path.name, tuple(_without_value(words) for _, words in found), usable)


def _without_value(words: str) -> str:
    return words.rpartition(", got ")[0] if _UNKNOWN in words else words
