"""One id for one exchange between server and site, the same in both logs.

    id=3f2a9c1b4d5e/r3/9a8b7c6d      a job, a round of it (or its offer, its close), a message

What both sides read off the message itself makes it up, so neither has to be told it. A search for
the whole id finds one exchange at both ends; for its beginning, the round at every site, or the
job. All three parts are public.

Not covered: what is logged under it (common/log.py).
"""

import re
from contextlib import AbstractContextManager

from structlog.contextvars import bound_contextvars

_JOB, _MESSAGE = 12, 8
_GROUP = re.compile(r"[a-z]{1,12}")
_ROUND = re.compile(r"[0-9]{1,9}")
_HEX = re.compile(r"[0-9a-f]{64}")


def round_id(job_sha256: str, round_: int) -> str:
    """A round at every site.

    >>> round_id("3f2a9c1b4d5e" + "0" * 52, 3)
    '3f2a9c1b4d5e/r3'
    """
    return f"{_start(job_sha256, _JOB)}/r{round_}"


def exchange_id(job_sha256: str, group_id: str, message_id: str) -> str:
    """A message and its reply; what is not as it must be is a question mark.

    Args:
        job_sha256: the job's, in hex.
        group_id: the message's own: a round's number, ``offer`` or ``close``.
        message_id: of the message, not of its reply.

    >>> exchange_id("3f2a9c1b4d5e" + "0" * 52, "3", "9a8b7c6d" + "1" * 56)
    '3f2a9c1b4d5e/r3/9a8b7c6d'
    >>> exchange_id("ab", "../x", "")
    '?/?/?'
    """
    group = f"r{group_id}" if _ROUND.fullmatch(group_id) else group_id
    if group == group_id and not _GROUP.fullmatch(group):
        group = "?"
    return f"{_start(job_sha256, _JOB)}/{group}/{_start(message_id, _MESSAGE)}"


def about(identifier: str) -> AbstractContextManager[None]:
    """Have every event of this thread bear an id, until the block ends."""
    return bound_contextvars(id=identifier)


def _start(sha256: str, length: int) -> str:
    return sha256[:length] if _HEX.fullmatch(sha256) else "?"
