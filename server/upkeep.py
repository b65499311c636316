"""Keeps a running server's certificate fresh, beside its link.

Not covered: how it is renewed (server/certificate.py).
"""

import threading

from server.certificate import ServerCertificate

TICK_S = 2.0


class Upkeep:
    """A thread that looks after the server, from ``start`` to ``stop``."""

    def __init__(self, certificate: ServerCertificate) -> None:
        self._certificate = certificate
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing is under way when this returns."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(TICK_S):
            self._certificate.refresh()
