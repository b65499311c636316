"""Messages that sites still have to answer, whether they are connected or not.

A letter stays until it is answered or withdrawn, so a site that comes back finds it again. What a
site sends is matched against its own letters only: nobody answers for somebody else.

Not covered: sessions (server/session.py), whether a reply's content is any good.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message

_REMEMBERED_LETTERS = 4096
_LETTERS_PER_SITE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Letter:
    """A message for one site, the largest reply it may bring, and who wants that."""

    site: str
    message_id: str
    job_sha256: str
    message: Message
    cap_bytes: int
    deliver: Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Closed:
    """What is remembered of a letter that was answered or withdrawn."""

    site: str
    cap_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a message id, as seen from one site; nothing at all is possible too.

    Attributes:
        letter: the site's own that waits for its answer.
        closed: the site's own that was answered or withdrawn lately.
        is_for_another: whether it went to another site.
    """

    letter: Letter | None = None
    closed: Closed | None = None
    is_for_another: bool = False


class Mailbox:
    """Unanswered letters by site, oldest first. ``changed`` guards and announces every change."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._open: dict[str, dict[str, Letter]] = {}
        self._numbers: dict[tuple[str, str], int] = {}  # of open letters, in order of posting
        self._next_number = itertools.count(1)
        self._closed: OrderedDict[str, Closed] = OrderedDict()

    def post(self, letter: Letter) -> bool:
        """Add a letter; False if the site has too many, or this one, already."""
        with self.changed:
            letters = self._open.setdefault(letter.site, {})
            if len(letters) >= _LETTERS_PER_SITE or letter.message_id in letters:
                return False
            letters[letter.message_id] = letter
            self._numbers[letter.site, letter.message_id] = next(self._next_number)
            self._closed.pop(letter.message_id, None)
            self.changed.notify_all()
            return True

    def withdraw(self, site: str, message_id: str) -> None:
        """Stop waiting for an answer; one that comes later is dropped."""
        with self.changed:
            self._close(site, message_id)

    def next_for(self, site: str, after: int) -> tuple[int, Letter] | None:
        """The oldest letter for ``site`` posted after number ``after``. Hold ``changed``.

        Numbers count postings, from 1: a letter that was withdrawn and is posted again, since its
        answer may have come in between and been dropped, goes out again in the same session.
        """
        for message_id, letter in self._open.get(site, {}).items():
            if (number := self._numbers[site, message_id]) > after:
                return number, letter
        return None

    def lookup(self, site: str, message_id: str) -> Found:
        """What is known of that id, at one moment: a letter may be posted again at any other."""
        with self.changed:
            letter = self._open.get(site, {}).get(message_id)
            if letter is not None:
                return Found(letter=letter)
            known = self._closed.get(message_id)
            if known is not None and known.site == site:
                return Found(closed=known)
            is_open = any(message_id in letters for letters in self._open.values())
            return Found(is_for_another=is_open or known is not None)

    def answer(self, letter: Letter, reply: Message) -> bool:
        """Deliver a reply; False if the letter was answered or withdrawn meanwhile."""
        with self.changed:
            if self._open.get(letter.site, {}).get(letter.message_id) is not letter:
                return False
            self._close(letter.site, letter.message_id)
        letter.deliver(reply)
        return True

    def _close(self, site: str, message_id: str) -> None:
        letter = self._open.get(site, {}).pop(message_id, None)
        if letter is None:
            return
        del self._numbers[site, message_id]
        self._closed[message_id] = Closed(site, letter.cap_bytes)
        while len(self._closed) > _REMEMBERED_LETTERS:
            self._closed.popitem(last=False)
