"""First contact of an invited site: lines of JSON over TLS 1.3, on a port of their own.

    server  Greeting   its chain and its root, so that the site can check them against its token
    site    Request    the token's secret and the site's signing request
    server  Answer     the bundle to install, or the reason in words

The site shows no certificate, as it has none. TLS proves that the server holds the key of the
certificate it shows; that this one leads to the root in the token is checked by the site before it
sends anything.

Not covered: who asks how often (server/joining.py).
"""

import json
import ssl
from typing import Annotated, Literal

from pydantic import StringConstraints

from common.bundle import Bundle
from common.config import Model, Section, parse
from common.errors import UpdateRejected
from common.invitation import SECRET_BYTES
from common.strict_json import parse_json

MAX_LINE_BYTES = 64 * 1024

Pem = Annotated[str, StringConstraints(pattern=r"^[\x20-\x7e\r\n]+\z", max_length=16 * 1024)]
Secret = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{2 * SECRET_BYTES}}}\z")]


class Greeting(Section):
    """What the server says first; nothing in it is believed before it was checked."""

    veiltune_join: Literal[1] = 1
    chain: Pem
    root: Pem


class Request(Section):
    """What a site asks with."""

    secret: Secret
    csr: Pem


class Answer(Section):
    """One of the two."""

    bundle: Bundle | None = None
    refusal: Annotated[str, StringConstraints(max_length=500)] = ""


def send(connection: ssl.SSLSocket, line: Section) -> None:
    """Send one line."""
    connection.sendall(to_line(line))


def receive(connection: ssl.SSLSocket, kind: type[Model]) -> Model:
    """The next line, if it is of this kind.

    Raises:
        UpdateRejected: it is not; the words hold nothing of it.
        OSError: the connection broke or fell silent.
    """
    with connection.makefile("rb") as lines:
        return parse_line(kind, lines.readline(MAX_LINE_BYTES + 1))


def to_line(line: Section) -> bytes:
    """One line as it is sent."""
    content = line.model_dump(mode="json", exclude_none=True)
    return json.dumps(content).encode() + b"\n"


def parse_line(kind: type[Model], data: bytes) -> Model:
    """What ``to_line`` wrote.

    Raises:
        UpdateRejected: it is no line of this kind; the words hold nothing of it.
    """
    name = kind.__name__.lower()
    if len(data) > MAX_LINE_BYTES or not data.endswith(b"\n"):
        raise UpdateRejected(f"{name} must be one line, got {len(data)} bytes without an end")
    try:
        content = parse_json(data)
        return parse(kind, content if isinstance(content, dict) else {}, name)
    except ValueError as error:
        raise UpdateRejected(f"{name} must be as agreed, got {len(data)} other bytes") from error
