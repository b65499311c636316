"""The plainest thing that moves a round's bytes: length-prefixed messages over TCP, no TLS.

It is the yardstick beside which the link is measured, with the same payloads in the same processes.
Not covered: everything that the link is for.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

_PREFIX = struct.Struct("!Q")
_READ_BYTES = 1 << 20


def send(connection: socket.socket, body: bytes) -> None:
    """Send one message."""
    connection.sendall(_PREFIX.pack(len(body)))
    connection.sendall(body)


def receive(connection: socket.socket) -> bytes:
    """Receive one message.

    Raises:
        ConnectionError: the other side closed.
    """
    (length,) = _PREFIX.unpack(_exactly(connection, _PREFIX.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        taken = connection.recv_into(view)
        if taken == 0:
            raise ConnectionError("connection must stay open, got its end")
        view = view[taken:]
    return bytes(buffer)


class CountingRelay:
    """Forwards TCP connections to a port and counts what passes, both ways.

    It stands between sites and server in rounds that are not timed: what it counts is what a
    network carries above TCP, with TLS and HTTP/2 around the payload.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server((host, 0))
        self._lock = threading.Lock()
        self.port = int(self._listener.getsockname()[1])
        self.bytes_up = 0
        self.bytes_down = 0
        self._start(self._accept)

    def close(self) -> None:
        """Take no more connections; those there are end with their peers."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._start(partial(self._pump, near, far, is_up=True))
                self._start(partial(self._pump, far, near, is_up=False))

    def _pump(self, source: socket.socket, sink: socket.socket, *, is_up: bool) -> None:
        with suppress(OSError):  # either side went away
            while data := source.recv(_READ_BYTES):
                with self._lock:  # before it is sent: what has arrived has been counted
                    self.bytes_up += len(data) if is_up else 0
                    self.bytes_down += 0 if is_up else len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True).start()
