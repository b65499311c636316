"""How many calls a site has open on the link, and how long each may keep its request to itself.

Every call holds one of the link's threads until it ends. A certificate is all it takes to open
one, and a revoked one passes TLS as well; so a site has few at a time whatever the roster says of
it, and a call whose request does not come is ended.

Not covered: who may call (server/link.py); connections that open no call, which hold no thread.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog

MOST_BY_SITE = 4  # its session, a fetch, a renewal and a question for documents
REQUEST_S = 10.0

log = structlog.get_logger(__name__)


class Cancelled(Protocol):
    """What is asked of a call's gRPC context here."""

    def cancel(self) -> object:
        """End the call; whoever waits for its request gets an ``RpcError``."""


class Calls:
    """Who holds a thread now; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._waiting: dict[Cancelled, tuple[str, float]] = {}

    def take(self, site: str) -> bool:
        """Take one of the site's places, or say that it has none left."""
        with self._lock:
            if self._held[site] >= MOST_BY_SITE:
                return False
            self._held[site] += 1
            return True

    def give_back(self, site: str) -> None:
        """Once for each that was taken, when its thread is free."""
        with self._lock:
            self._held[site] -= 1
            self._held += Counter()  # drops whoever holds none

    def request(self, site: str, incoming: Iterator[bytes], context: Cancelled) -> bytes | None:
        """The call's one request; None if the site ended its side without.

        Raises:
            grpc.RpcError: the call ended first, by the site or by ``end_late``.
        """
        with self._lock:
            self._waiting[context] = site, self._clock() + REQUEST_S
        try:
            return next(incoming, None)
        finally:
            with self._lock:
                self._waiting.pop(context, None)

    def end_late(self) -> None:
        """End every call that has waited too long for its request; to be called now and then."""
        now = self._clock()
        with self._lock:
            late = [(one, site) for one, (site, end) in self._waiting.items() if end <= now]
            for context, _ in late:
                del self._waiting[context]
        for context, site in late:
            log.info("call ended", site=site, reason=f"no request came in {REQUEST_S:g} s")
            context.cancel()
