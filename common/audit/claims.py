"""What a check found: one claim each, as a table and as JSON show it.

Not covered: what is claimed (common/audit/verify.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from common.errors import InvalidInput, Refusal, StorageFailed

Status = Literal["pass", "fail", "not checkable"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement and what became of it.

    Attributes:
        name: what is claimed, one word of a closed set.
        subject: the site that it is about; empty for the whole.
        status: what became of it.
        found: in words.
    """

    name: str
    subject: str
    status: Status
    found: str


def checked(name: str, check: Callable[[], str], subject: str = "") -> Claim:
    """The claim that ``check`` decides: it says what it found, or raises an error of ours."""
    return judged(name, lambda: Claim(name, subject, "pass", check()), subject)


def judged(name: str, check: Callable[[], Claim], subject: str = "") -> Claim:
    """The claim that ``check`` makes, or a failed one where it raises an error of ours."""
    try:
        return check()
    except (Refusal, InvalidInput, StorageFailed) as error:
        return Claim(name, subject, "fail", str(error))


def unchecked(name: str, why: str, subject: str = "") -> Claim:
    """A claim that cannot be decided from what there is."""
    return Claim(name, subject, "not checkable", why)
