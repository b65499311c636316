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
        site_key: the site's private key (PEM); one that is not there is made beside the account.
    """

    def __init__(self, account: Path, site_key: Path | None) -> None:
        self._beside = account.with_suffix(".key")
        self._site_key = site_key

    @cached_property
    def key(self) -> SigningKey:
        """The key.

        Raises:
            InvalidInput: it is malformed, or others can read it.
            StorageFailed: it cannot be made.
        """
        if self._site_key is not None and exists(self._site_key):
            return SigningKey(load_key(read_key(self._site_key)), is_ephemeral=False)
        if not exists(self._beside):
            with contextlib.suppress(InvalidInput):  # another process was first
                write_file(self._beside, new_key(), overwrite=False)
        return SigningKey(load_key(read_key(self._beside)), is_ephemeral=True)
