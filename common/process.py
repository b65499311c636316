"""This process: its memory, what it does when a thread fails, and how it ends in mid-step."""

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

import structlog

from common.log import describe, frames

log = structlog.get_logger(__name__)


def leave(status: int = 0) -> NoReturn:
    """End this process at once, with everything it said written out.

    Python's own way out stops threads where they next ask for its lock. One that does so from
    within torch takes the process down with SIGABRT, after a stop that was clean.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def watch_threads(vital: Collection[str], failed: Callable[[str], None]) -> None:
    """From now on log what ends a thread unforeseen, without values.

    Args:
        vital: names of threads that this process is nothing without.
        failed: called with the name when it is one of those, in that thread.
    """

    def tell(args: threading.ExceptHookArgs) -> None:
        name, error = args.thread.name if args.thread else "", args.exc_value
        where = frames(error) if error else ""
        is_vital = name in vital
        log.error("thread failed", thread=name, vital=is_vital, error=describe(error), where=where)
        if is_vital:
            failed(name)

    threading.excepthook = tell


def reset_peak_memory() -> None:
    """Let ``peak_memory_bytes`` count from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        # proc(5): 5 resets the peak resident set size to the present one.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
