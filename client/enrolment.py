"""Setting up a site's identity: a key that never leaves, and the certificate for it.

``install`` believes a bundle only as far as it fits: the certificate must be for this site and for
the key that lies here, and lead to the bundle's root. A root that was installed before is not
replaced by another's.

Not covered: whether the first bundle is the operator's. Its fingerprints are returned so that
people can compare them by another way than the one the file came by.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from common import pki
from common.bundle import Bundle, read_bundle
from common.certificates import read_certificate
from common.config import check_name
from common.errors import InvalidInput, Refusal
from common.files import exists, make_folder, read_file, write_file
from common.keys import MAX_PEM_BYTES, public_key_sha256
from common.signed import Handover, verify

CONFIG_FILE = "site.toml"

_SITE_TOML = """\
# This file is yours: the site decides here what it takes part in. Nothing ever overwrites it.
# It is read when the site starts: after a change, start the site again.

site = "{site}"
server = "{server}"

[certificates]            # paths are relative to this folder
root = "pki/root.pem"
certificate = "pki/site.pem"
key = "pki/site.key"

[policy]                  # a job beyond these is refused before any record is read
allowed_signers = ["{operator}"]
allow_no_privacy = false  # true: this site also runs jobs without differential privacy
approval = "automatic"    # "person": a job waits until somebody here runs 'approve'
# The limits over the whole life of this site's data. They go into the ledger with its first entry,
# and site.toml cannot change them any more.
max_epsilon = {max_epsilon!r}
max_delta = {max_delta!r}
lifetime = "rdp-filter"   # holds for jobs chosen after seeing earlier results; "pld-schedule" is
# schedule = []           # tighter, for jobs named here beforehand by their sha256, and no others
# required_unit = "patient_id"  # whose privacy all of it is about; "record": each row's. Without
#                         # it, the first job's unit is every later job's too.
# Limits on each job:
# max_job_epsilon = 3.0   # by default max_epsilon, and so for delta
# max_job_delta = 1e-6
# min_population = 100    # units that the job declares for this site
# min_noise_multiplier = 0.5
# allowed_bases = []      # model.sha256; empty: any
# allowed_tasks = []      # empty: any
# allowed_releases = ["update"]  # "metrics" too: counts with noise, where a job asks for them
# Estimates, measured on public tokens when a job is accepted; a round under way is not stopped:
# max_memory_gb = 16.0    # of the whole process
# max_gpu_memory_gb = 40.0
# max_minutes = 240.0     # of computing, over the whole job

# One section for each data set that jobs may name. Remove the '#' and fill in your columns.
#
# [data.discharge-notes]  # the name that a job asks for
# path = "notes.csv"      # CSV or JSON lines, also .gz; relative to this folder
# text = "text"           # the column that holds the text
# label = "label"         # the column that holds the label
# unit = ""               # e.g. "patient_id": whose records belong together
# unit_name = "patient"   # what jobs call that unit, if not by the column's name
# group = ""              # e.g. "ward"; used by simulations alone

# [models]                # where a job's base model lies on this machine, if not in the cache
# "organisation/model" = "/srv/models/model"

[runtime]
device = "auto"           # "auto", "cpu" or "cuda"
threads = 0               # 0: as many as the machine has
"""


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """A signing request, ready to be sent. ``is_new``: made now rather than found."""

    site: str
    csr: Path
    key_sha256: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class InstalledSite:
    """What ``install`` put in place. ``is_new``: ``site.toml`` was written rather than kept."""

    site: str
    server: str
    operator: str
    root_sha256: str
    certificate_sha256: str
    days_left: int
    is_new: bool


def init_site(home: Path, site: str) -> SiteRequest:
    """Make the site's key (mode 0600) in ``home/pki`` and its signing request, ``<SITE>.csr``.

    A key that is there is kept, and so is its request; a lost request is made anew from the key.

    Raises:
        InvalidInput: ``site`` is no name, or the home belongs to another site.
        StorageFailed: the disk is full, or the like.
    """
    check_name("site", site)
    key_path, csr_path = home / "pki" / "site.key", home / f"{site}.csr"
    is_new = not exists(key_path)
    if is_new:
        make_folder(home / "pki")
        key, csr = pki.new_site_key_and_csr(site)
        write_file(key_path, key, overwrite=False)
        write_file(csr_path, csr, mode=0o644)
    else:
        _refuse_another(home, site)
    key = pki.read_key(key_path)
    if not exists(csr_path):
        write_file(csr_path, pki.create_csr(site, key), mode=0o644)
    owner, public_key = pki.read_csr(read_file(csr_path, max_bytes=MAX_PEM_BYTES))
    if owner != site:
        raise InvalidInput(f"home of site {site} must be its own, got that of {owner} in {home}")
    if public_key != pki.load_key(key).public_key():
        raise InvalidInput(
            f"{csr_path} must be the request of the key in {key_path}, got another's "
            "(remove the request, and the next init makes it anew)"
        )
    return SiteRequest(site, csr_path, public_key_sha256(public_key), is_new)


def install(
    home: Path,
    site: str,
    bundle_path: Path,
    *,
    max_epsilon: float = 8.0,
    max_delta: float = 1e-5,
    now: dt.datetime | None = None,
) -> InstalledSite:
    """Put the operator's bundle in place: certificate, root and, if absent, ``site.toml``.

    Raises:
        InvalidInput: a bundle for another site or another key, of another root than the one
            installed, expired, or malformed; or a policy limit out of its range.
        StorageFailed: the disk is full, or the like.
    """
    check_limits(max_epsilon, max_delta)
    return install_bundle(
        home, site, read_bundle(bundle_path), max_epsilon=max_epsilon, max_delta=max_delta, now=now
    )


def install_bundle(
    home: Path,
    site: str,
    bundle: Bundle,
    *,
    max_epsilon: float,
    max_delta: float,
    pinned: str = "",
    now: dt.datetime | None = None,
) -> InstalledSite:
    """As ``install``, for a bundle at hand; ``pinned`` is the root (sha256) that a token named."""
    certificate, root = _checked(home, check_name("site", site), bundle, now)
    compared = _check_roots(home / "pki" / "root.pem", bundle, pinned)
    write_file(home / "pki" / "root.pem", root, mode=0o644)
    write_file(home / "pki" / "site.pem", certificate, mode=0o644)
    is_new = not exists(home / CONFIG_FILE)
    if is_new:
        text = _SITE_TOML.format(
            site=site,
            server=bundle.server,
            operator=bundle.operator,
            max_epsilon=float(max_epsilon),
            max_delta=float(max_delta),
        )
        write_file(home / CONFIG_FILE, text.encode(), overwrite=False)
    return InstalledSite(
        site=site,
        server=bundle.server,
        operator=bundle.operator,
        root_sha256=compared,
        certificate_sha256=pki.fingerprint(certificate),
        days_left=pki.days_left(certificate, now=now),
        is_new=is_new,
    )


def _refuse_another(home: Path, site: str) -> None:
    """A key is one site's: whose it is, its request and its certificate say."""
    owners = {path.stem for path in home.glob("*.csr")}
    certificate = home / "pki" / "site.pem"
    if exists(certificate):
        owners.add(pki.read_identity(read_certificate(certificate)))
    if others := sorted(owners - {site}):
        raise InvalidInput(
            f"home of site {site} must be its own, got that of {others[0]} in {home}"
        )


