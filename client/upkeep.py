"""Keeps a running site's certificate and roots fresh, beside its link.

Files are read again when they change, so that what ``renew`` or ``install`` puts in place is used
by the next session without a restart. Every few minutes the site asks what the root has signed; a
document that it must refuse keeps the link down until a good one is shown, and so does a server
that will not show any to a site which has a roster. No session begins before the first such
question was answered or could not be put, and none after this thread has ended by a fault: that
ends the process too (client/serve.py).

Not covered: what is asked (client/renewal.py, client/trust.py).
"""

import os
import random
import threading
import time
from pathlib import Path

import structlog

from client import renewal, trust
from client.calls import NotServed, call, link_config
from client.config import SiteHome
from client.identity import Identity, read_identity
from client.session import LinkConfig, Turned
from common.errors import InvalidInput, LinkDown, Refusal, StorageFailed
from common.link import federation_pb2 as wire
from common.link.channel import DOCUMENTS

TICK_S, _POLL_S = 1.0, 0.1
_DOCUMENTS_S, _REFUSED_S = 300.0, 30.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 60.0, 3600.0

log = structlog.get_logger(__name__)

_Stamps = tuple[tuple[int, int, int], ...]


class Upkeep:
    """The identity that the site's next session uses, and whether it may begin one.

    Args:
        home: the site's.
        identity: as it was read and checked at the start.
    """

    def __init__(self, home: SiteHome, identity: Identity) -> None:
        self._home = home
        self._stamps = _stamps(home)
        self._identity = identity
        self._config = link_config(home, identity)
        self._fault = ""
        self._has_asked = threading.Event()
        self._ask_at = self._renew_at = 0.0  # by the monotonic clock
        self._failures = 0

    def current(self) -> LinkConfig:
        """The same object until something has changed.

        Raises:
            LinkDown: the server showed what this site must refuse.
        """
        if not self._has_asked.is_set():
            raise LinkDown("the server has yet to show what the root signed")
        if self._fault:
            raise LinkDown(self._fault)
        return self._config

    def wait(self, stop: threading.Event) -> None:
        """Return once the first question is over, or ``stop`` is set."""
        while not stop.is_set() and not self._has_asked.wait(_POLL_S):
            continue

    def run(self, stop: threading.Event) -> None:
        """Look after it until ``stop`` is set."""
        try:
            while not stop.is_set():
                self.tick()
                stop.wait(TICK_S)
        finally:
            # Nobody checks what the root signs any more.
            self._fault = self._fault or "the thread that looks after certificates has ended"
            self._has_asked.set()

    def tick(self) -> None:
        """Do what is due."""
        self._reload()
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + random.uniform(0.8, 1.2) * _DOCUMENTS_S
            self._ask()
            self._reload()
        if time.monotonic() >= self._renew_at and not self._fault:
            self._renew_if_due()
            self._reload()

    def _reload(self) -> None:
        stamps = _stamps(self._home)
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            identity = read_identity(self._home)
            identity.check()
        except (InvalidInput, StorageFailed) as error:
            log.warning("changed certificate not used", reason=str(error))
            return
        if identity != self._identity:
            self._identity, self._config = identity, link_config(self._home, identity)
            self._failures = 0
            log.info("certificate taken up", days_left=identity.days_left)

    def _ask(self) -> None:
        try:
            trust.take(self._home, self._documents())
        except Turned as error:
            if trust.has_roster(self._home):
                self._refuse(f"server must show the root's documents, got: {error}")
        except LinkDown as error:
            # The session will find the same, and say why.
            log.debug("root's documents not shown", reason=str(error))
        except (Refusal, InvalidInput, StorageFailed) as error:
            self._refuse(str(error))
        else:
            self._fault = ""
        self._has_asked.set()

    def _refuse(self, reason: str) -> None:
        fault = f"this site takes part in nothing: {reason}"
        if fault != self._fault:
            log.error("root's documents refused", reason=reason)
        self._fault = fault
        self._ask_at = time.monotonic() + random.uniform(0.8, 1.2) * _REFUSED_S

    def _documents(self) -> wire.Trust:
        request = wire.DocumentsRequest().SerializeToString()
        try:
            frame = call(self._config, DOCUMENTS, request)
        except NotServed:
            return wire.Trust()  # as a server does that has none
        if frame.WhichOneof("body") != "trust":
            raise Refusal("answer must be the root's documents, got another frame")
        return frame.trust

    def _renew_if_due(self) -> None:
        if not renewal.is_due(self._identity):
            return
        try:
            renewal.renew(self._home)
        except (LinkDown, Refusal, InvalidInput, StorageFailed) as error:
            left = self._identity.days_left
            log.warning("certificate not renewed", reason=str(error), days_left=left)
        # Also after success: a certificate that is due at once must not be renewed in a circle.
        longest_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._renew_at = time.monotonic() + random.uniform(0.5, 1.0) * longest_s


def _stamps(home: SiteHome) -> _Stamps:
    """What tells that a file was replaced; a missing one has a stamp too."""
    certificates = home.config.certificates
    names = (certificates.root, certificates.certificate, certificates.key)
    return tuple(_stamp(home.path(name)) for name in names)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_ino, status.st_size
