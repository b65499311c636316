"""What a parser under test is, and what several of them start from."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common import pki


@dataclass(frozen=True)
class Parser:
    """``read`` on bytes; ``whole`` is a document that it takes."""

    read: Callable[[bytes], object]
    whole: bytes


def as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of a file of that name, on bytes."""

    def run(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return run


@cache
def root() -> pki.Credential:
    """The root of all that is signed here."""
    return pki.create_root("fuzz")


@cache
def site() -> tuple[bytes, bytes, bytes]:
    """A site's chain, key and request."""
    key, csr = pki.new_site_key_and_csr("A")
    return pki.issue_site(csr, pki.create_intermediate(root())), key, csr
