"""Telling systemd how this process stands, by sd_notify(3)'s protocol; elsewhere it does nothing.

Ready means what it says: a server answers sites and its operator, a site holds its home and its
account. There is no watchdog: the thread that could send its beat would go on beating while another
hangs in a step of training, which may rightly take hours.

Not covered: a file store, a main process other than this one.
"""

import contextlib
import os
import socket

from common.cli import one_line

_MAX_STATUS = 300


def ready(status: str) -> None:
    """Say that this process serves; ``status`` is what ``systemctl status`` shows."""
    _send(f"READY=1\nSTATUS={_words(status)}")


def now(status: str) -> None:
    """Say how it stands."""
    _send(f"STATUS={_words(status)}")


def stopping() -> None:
    """Say that it was told to stop."""
    _send("STOPPING=1")


def _words(status: str) -> str:
    return one_line(status)[:_MAX_STATUS]


def _send(message: str) -> None:
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    # Its listener may be gone: that is no reason to end.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.connect("\0" + place[1:] if place[0] == "@" else place)
        there.sendall(message.encode())
