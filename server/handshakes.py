"""Why TLS handshakes fail, in the server's log.

gRPC closes such connections without telling the application. Its core names the cause in one line
on file descriptor 2; so the server process puts a pipe there, turns those lines into words and
passes every other line on to where descriptor 2 pointed before. Anybody can fail a handshake, as
often as they like: of one cause a minute has some lines and a count.

Not covered: the peer's address (gRPC's line has none); a connection that is closed, or that falls
silent, before it sent anything gRPC could judge; a client that gives up over the server's own
certificate (the server sees a closed connection).
"""

import os
import queue
import re
import sys
import threading

import structlog

import server
from server.repeats import Repeats

_GRPC_LINE = re.compile(rb"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+:\d+\] (.*)$")
_HANDSHAKE = re.compile(r"^Handshake failed with error \S+: \S+:OPENSSL_internal:(\w+): ?(.*)$")
_NOISE = (b"Log level INFO is not suitable", b"All log messages before absl::InitializeLog")
_STDERR = 2
_QUEUED_LINES = 1000
_POLL_S = 1.0

_CAUSES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no client certificate",
    "BAD_SIGNATURE": "certificate is not signed by this federation's root",
    "HTTP_REQUEST": "plaintext: an HTTP request on the TLS port",
    "HTTPS_PROXY_REQUEST": "plaintext: a proxy request on the TLS port",
    "WRONG_VERSION_NUMBER": "no TLS: plaintext or garbage",
    "NO_SHARED_CIPHER": "TLS 1.2, and only 1.3 is served",
    "UNSUPPORTED_PROTOCOL": "a TLS version below 1.3, and only 1.3 is served",
    "INVALID_ALPN_PROTOCOL": "a TLS client that does not speak HTTP/2",
}
_CERTIFICATE_CAUSES = {
    "certificate has expired": "certificate expired",
    "certificate is not yet valid": "certificate not yet valid (is the clock right?)",
    "unable to get local issuer certificate": "certificate from an unknown root",
    "unable to get issuer certificate": "certificate from an unknown root",
    "self signed certificate": "certificate from an unknown root (self-signed)",
    "self signed certificate in certificate chain": "certificate from an unknown root",
    "certificate signature failure": "certificate is not signed by this federation's root",
    "unsupported certificate purpose": "certificate is not for clients (a server's own?)",
    "invalid CA certificate": "certificate was issued by one that may not issue",
}

log = structlog.get_logger(__name__)


def cause_of(line: str) -> str | None:
    """What a line of gRPC's says about a failed handshake; None if it is about something else.

    >>> cause_of(
    ...     "Handshake failed with error SSL_ERROR_SSL: error:1000007d:SSL routines:"
    ...     "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired"
    ... )
    'certificate expired'
    """
    if not line.startswith("Handshake failed"):
        return None
    match = _HANDSHAKE.match(line.replace("SSL routines", "SSL").replace("ECDSA routines", "ECDSA"))
    if match is None:
        return f"handshake failed: {line[:200]}"
    name, detail = match.groups()
    if name == "CERTIFICATE_VERIFY_FAILED":
        return _CERTIFICATE_CAUSES.get(detail, f"certificate refused: {detail[:100]}")
    return _CAUSES.get(name, f"handshake failed: {name.lower().replace('_', ' ')[:100]}")


class HandshakeLog:
    """Descriptor 2 of this process, from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self._repeats = Repeats()
        self._causes: queue.Queue[str | None] = queue.Queue(_QUEUED_LINES)
        self._threads: list[threading.Thread] = []
        self._real = -1

    def start(self) -> None:
        """Put the pipe in place."""
        if not server.HEARS_HANDSHAKES:
            log.warning("failed handshakes stay unnamed", reason="grpc was imported before server")
        sys.stderr.flush()
        self._real = os.dup(_STDERR)
        read_end, write_end = os.pipe()
        os.dup2(write_end, _STDERR)
        os.close(write_end)
        # Logging runs beside the pump, never in it: what it writes may come through the pipe.
        for target, argument in ((self._pump, read_end), (self._tell, None)):
            thread = threading.Thread(target=target, args=(argument,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Put descriptor 2 back and deliver what was in the pipe."""
        if self._real < 0:
            return
        sys.stderr.flush()
        os.dup2(self._real, _STDERR)  # closes the pipe's last write end, which ends the pump
        for thread in self._threads:
            thread.join(timeout=2)
        os.close(self._real)
        self._real = -1

    def _pump(self, read_end: int) -> None:
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            rest = b""
            while data := pipe.read(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._sort(line + b"\n")
            if rest:
                self._sort(rest)
        self._causes.put(None)

    def _sort(self, line: bytes) -> None:
        match = _GRPC_LINE.match(line.rstrip(b"\n"))
        severity, text = (match.group(1), match.group(2)) if match else (b"", line)
        cause = cause_of(text.decode(errors="replace")) if match else None
        if cause is not None:
            self._queue(cause)
        elif severity != b"I" and not any(noise in text for noise in _NOISE):
            os.write(self._real, line)

    def _queue(self, cause: str) -> None:
        try:
            self._causes.put_nowait(cause)
        except queue.Full:  # a flood of them: the log must not hold the pipe up
            return

    def _tell(self, _: None) -> None:
        is_open = True
        while is_open:
            try:
                cause = self._causes.get(timeout=_POLL_S)
            except queue.Empty:
                self._repeats.tell_rest()
                continue
            if cause is not None:
                self._repeats.warning("handshake refused", cause, reason=cause)
            is_open = cause is not None
        self._repeats.tell_rest(at_once=True)