def _checked(home: Path, site: str, bundle: Bundle, now: dt.datetime | None) -> tuple[bytes, bytes]:
    """The bundle's certificate chain and roots, once they fit this home's site and key."""
    certificate, root = bundle.certificate.encode(), bundle.root.encode()
    owner = pki.check_site_chain(certificate, root, now=now)
    if bundle.site != site or owner != site:
        raise InvalidInput(f"bundle must be for site {site}, got one for {owner}")
    key_path = home / "pki" / "site.key"
    if not exists(key_path):
        raise InvalidInput(f"site {site} must have a key before a bundle, got none in {key_path}")
    if pki.leaf_key(certificate) != pki.load_key(pki.read_key(key_path)).public_key():
        raise InvalidInput(
            f"bundle must hold a certificate for the key in {key_path}, got one for another key"
        )
    return certificate, root


def _check_roots(known: Path, bundle: Bundle, pinned: str) -> str:
    """The root (sha256) by whose word all of the bundle's are trusted; it is what people compare.

    It is one that is installed here or that a token named; of a first bundle by hand, the only one,
    or the one that signed for the other.
    """
    roots = pki.load_certificates(bundle.root.encode())
    if len(roots) > 2:
        raise InvalidInput(f"bundle must hold one root, or two that overlap, got {len(roots)}")
    if exists(known):
        trusted, whose = pki.load_certificates(read_certificate(known)), f"installed in {known}"
    elif pinned:
        trusted, whose = [one for one in roots if pki.fingerprint(one) == pinned], "of the token"
    else:
        trusted, whose = _vouching(roots, bundle), "that signed for the other"
    if strangers := set(roots) - set(trusted) - _vouched(trusted, bundle):
        raise InvalidInput(
            f"bundle must be of the root {whose}, "
            f"got another (sha256 {pki.fingerprint(strangers.pop())[:16]}...)"
        )
    return pki.fingerprint(trusted[0])


def _vouching(roots: list[x509.Certificate], bundle: Bundle) -> list[x509.Certificate]:
    """Of two roots, the one that signed for the other; an only one as it is."""
    if len(roots) == 1:
        return roots
    return [one for one in roots if not set(roots) - {one} - _vouched([one], bundle)]


def _vouched(trusted: list[x509.Certificate], bundle: Bundle) -> set[x509.Certificate]:
    """The root that one of ``trusted`` signed for, if the bundle shows that."""
    if bundle.handover is None or not trusted:
        return set()
    pem = b"".join(pki.to_pem(one) for one in trusted)
    try:
        handover = verify(Handover, bundle.handover.encode(), pem)
        return set(pki.load_certificates(handover.successor.encode()))
    except Refusal:
        return set()


def check_limits(max_epsilon: float, max_delta: float) -> None:
    """Check what a new ``site.toml`` would say.

    Raises:
        InvalidInput: one is out of its range.
    """
    if not 0 < max_epsilon <= 1000:
        raise InvalidInput(f"max_epsilon must be in (0, 1000], got {max_epsilon}")
    if not 0 < max_delta < 1:
        raise InvalidInput(f"max_delta must be in (0, 1), got {max_delta}")
