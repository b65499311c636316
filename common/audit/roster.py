"""The root's roster against the sites of a job: that nobody made a site up.

The server's intermediate key can certify any key as any site's. The roster is signed by the root's
key, which is kept elsewhere, and names each site's keys. A head of a ledger covers all entries
before it, also those that an earlier key signed; so the last head that is shown has to be under a
key that the root knows, and the keys before it are that site's own matter (charges.py beside this).

Not covered: who the people behind a key are, which the holder of the root's key knows; whether a
newer roster was withheld.
"""

import hashlib

from common import signed
from common.audit.evidence import Evidence
from common.errors import Refusal
from common.privacy.charge import HeadOf
from common.signed import SignedRoster
from common.words import counted


def check_roster(evidence: Evidence, roots: bytes) -> str:
    """Every site of the job signed its last head with a key that the root's roster names."""
    roster = signed.verify(SignedRoster, evidence.roster, roots)
    for site in evidence.job.job.sites:
        head = last_head(site, evidence)
        if head is None:
            raise Refusal(f"site {site} must have a ledger head to hold against the roster")
        key = hashlib.sha256(bytes.fromhex(head.public_key)).hexdigest()
        if key not in roster.sites.get(site, ()):
            known = "another key" if site in roster.sites else "no such site"
            raise Refusal(
                f"roster {roster.sequence} of the root must name {site}'s key {key[:16]}, "
                f"got {known} in it"
            )
    return (
        f"{counted(len(evidence.job.job.sites), 'site')} by name and key in roster "
        f"{roster.sequence}, signed by root {roster.root[:16]} on {roster.signed_at:%Y-%m-%d}"
    )


def last_head(site: str, evidence: Evidence) -> HeadOf | None:
    """The newest head of a site's ledger that the evidence shows."""
    if site in evidence.endings:
        return evidence.endings[site].head
    return evidence.receipts[-1].receipt.heads.get(site)
