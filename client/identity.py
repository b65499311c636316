"""Who a site is on the link: its certificate, its key and the root it trusts, from its home."""

from dataclasses import dataclass, field

from client.config import SiteHome
from common import pki
from common.certificates import read_certificate
from common.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM files of ``site.toml``, read and found to belong together or not (see ``check``).

    ``root``: one or, while one follows the other, two, the newest first.
    """

    site: str
    root: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @property
    def days_left(self) -> int:
        """Whole days until the certificate expires; negative once it has."""
        return pki.days_left(self.certificate)

    def check(self) -> None:
        """Check that the server can take this identity today.

        Raises:
            InvalidInput: expired, of another root, another site's, or for another key.
        """
        owner = pki.check_site_chain(self.certificate, self.root)
        if owner != self.site:
            raise InvalidInput(
                f"site certificate must be for site {self.site}, got one for {owner}"
            )
        if pki.leaf_key(self.certificate) != pki.load_key(self.key).public_key():
            raise InvalidInput("site key must be the one of the site's certificate, got another")


def read_identity(home: SiteHome) -> Identity:
    """Read the files that ``site.toml`` names; expired ones too.

    Raises:
        InvalidInput: one is missing or malformed, or others can read the key.
    """
    paths = home.config.certificates
    return Identity(
        site=home.site,
        root=read_certificate(home.path(paths.root)),
        certificate=read_certificate(home.path(paths.certificate)),
        key=pki.read_key(home.path(paths.key)),
    )
