"""What callers without a certificate may have: places at a time, and wrong secrets a minute.

A caller is an IPv4 address or an IPv6 /64, which is what one subscriber has. A port that takes both
shows an IPv4 address within an IPv6 one (RFC 4291, section 2.5.5.2); it is the same caller.

Not covered: a caller with many addresses, who can hold every place for seconds (a firewall's task).
"""

import ipaddress
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

MOST_AT_ONCE, MOST_BY_CALLER = 8, 2
_MINUTE_S = 60.0
WRONG_BY_CALLER, WRONG_BY_ALL = 5, 300
_REMEMBERED_CALLERS = 1024


class Places:
    """Who holds a place now; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """Take a place, or say that there is none for this caller."""
        caller = caller_of(address)
        with self._lock:
            if self._held.total() >= MOST_AT_ONCE or self._held[caller] >= MOST_BY_CALLER:
                return False
            self._held[caller] += 1
            return True

    def give_back(self, address: str) -> None:
        """Once for each that was taken."""
        with self._lock:
            self._held[caller_of(address)] -= 1
            self._held += Counter()  # drops whoever holds none


class Limit:
    """How many wrong secrets a minute are taken; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()

    def allows(self, address: str) -> bool:
        """Whether this caller may show a secret now, whatever others did."""
        with self._lock:
            own = self._wrong.get(caller_of(address), deque())
            self._forget(own)
            return len(own) < WRONG_BY_CALLER

    def note(self, address: str) -> bool:
        """Remember a wrong secret; whether all callers together have not sent too many."""
        with self._lock:
            self._forget(self._all)
            caller = caller_of(address)
            self._wrong.setdefault(caller, deque()).append(self._clock())
            self._wrong.move_to_end(caller)
            while len(self._wrong) > _REMEMBERED_CALLERS:
                self._wrong.popitem(last=False)
            if len(self._all) >= WRONG_BY_ALL:
                return False
            self._all.append(self._clock())
            return True

    def _forget(self, times: deque[float]) -> None:
        while times and times[0] <= self._clock() - _MINUTE_S:
            times.popleft()


def caller_of(address: str) -> str:
    """What counts as one caller.

    >>> caller_of("2001:db8:1:2:3::4"), caller_of("192.0.2.7"), caller_of("::ffff:192.0.2.7")
    ('2001:db8:1:2::/64', '192.0.2.7', '192.0.2.7')
    """
    host = address.partition("%")[0]
    if ":" not in host:
        return host
    if (within := ipaddress.IPv6Address(host).ipv4_mapped) is not None:
        return str(within)
    return str(ipaddress.ip_network((host, 64), strict=False))
