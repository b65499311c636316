"""A federation's certificates for one machine: what ``--grid link`` and the benchmarks run with.

The keys are made for the run and thrown away with its folder. Not covered: a real roll-out, where a
site's key never leaves the site (client/enrolment.py).
"""

from dataclasses import dataclass
from pathlib import Path

from client.session import LinkConfig
from common import pki
from common.link.channel import Credentials
from server.roster import Roster

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Loopback:
    """Authorities, a server's certificate and a roster."""

    root: pki.Credential
    intermediate: pki.Credential
    server: pki.Credential
    roster: Roster

    @property
    def credentials(self) -> Credentials:
        """The server's end."""
        return Credentials(self.root.certificate, self.server.certificate, self.server.key)

    def enroll(self, site: str, port: int) -> LinkConfig:
        """Issue a certificate to ``site`` and put it on the roster."""
        key, csr = pki.new_site_key_and_csr(site)
        chain = pki.issue_site(csr, self.intermediate)
        self.roster.enroll(chain)
        return LinkConfig(f"{HOST}:{port}", self.root.certificate, chain, key, site)


def make_loopback(folder: Path, name: str = "loopback") -> Loopback:
    """New authorities; the roster's file goes into ``folder``."""
    root = pki.create_root(name)
    intermediate = pki.create_intermediate(root)
    server = pki.issue_server(intermediate, [HOST, "localhost"])
    return Loopback(root, intermediate, server, Roster(folder / "roster.json"))
