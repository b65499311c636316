"""Looks after a running server: its certificate, and the port for those who are invited.

Not covered: how either works (server/certificate.py, server/joining.py).
"""

import threading
from pathlib import Path

import structlog

from common.errors import InvalidInput, StorageFailed
from server.certificate import ServerCertificate
from server.config import ServerConfig
from server.invitations import Invitations
from server.joining import JoinServer
from server.throttle import Limit

TICK_S = 2.0

log = structlog.get_logger(__name__)


class Upkeep:
    """A thread at work from ``start`` to ``stop``."""

    def __init__(self, home: Path, config: ServerConfig, certificate: ServerCertificate) -> None:
        self._home = home
        self._config = config
        self._certificate = certificate
        self._joins: JoinServer | None = None
        self._limit = Limit()
        self._fault = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is under way and the port is closed when this returns."""
        self._stopped.set()
        self._thread.join()
        self._close_joins()

    def _run(self) -> None:
        while True:
            self._certificate.refresh()
            self._mind_joins()
            if self._stopped.wait(TICK_S):
                return

    def _mind_joins(self) -> None:
        try:
            is_wanted = bool(Invitations(self._home).standing())
            if is_wanted and self._joins is None:
                self._open_joins()
            self._fault = ""
        except (InvalidInput, StorageFailed) as error:
            is_wanted = False
            if str(error) != self._fault:
                log.error("invitations not served", reason=str(error))
            self._fault = str(error)
        if not is_wanted:
            self._close_joins()

    def _open_joins(self) -> None:
        address = self._config.listens_for_joins_at
        joins = JoinServer(address, self._home, lambda: self._certificate.credentials, self._limit)
        joins.start()
        self._joins = joins
        log.info("join port open", listens=address)

    def _close_joins(self) -> None:
        if self._joins is not None:
            self._joins.stop()
            self._joins = None
            log.info("join port closed")
