"""Who may read and change a home: owner and mode of its folder, its keys, its other files.

Not covered: access lists beyond the mode; what root may do.
"""

import contextlib
import os
import shlex
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.diagnosis import Finding, fault, ok, warning
from common.words import counted

_SKEW_S = 60.0  # what a file may be dated ahead: clocks of a file server are never exact


def folder(path: Path, *, is_private: bool = False) -> Iterator[Finding]:
    """Owner and mode of a home; the first thing that is wrong.

    Args:
        path: the folder.
        is_private: whether its program refuses one that others may look into.
    """
    name, status = "home", path.stat()
    mode, quoted = stat.S_IMODE(status.st_mode), shlex.quote(str(path))
    if not stat.S_ISDIR(status.st_mode):
        yield fault(name, f"{path} is no folder", "name the folder with --home")
    elif status.st_uid != os.geteuid():
        yield fault(name, _foreign(str(path), status.st_uid), f"run this as uid {status.st_uid}")
    elif mode & 0o022:
        yield fault(name, f"others may write to {path} (mode {mode:04o})", f"chmod 700 {quoted}")
    elif mode & 0o077:
        told = fault if is_private else warning
        yield told(name, f"others may look into {path} (mode {mode:04o})", f"chmod 700 {quoted}")
    elif not os.access(path, os.W_OK):
        advice = "mount that file system for writing: nothing can be charged there"
        yield fault(name, f"{path} cannot be written to", advice)
    else:
        yield ok(name, f"{path}, mode {mode:04o}, this user's")


def key_fault(check: str, path: Path, if_missing: str) -> Finding | None:
    """What is wrong with a key file's place, owner or mode; ``None`` for nothing."""
    name, quoted = f"{path.parent.name}/{path.name}", shlex.quote(str(path))
    try:
        status = path.stat()
    except FileNotFoundError:
        return fault(check, f"{name} is missing", if_missing)
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        found = f"{name} has mode {mode:04o}: others may have read it"
        advice = f"chmod 600 {quoted}; if others use this machine, replace the key as well"
        return fault(check, found, advice)
    if status.st_uid != os.geteuid():
        return fault(check, _foreign(name, status.st_uid), f"run this as uid {status.st_uid}")
    return None


def others(home: Path, paths: Iterable[Path]) -> Iterator[Finding]:
    """Files that others must not change, those that are there."""
    name = "permissions"
    there = [path for path in paths if path.exists()]
    wrong = [path for path in there if _is_open(path)]
    if wrong:
        modes = ", ".join(f"{_within(path, home)} ({_mode(path):04o})" for path in wrong)
        advice = f"chmod go-w {' '.join(shlex.quote(str(path)) for path in wrong)}"
        yield fault(name, f"others own or may change {modes}", advice)
    else:
        yield ok(name, f"no one else may change {counted(len(there), 'file')} of the home")


def dates(home: Path) -> Iterator[Finding]:
    """Compare this machine's clock with the dates that the home's file system gave."""
    name, now = "clock and files", time.time()
    seen = dict[Path, float]()
    for path in (home, *home.iterdir(), *(home / "pki").glob("*")):
        with contextlib.suppress(FileNotFoundError):  # a running site's, on its way to its name
            seen[path] = path.stat().st_mtime
    latest = max(seen, key=lambda path: seen[path])
    ahead = seen[latest] - now
    if ahead > _SKEW_S:
        found = f"{_within(latest, home)} is dated {_span(ahead)} ahead of this machine's clock"
        yield fault(name, found, "set the clock (timedatectl status), and the file server's")
    else:
        yield ok(name, "no file of the home is dated in the future")


def _is_open(path: Path) -> bool:
    return bool(_mode(path) & 0o022) or path.stat().st_uid != os.geteuid()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _within(path: Path, home: Path) -> str:
    return str(path.relative_to(home)) if path != home else "the home"


def _foreign(name: str, owner: int) -> str:
    return f"{name} belongs to uid {owner}, and this runs as uid {os.geteuid()}"


def _span(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
