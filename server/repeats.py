"""Warnings that a stranger can call forth at will: some of a kind a minute, then how many more.

A log file is turned over (common/log.py), so whoever may write to it without end may erase it.

Not covered: who is behind them; what an admitted site can have logged, which a revocation ends.
"""

import threading
import time
from collections.abc import Callable

import structlog

MOST_A_MINUTE, MOST_KINDS = 10, 32
_MINUTE_S = 60.0
_OTHERS = "others"

log = structlog.get_logger(__name__)


class Repeats:
    """Counts warnings by their event and kind; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # end of the minute, how many

    def warning(self, event: str, kind: str, **values: str | int) -> None:
        """Log ``event``, unless enough of its kind were within the minute.

        Args:
            event: a fixed text.
            kind: what is counted together. When there are very many they share one count.
            values: as for a logger.
        """
        self.tell_rest()
        with self._lock:
            key = (event, kind)
            if key not in self._seen and len(self._seen) >= MOST_KINDS:
                key = (event, _OTHERS)
            end, count = self._seen.get(key, (self._clock() + _MINUTE_S, 0))
            self._seen[key] = end, count + 1
        if count < MOST_A_MINUTE:
            log.warning(event, **values)

    def tell_rest(self, *, at_once: bool = False) -> None:
        """Say how many were left out in each minute that is over; to be called now and then.

        Args:
            at_once: whether minutes that are not over count too, as at the end.
        """
        now = self._clock()
        with self._lock:
            over = [(key, seen) for key, seen in self._seen.items() if at_once or seen[0] <= now]
            for key, _ in over:
                del self._seen[key]
        for (event, kind), (_, count) in over:
            if count > MOST_A_MINUTE:
                log.warning(f"{event}, more of them", kind=kind, count=count - MOST_A_MINUTE)
