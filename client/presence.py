"""Whether a site runs, and how its link stands: what its other commands may know of the process.

The lock is the operating system's and ends with the process, however that ends; the state file is
for people's eyes and decides nothing.

Not covered: a home that two machines share, where file locks may not reach.
"""

import contextlib
import datetime as dt
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import InvalidInput, StorageFailed
from common.files import exists, read_file, write_file

LOCK_NAME, STATE_NAME = "site.lock", "state.json"
_MAX_STATE_BYTES = 64 * 1024
_ATTEMPTS, _PAUSE_S = 10, 0.1


@dataclass(frozen=True, slots=True)
class Presence:
    """What a running site last said of itself. ``since``: of this state of the link, in UTC."""

    pid: int
    connected: bool
    since: str
    reason: str


@contextlib.contextmanager
def hold(home: Path) -> Iterator[None]:
    """Be the one process that runs the site of ``home``.

    Raises:
        InvalidInput: another process is.
        StorageFailed: the lock file cannot be made.
    """
    lock = _open_lock(home)
    try:
        if not _take(lock):
            raise InvalidInput(f"home must have one running site, got a second for {home}")
        yield
    finally:
        os.close(lock)


def is_running(home: Path) -> bool:
    """Whether some process holds the home."""
    if not exists(home / LOCK_NAME):
        return False
    lock = _open_lock(home)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def write(home: Path, presence: Presence) -> None:
    """Replace what the home says of its process.

    Raises:
        StorageFailed: the disk is full, or the like.
    """
    write_file(home / STATE_NAME, json.dumps(asdict(presence)).encode(), mode=0o644)


def read(home: Path) -> Presence | None:
    """What the last process of the home said; ``None`` where that cannot be read."""
    try:
        said = json.loads(read_file(home / STATE_NAME, max_bytes=_MAX_STATE_BYTES))
        return Presence(**said)
    except (InvalidInput, StorageFailed, ValueError, TypeError, RecursionError):
        return None


def now() -> str:
    """The time, as the state file writes it."""
    return f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _open_lock(home: Path) -> int:
    try:
        return os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFailed(f"lock must be made in {home}, got: {error.strerror}") from error


def _take(lock: int) -> bool:
    # ``is_running`` holds the lock for a moment; a site that starts then must not be turned away.
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE_S if attempt + 1 < _ATTEMPTS else 0)
        else:
            return True
    return False
