"""Who signs certificates at this server, and which roots its sites may descend from.

One root and one intermediate, in ``pki/``. While the federation goes over to another root there are
two of each: the coming ones lie in ``pki/next/`` (server/rotation.py puts them there). Then a site
that trusts the coming root is signed by its intermediate, any other by the current one.

Not covered: the server's own certificate (server/certificate.py).
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from common import pki
from common.certificates import read_certificate
from common.errors import InvalidInput
from common.files import exists

SOON_DAYS = 90  # before the intermediate's two years end, its operator is told
NEXT, NEXT_INTERMEDIATE = "next", "intermediate.next.pem"
HANDOVER_FILE, RETIREMENT_FILE = "handover.json", "retirement.json"


@dataclass(frozen=True, slots=True)
class Authority:
    """A root's certificate (PEM), and the intermediate below it that signs."""

    root: bytes
    intermediate: pki.Credential

    @property
    def root_sha256(self) -> str:
        """What sites pin and people compare."""
        return pki.fingerprint(self.root)


@dataclass(frozen=True, slots=True)
class Authorities:
    """The current authority and, while roots overlap, the coming one."""

    current: Authority
    coming: Authority | None = None

    @property
    def roots(self) -> bytes:
        """Every root that a site's certificate may lead to (PEM), the newest first."""
        return (self.coming.root if self.coming else b"") + self.current.root

    @property
    def newest(self) -> Authority:
        """The one that stays."""
        return self.coming or self.current

    def signing_for(self, roots: Collection[str]) -> Authority:
        """The one for a site that trusts these roots (sha256, hex)."""
        coming = self.coming
        return coming if coming and coming.root_sha256 in roots else self.current


def read_authorities(home: Path) -> Authorities:
    """Read ``home/pki``.

    Raises:
        InvalidInput: a file is missing or malformed, or others can read a key.
    """
    folder, coming = home / "pki", home / "pki" / NEXT
    if not exists(coming / HANDOVER_FILE):
        return Authorities(_read(folder))
    # The retirement is written last: once it stands, the change is made, whatever was cut after.
    if exists(coming / RETIREMENT_FILE):
        return Authorities(_read(coming))
    return Authorities(_read(folder), _read(coming))


def _read(folder: Path) -> Authority:
    key = pki.read_key(folder / "intermediate.key")
    certificate = read_certificate(folder / "intermediate.pem")
    if not _belongs(certificate, key) and exists(folder / NEXT_INTERMEDIATE):
        # A crash fell between the two files (server/rotation.py).
        certificate = read_certificate(folder / NEXT_INTERMEDIATE)
    if not _belongs(certificate, key):
        raise InvalidInput(
            f"{folder.name}/intermediate.key must be the certificate's in intermediate.pem, "
            "got another"
        )
    intermediate = pki.Credential(certificate, key)
    return Authority(read_certificate(folder / "root.pem"), intermediate)


def _belongs(certificate: bytes, key: bytes) -> bool:
    return pki.leaf_key(certificate) == pki.load_key(key).public_key()
