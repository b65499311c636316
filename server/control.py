"""The operator's way in: JSON lines over a Unix socket that its owner alone may open.

One request a connection, one line; the answer is any number of ``{"event": ...}`` lines and then
one ``{"answer": ...}`` or ``{"error": "..."}``. A stream that ends without either was cut short.
The kernel says who is calling: anyone but the server's own user and root is turned away even where
the file's mode would let them in.

Not covered: what the commands do (server/daemon.py); anything over TCP, on purpose.
"""

import contextlib
import errno
import json
import os
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import Field

from common.config import MAX_CONFIG_BYTES, Section, parse
from common.errors import InvalidInput, LinkDown, VeiltuneError
from common.log import describe, frames
from common.strict_json import parse_json
from server.home import command_of

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 2 * MAX_CONFIG_BYTES + 4096  # a signed job, its quotes escaped
_REQUEST_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 120.0

Line = dict[str, Any]
Handler = Callable[["Request"], Iterator[Line]]
log = structlog.get_logger()


class Request(Section):
    """What the operator asks for; ``signed`` is the JSON text of a signed job."""

    command: Literal["submit", "jobs", "show", "stop", "watch", "sites"]
    job: str = Field(default="", max_length=200)
    signed: str = Field(default="", max_length=MAX_CONFIG_BYTES)


def ask(home: Path, request: Request) -> Line:
    """The answer to a request that has no events.

    Raises:
        LinkDown: no server runs for this home, or it went away.
        VeiltuneError: the server's own words.
    """
    *_, answer = follow(home, request)
    return answer


def follow(home: Path, request: Request) -> Iterator[Line]:
    """Yield the events of a request as they come, then its answer.

    Raises:
        LinkDown: no server runs for this home, or it went away before the answer.
        VeiltuneError: the server's own words.
    """
    path = home / SOCKET_NAME
    with _connected(path) as connection, connection.makefile("rb") as lines:
        with _answering(path):
            connection.sendall(request.model_dump_json().encode() + b"\n")
        while True:
            with _answering(path):
                line = lines.readline()
            if not line.endswith(b"\n"):
                raise LinkDown(
                    "fl-server must finish its answer, got its end (a job under way is resumed by "
                    "the server's next start)"
                )
            content = json.loads(line)
            if "error" in content:
                raise VeiltuneError(content["error"])
            if "answer" in content:
                yield content["answer"]
                return
            yield content["event"]


def event(content: Line) -> Line:
    """A line before the last."""
    return {"event": content}


def answer(content: Line) -> Line:
    """The last line."""
    return {"answer": content}


class ControlServer:
    """Answers requests on ``home``'s socket, each in a thread of its own.

    Args:
        home: the server's home, mode 0700, whose lock the caller holds.
        handler: yields the lines of one answer; its errors of ours become an error line.
    """

    def __init__(self, home: Path, handler: Handler) -> None:
        self._path = home / SOCKET_NAME
        self._path.unlink(missing_ok=True)  # of a server that was killed: the caller has the lock
        try:
            self._server = _Server(str(self._path), _Connection)
        except OSError as error:
            raise InvalidInput(
                f"control socket must be made at {self._path}, got: "
                f"{_reason(error)} (choose a shorter or another --home)"
            ) from error
        self._server.handler = handler
        self._path.chmod(0o600)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="control", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests and remove the socket."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
    block_on_close = False
    handler: Handler

    def handle_error(self, request: object, client_address: object) -> None:
        """A bug in a command: the connection is cut, the server lives on."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            return  # the operator went away
        if error is not None:
            log.error("command failed", error=describe(error), where=frames(error))


class _Connection(socketserver.StreamRequestHandler):
    timeout = _REQUEST_TIMEOUT_S
    server: _Server

    def handle(self) -> None:
        try:
            # Read before anything is said: closing on unread bytes resets the caller's connection,
            # and the words with it.
            data = self.rfile.readline(MAX_REQUEST_BYTES + 1)
            self._check_caller()
            for line in self.server.handler(_parse(data)):
                self._send(line)
        except VeiltuneError as error:
            self._send({"error": str(error)})

    def _send(self, line: Line) -> None:
        self.wfile.write(json.dumps(line).encode() + b"\n")

    def _check_caller(self) -> None:
        if not hasattr(socket, "SO_PEERCRED"):
            return  # macOS: the mode of the socket and of its folder stand alone
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("3i", credentials)
        if uid not in (0, os.geteuid()):
            raise InvalidInput(f"caller must be the server's own user, got uid {uid}")


def _parse(line: bytes) -> Request:
    if len(line) > MAX_REQUEST_BYTES:
        raise InvalidInput(f"request must be at most {MAX_REQUEST_BYTES} bytes, got more")
    try:
        content = parse_json(line)
    except ValueError as error:
        raise InvalidInput("request must be one line of JSON, got something else") from error
    if not isinstance(content, dict):
        raise InvalidInput("request must be a JSON object, got another value")
    return parse(Request, content, "request")


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection, _answering(path):
        connection.settimeout(_ANSWER_TIMEOUT_S)
        connection.connect(str(path))
        yield connection


@contextlib.contextmanager
def _answering(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            raise LinkDown(
                f"fl-server must be running for this home, got no answer at {path} "
                f"(start it with: {command_of(path.parent)} start)"
            ) from error
        raise LinkDown(f"fl-server must answer at {path}, got: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
