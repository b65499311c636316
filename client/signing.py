"""The key that signs a site's ledger: the site's own, or one made beside the account.

A simulated site has no certificate. Its key is then ephemeral and its entries say so: nobody
vouches for whose it is.
"""

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import InvalidInput
from common.files import exists, write_file
from common.keys import load_key, new_key, read_key
from common.privacy.ledger import public_hex


@dataclass(frozen=True)
class SigningKey:
    """A private key, its public half (DER, hex), and whether it was made for the account alone."""

    private: ec.EllipticCurvePrivateKey = field(repr=False)
    is_ephemeral: bool

    @cached_property
    def public(self) -> str:
        """SubjectPublicKeyInfo (DER), hex."""
        return public_hex(self.private)


class AccountKey:
    """Finds the key when it is first needed: who only reads an account needs none.

    Args:
        account: the account's file.
        site_key: the site's private key (PEM). Where there is none, an account that is made has a
            key of its own beside it.
    """

    def __init__(self, account: Path, site_key: Path | None) -> None:
        self.beside = account.with_suffix(".key")
        self._site_key = site_key

    @cached_property
    def key(self) -> SigningKey:
        """The key; none is made.

        Raises:
            InvalidInput: it is missing or malformed, or others can read it.
        """
        if self._has_own():
            return SigningKey(load_key(read_key(self._own)), is_ephemeral=False)
        if not exists(self.beside):
            raise InvalidInput(f"ledger's key must be in {self._own}, got none")
        return SigningKey(load_key(read_key(self.beside)), is_ephemeral=True)

    def signs(self, public_key: str) -> bool:
        """Whether the key is that of ``public_key`` (DER, hex).

        If it is not, it is read again first: ``join`` and ``ledger rekey`` may have put another in
        its place while this process ran.
        """
        if self.key.public != public_key:
            self.__dict__.pop("key")
        return self.key.public == public_key

    def make(self) -> SigningKey:
        """The key that a new account begins with, made beside it where the site has none.

        Raises:
            InvalidInput: it is malformed, or others can read it.
            StorageFailed: it cannot be made.
        """
        if not self._has_own() and not exists(self.beside):
            with contextlib.suppress(InvalidInput):  # another process was first
                write_file(self.beside, new_key(), overwrite=False)
        return self.key

    @property
    def _own(self) -> Path:
        return self._site_key or self.beside

    def _has_own(self) -> bool:
        return self._site_key is not None and exists(self._site_key)
