"""Random numbers from AES-256-CTR under a 256-bit key, by ``cryptography``.

One stream serves sampling and noise. Whoever holds the key can repeat every draw, so a site takes a
fresh key from the operating system for each step and purpose (``fresh_key``) at the moment of use
and keeps none; the kernel draws anew after a fork and after a virtual machine is restored. A stream
itself refuses to go on in a forked child, where it would repeat its parent.

Not covered: a machine whose memory is copied in the milliseconds between a key and its last draw.
"""

import hashlib
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common.errors import SelfCheckFailed

KEY_BYTES = 32
_FROM_ZERO = modes.CTR(bytes(16))

# (purpose, round, step) -> key. Production ignores the arguments: see ``fresh_key``.
KeySource = Callable[[str, int, int], bytes]


def fresh_key(purpose: str, round_: int, step: int) -> bytes:
    """A new key from the operating system, whatever it is for."""
    return os.urandom(KEY_BYTES)


class Stream:
    """Consecutive draws under one key, by the process that made it."""

    def __init__(self, key: bytes) -> None:
        self._process = os.getpid()
        self._cipher = Cipher(algorithms.AES256(key), _FROM_ZERO).encryptor()

    def words(self, size: int) -> NDArray[np.uint64]:
        """``size`` 64-bit words, (size,).

        Raises:
            SelfCheckFailed: in a forked child.
        """
        if os.getpid() != self._process:
            raise SelfCheckFailed("stream must be used by the process that made it, got its child")
        return np.frombuffer(self._cipher.update(bytes(8 * size)), dtype="<u8")

    def uniforms(self, size: int) -> NDArray[np.float64]:
        """Uniform on the 2^53 multiples of 2^-53 in [0, 1), (size,)."""
        return (self.words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def public_keys(*parts: str) -> KeySource:
    """Keys that anybody can compute: for runs without privacy, whose batches may be repeated."""

    def key(purpose: str, round_: int, step: int) -> bytes:
        text = "\n".join(("veiltune public stream", *parts, purpose, str(round_), str(step)))
        return hashlib.sha256(text.encode()).digest()

    return key
