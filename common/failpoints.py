"""Named places in the code at which a test kills the process, as a power cut would.

A module names its places when it is imported, so that a test finds all of them and forgets none.
They do nothing unless the environment variable ``VEILTUNE_FAILPOINT`` names one: ``NAME`` or
``NAME:N`` for the Nth time that it is reached. It is read once, when this module is imported.

Not covered: failures other than a sudden end (tests/faults injects errors of the disk).
"""

import os
import signal

VARIABLE = "VEILTUNE_FAILPOINT"

_armed, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count) if _count.isdecimal() else 1
_known: set[str] = set()


def register(*names: str) -> None:
    """Make places known by name."""
    _known.update(names)


def registered() -> tuple[str, ...]:
    """Every place of the modules imported so far, sorted."""
    return tuple(sorted(_known))


def reach(name: str) -> None:
    """Kill this process here if the environment said so.

    Raises:
        KeyError: no module registered ``name``, so no test would ever kill there.
    """
    global _left
    if name not in _known:
        raise KeyError(name)
    if name == _armed:
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
