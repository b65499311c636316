"""Where a server's home lies, how ``fl-server`` is called for it, and who may hold it.

Not covered: what is in it (server/enrolment.py makes it).
"""

import contextlib
import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from common.errors import InvalidInput, StorageFailed

DEFAULT_HOME = Path("~/.veiltune/server")
LOCK_NAME = "daemon.lock"


def default_home() -> Path:
    """``~/.veiltune/server``."""
    return DEFAULT_HOME.expanduser()


def command_of(home: Path) -> str:
    """How a person calls ``fl-server`` for ``home``, from any folder."""
    if home.resolve() == default_home().resolve():
        return "fl-server"
    return f"fl-server --home {shlex.quote(str(home.absolute()))}"


def require_home(home: Path) -> None:
    """Check that ``home`` is a folder for its owner alone.

    Raises:
        InvalidInput: it is none, or others can enter it.
    """
    if not home.is_dir():
        words = f"home must be a folder (make it with: {command_of(home)} init), got {home}"
        raise InvalidInput(words)
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        raise InvalidInput(f"home must be for its owner alone (mode 0700), got {mode:04o}: {home}")


@contextlib.contextmanager
def alone(
    home: Path, taken: str = "home must have one running server, got a second for"
) -> Iterator[None]:
    """Hold the home's lock, as a running server does.

    Args:
        home: the server's.
        taken: what to say, before the home, where somebody else holds it.

    Raises:
        InvalidInput: no home, one that others can enter, or a server runs on it.
        StorageFailed: the lock file cannot be made.
    """
    require_home(home)
    try:
        lock = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFailed(f"lock must be made in {home}, got: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise InvalidInput(f"{taken} {home}") from error
    try:
        yield
    finally:
        os.close(lock)
