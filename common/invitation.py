"""The token by which a site is invited: where to go, whom to expect there, and a secret.

A token is one word: ``vt1.`` and base64url of the root's sha256 (32 bytes), the secret (20 bytes),
``host:port`` in ASCII and the first 4 bytes of the sha256 over all of that, against slips.

Not covered: who holds it. Whoever does can enrol one key in the site's name, until it is used.
"""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from common.address import split_address
from common.errors import InvalidInput

SECRET_BYTES = 20
_PREFIX = "vt1."
_ROOT_BYTES, _CHECK_BYTES = 32, 4
_MOST_CHARACTERS = 600
_SHAPE = re.compile(r"vt1\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Token:
    """What an invitation tells a site; ``root_sha256`` in hex."""

    address: str
    root_sha256: str
    secret: bytes = field(repr=False)

    def to_text(self) -> str:
        """The word that the operator sends."""
        body = bytes.fromhex(self.root_sha256) + self.secret + self.address.encode("ascii")
        text = base64.urlsafe_b64encode(body + _checksum(body)).decode("ascii")
        return _PREFIX + text.rstrip("=")


def new_secret() -> bytes:
    """160 random bits of the operating system's."""
    return secrets.token_bytes(SECRET_BYTES)


def read_token(text: str) -> Token:
    """Read what ``Token.to_text`` wrote; spaces around it do not matter.

    Raises:
        InvalidInput: it is no token, or a character of it is wrong or missing. The words hold
            nothing of it.
    """
    token = _decoded(text.strip())
    # Written anew it is the same word: base64 lets some last characters stand for one another.
    if token is None or token.to_text() != text.strip():
        raise InvalidInput(
            "token must be the whole word that 'fl-server invite' printed (vt1. and what follows), "
            "got another or a part of it"
        )
    split_address(token.address)
    return token


def _decoded(text: str) -> Token | None:
    if len(text) > _MOST_CHARACTERS or not _SHAPE.fullmatch(text):
        return None
    word = text.removeprefix(_PREFIX)
    try:
        data = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
    except (binascii.Error, ValueError):
        return None
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    address = body[_ROOT_BYTES + SECRET_BYTES :]
    if _checksum(body) != check or not address.isascii():
        return None
    secret = body[_ROOT_BYTES : _ROOT_BYTES + SECRET_BYTES]
    return Token(address.decode("ascii"), body[:_ROOT_BYTES].hex(), secret)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"veiltune token v1\n" + body).digest()[:_CHECK_BYTES]
