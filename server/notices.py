"""The notices that a root signed and this server hands to its sites.

The sites check them; here they are read for what is on disk and sent as they are.

Not covered: making them (server/publication.py, server/rotation.py).
"""

from dataclasses import dataclass
from pathlib import Path

from common.files import exists, read_file
from common.signed import MAX_DOCUMENT_BYTES
from server.authority import HANDOVER_FILE, NEXT, RETIREMENT_FILE

ROSTER_FILE = "roster.signed"


@dataclass(frozen=True, slots=True)
class Documents:
    """Each as JSON, or empty."""

    roster: bytes = b""
    handover: bytes = b""
    retirement: bytes = b""


def read_documents(home: Path) -> Documents:
    """What ``home`` has to show now; of a change of roots the one under way, or else the last.

    Raises:
        InvalidInput: a file that is there cannot be read.
    """
    folder = home / "pki" / NEXT
    if not exists(folder / HANDOVER_FILE):
        folder = home / "pki"
    return Documents(
        roster=_read(home / ROSTER_FILE),
        handover=_read(folder / HANDOVER_FILE),
        retirement=_read(folder / RETIREMENT_FILE),
    )


def _read(path: Path) -> bytes:
    return read_file(path, max_bytes=MAX_DOCUMENT_BYTES) if exists(path) else b""
