"""How a process ends while a thread of its own is in the middle of a step."""

import os
import sys
from typing import NoReturn


def leave(status: int = 0) -> NoReturn:
    """End this process at once, with everything it said written out.

    Python's own way out stops threads where they next ask for its lock. One that does so from
    within torch takes the process down with SIGABRT, after a stop that was clean.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
