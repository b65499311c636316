"""Room for replies on their way in, so that a server's memory does not grow with its sites.

A large reply is taken in when those that are held leave room for it: from its header until the
strategy has let go of it. Its site's stream waits meanwhile, which HTTP/2 tells the site, so what
has no room yet stays there. Nobody waits longer than ``patience_s`` for others: a site that stops
within its reply, or many that send slowly, cost memory and not the round.

Not covered: rules that need all updates at a time (``server/strategies/robust.py``) hold them
beside this.
"""

import threading
import weakref

from flwr.app import Message

MOST_BYTES = 64 << 20
PATIENCE_S = 10.0
SMALL_BYTES = 1 << 16  # such replies need no room


class Room:
    """Bytes of replies that are held; safe to use from several threads."""

    def __init__(self, most_bytes: int = MOST_BYTES, patience_s: float = PATIENCE_S) -> None:
        self._most_bytes, self._patience_s = most_bytes, patience_s
        self._taken_bytes = 0
        self._changed = threading.Condition()

    def take(self, size_bytes: int) -> int:
        """Wait for room, and take it; how much is to be given back. One reply always has room."""
        if size_bytes <= SMALL_BYTES:
            return 0
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(size_bytes), self._patience_s)
            self._taken_bytes += size_bytes
        return size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Let others have it."""
        if size_bytes:
            with self._changed:
                self._taken_bytes -= size_bytes
                self._changed.notify_all()

    def give_back_after(self, reply: Message, size_bytes: int) -> None:
        """Give back once nobody holds ``reply`` any more."""
        weakref.finalize(reply, self.give_back, size_bytes).atexit = False

    def _has_room(self, size_bytes: int) -> bool:
        return not self._taken_bytes or self._taken_bytes + size_bytes <= self._most_bytes
