"""Which code did it: one hash over the sources that run at a site.

Not covered: the libraries beneath them; a source that was edited after it was imported.
"""

import hashlib
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_AT_A_SITE = ("client", "common")


@cache
def code_sha256() -> str:
    """sha256 (hex) over names and contents of all Python files of ``client`` and ``common``."""
    digest = hashlib.sha256()
    for package in _AT_A_SITE:
        for path in sorted((_ROOT / package).rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{content}  {path.relative_to(_ROOT).as_posix()}\n".encode())
    return digest.hexdigest()
