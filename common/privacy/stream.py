"""Random numbers from AES-256-CTR under a 256-bit key, by ``cryptography``.

One stream serves sampling and noise. Whoever holds the key can repeat every draw, so a site takes a
fresh key from the operating system for each step and purpose (``fresh_key``) and keeps none.

Not covered: floating-point attacks on the noise (Mironov 2012); normals reach 8.6 standard
deviations and lie on the lattice of their 53-bit uniforms.
"""

import hashlib
import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32

# (purpose, round, step) -> key. Production ignores the arguments: see ``fresh_key``.
KeySource = Callable[[str, int, int], bytes]


def fresh_key(purpose: str, round_: int, step: int) -> bytes:
    """A new key from the operating system, whatever it is for."""
    return os.urandom(KEY_BYTES)


class Stream:
    """Consecutive draws under one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def words(self, size: int) -> NDArray[np.uint64]:
        """``size`` 64-bit words, (size,)."""
        return np.frombuffer(self._cipher.update(bytes(8 * size)), dtype="<u8")

    def uniforms(self, size: int) -> NDArray[np.float64]:
        """Uniform on the 2^53 multiples of 2^-53 in [0, 1), (size,)."""
        return (self.words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normals(self, size: int) -> NDArray[np.float64]:
        """Standard normals by Box and Muller (1958), (size,)."""
        half = (size + 1) // 2
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniforms(half)))
        angle = (2.0 * np.pi) * self.uniforms(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]


def public_keys(*parts: str) -> KeySource:
    """Keys that anybody can compute: for runs without privacy, whose batches may be repeated."""

    def key(purpose: str, round_: int, step: int) -> bytes:
        text = "\n".join(("veiltune public stream", *parts, purpose, str(round_), str(step)))
        return hashlib.sha256(text.encode()).digest()

    return key
