"""Messages as frames of at most a mebibyte, checked before anything is built from them.

A message is one header and its chunks. The header announces length, job and type, so the receiver
can refuse it before it takes a byte; all chunks but the last are full, so nobody can send a message
in a million pieces; the sha256 covers the header's other fields and the body, and is checked before
the body is parsed.

Not covered: who may send what (server/mailbox.py, client/session.py), what a body means.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from google.protobuf.message import DecodeError

from common.errors import UpdateRejected
from common.flower import arrived, message_from_bytes, set_arrival
from common.link import federation_pb2 as wire

PROTOCOL = 1
CHUNK_BYTES = 1 << 20
MAX_FRAME_BYTES = CHUNK_BYTES + 64 * 1024
UNKNOWN_JOB_CAP_BYTES = 256 * 1024  # a message that belongs to no job the receiver knows
_DOMAIN = b"veiltune message v1\n"
_OPENING = threading.Lock()


def parse(data: bytes) -> wire.Frame:
    """Parse one frame.

    Raises:
        UpdateRejected: the bytes are no frame, or an empty one.
    """
    try:
        frame = wire.Frame.FromString(data)
    except DecodeError as error:
        raise UpdateRejected(f"frame must parse, got {len(data)} bytes that do not") from error
    if frame.WhichOneof("body") is None:
        raise UpdateRejected(f"frame must have a known kind, got {len(data)} bytes of none")
    return frame


def hello(software: str) -> bytes:
    """The first frame of a site."""
    return _bytes(wire.Frame(hello=wire.Hello(protocol=PROTOCOL, software=software)))


def welcome(software: str) -> bytes:
    """The server's answer to a site that it knows."""
    return _bytes(wire.Frame(welcome=wire.Welcome(protocol=PROTOCOL, software=software)))


def refusal(reason: wire.Refusal.Reason, words: str) -> bytes:
    """The last frame of a session that a rule ended."""
    return _bytes(wire.Frame(refusal=wire.Refusal(reason=reason, words=words)))


def goodbye(words: str) -> bytes:
    """The last frame of a session that ended in order."""
    return _bytes(wire.Frame(goodbye=wire.Goodbye(words=words)))


def split(
    body: bytes | Sequence[bytes],
    *,
    message_type: str,
    job_sha256: str = "",
    message_id: str = "",
    reply_to: str = "",
) -> Iterator[bytes]:
    """The frames of a message, whose body may come in pieces, made as they are asked for."""
    parts = [body] if isinstance(body, bytes) else body
    header = wire.MessageHeader(
        total_bytes=sum(map(len, parts)),
        job_sha256=job_sha256,
        message_type=message_type,
        message_id=message_id,
        reply_to=reply_to,
    )
    digest = _start_digest(header)
    for part in parts:
        digest.update(part)
    header.sha256 = digest.digest()
    yield _bytes(wire.Frame(header=header))
    for chunk in _chunks(parts):
        yield _bytes(wire.Frame(chunk=chunk))


def _chunks(parts: Sequence[bytes]) -> Iterator[bytes]:
    """The parts' bytes, ``CHUNK_BYTES`` at a time."""
    held, missing = list[memoryview](), CHUNK_BYTES
    for part in parts:
        rest = memoryview(part)
        while rest:
            taken, rest = rest[:missing], rest[missing:]
            held.append(taken)
            missing -= len(taken)
            if not missing:
                yield b"".join(held)
                held, missing = [], CHUNK_BYTES
    if held:
        yield b"".join(held)


@dataclass(frozen=True, slots=True)
class Received:
    """A whole message whose length and hash are right; ``parts`` is None if nobody wants it."""

    header: wire.MessageHeader
    parts: list[bytes] | None

    @property
    def body(self) -> bytes | None:
        """Its bytes in one piece, made anew."""
        return None if self.parts is None else b"".join(self.parts)


