"""This process: its memory, and how it ends while a thread is in the middle of a step."""

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import NoReturn


def leave(status: int = 0) -> NoReturn:
    """End this process at once, with everything it said written out.

    Python's own way out stops threads where they next ask for its lock. One that does so from
    within torch takes the process down with SIGABRT, after a stop that was clean.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def reset_peak_memory() -> None:
    """Let ``peak_memory_bytes`` count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        # proc(5): 5 resets the peak resident set size to the present one.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