@dataclass(slots=True)
class Assembler:
    """Builds messages from frames.

    ``admit`` sees each header before any byte of its body: it raises UpdateRejected to end the
    session, returns True to keep the body and False to let it pass by unread.
    """

    admit: Callable[[wire.MessageHeader], bool]
    _header: wire.MessageHeader | None = None
    _is_kept: bool = False
    _taken_bytes: int = 0
    _parts: list[bytes] = field(default_factory=list)
    _digest: "hashlib._Hash | None" = None

    def take(self, frame: wire.Frame) -> Received | None:
        """Take a header or a chunk; return the message that it completes.

        Raises:
            UpdateRejected: a frame that does not belong here, or a body other than announced.
        """
        kind = frame.WhichOneof("body")
        if kind == "header" and self._header is None:
            return self._begin(frame.header)
        if kind == "chunk" and self._header is not None:
            return self._continue(self._header, frame.chunk)
        where = "between messages" if self._header is None else "inside a message"
        raise UpdateRejected(f"frame {where} must not be a {kind}")

    def _begin(self, header: wire.MessageHeader) -> Received | None:
        if header.total_bytes == 0:
            raise UpdateRejected("total_bytes must be greater than 0, got 0")
        self._is_kept = self.admit(header)
        self._header, self._taken_bytes = header, 0
        self._parts, self._digest = [], _start_digest(header)
        return None

    def _continue(self, header: wire.MessageHeader, chunk: bytes) -> Received | None:
        expected = min(CHUNK_BYTES, header.total_bytes - self._taken_bytes)
        if len(chunk) != expected:
            raise UpdateRejected(f"chunk must have {expected} bytes, got {len(chunk)}")
        self._taken_bytes += len(chunk)
        if self._is_kept and self._digest is not None:
            self._digest.update(chunk)
            self._parts.append(chunk)
        if self._taken_bytes < header.total_bytes:
            return None
        return self._finish(header)

    def _finish(self, header: wire.MessageHeader) -> Received:
        parts, digest, self._header = self._parts, self._digest, None
        self._parts, self._digest = [], None
        if not self._is_kept or digest is None:
            return Received(header, None)
        if digest.digest() != header.sha256:
            raise UpdateRejected(
                f"message sha256 must be the header's, got another ({header.total_bytes} bytes)"
            )
        return Received(header, parts)


def require_size(header: wire.MessageHeader, cap_bytes: int) -> None:
    """Check an announced length.

    Raises:
        UpdateRejected: it is over the cap.
    """
    if header.total_bytes > cap_bytes:
        raise UpdateRejected(
            f"message must be at most {cap_bytes} bytes, got {header.total_bytes} announced"
        )


def open_message(header: wire.MessageHeader, body: bytes) -> Message:
    """Parse a body whose hash has been checked.

    Raises:
        UpdateRejected: no Flower message, or one that is not what its header says.
    """
    message = message_from_bytes(body)
    metadata = message.metadata
    claimed = (header.message_type, header.message_id, header.reply_to)
    found = (metadata.message_type, metadata.message_id, metadata.reply_to_message_id)
    if claimed != found:
        raise UpdateRejected("message type and ids must be the header's, got others")
    return message


def open_received(received: Received) -> Message:
    """Parse a message that is kept, one at a time in this process, and note how it came.

    While it is parsed a message takes three times its size; its pieces are let go of.

    Raises:
        UpdateRejected: as ``open_message``.
    """
    parts = received.parts or []
    arrival = arrived(parts)
    with _OPENING:
        body = b"".join(parts)
        parts.clear()
        message = open_message(received.header, body)
    set_arrival(message, arrival)
    return message


def _start_digest(header: wire.MessageHeader) -> "hashlib._Hash":
    bare = wire.MessageHeader()
    bare.CopyFrom(header)
    bare.ClearField("sha256")
    fields = bare.SerializeToString(deterministic=True)
    return hashlib.sha256(_DOMAIN + len(fields).to_bytes(4, "big") + fields)


def _bytes(frame: wire.Frame) -> bytes:
    return bytes(frame.SerializeToString())
