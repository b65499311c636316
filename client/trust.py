"""What the federation's root has signed, as a site takes it: another root, and who takes part.

The server only carries these documents. A roster is taken if a trusted root signed it and its
sequence number is no lower than that of the one kept here; a root, if the root before it vouches
for it; a root is dropped on the word of its successor, once this site's own certificate has moved.
Whatever else the server shows is refused, and the site takes part in nothing until it shows better.

Not covered: a server that withholds what is newer than what it shows.
"""

import datetime as dt
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from client.config import SiteHome
from common import pki
from common.certificates import UNREADABLE, read_certificate
from common.errors import InvalidInput, Refusal
from common.files import exists, read_file, write_file
from common.keys import public_key_sha256
from common.link import federation_pb2 as wire
from common.signed import MAX_DOCUMENT_BYTES, Handover, Retirement, SignedRoster, read, verify

ROSTER_FILE = "roster.signed"

log = structlog.get_logger(__name__)


def take(home: SiteHome, shown: wire.Trust, *, now: dt.datetime | None = None) -> None:
    """Take over what the server shows; a document that fails its check changes nothing.

    Raises:
        Refusal: a signature, a sequence number or a root that is not as it must be.
        InvalidInput: a file of this home is not what it must be.
        StorageFailed: the disk is full, or the like.
    """
    if shown.handover:
        take_handover(root_path(home), shown.handover, now=now)
    _take_roster(home, shown.roster)
    if shown.retirement:
        _take_retirement(home, shown.retirement, now)


def root_path(home: SiteHome) -> Path:
    """The file of the roots that this site trusts, the newest first."""
    return home.path(home.config.certificates.root)


def has_roster(home: SiteHome) -> bool:
    """Whether the root has told this site who takes part."""
    return exists(home.folder / ROSTER_FILE)


def read_roster(home: SiteHome) -> SignedRoster | None:
    """The roster that this site took last, checked when it was taken.

    Raises:
        Refusal: the file is no roster.
    """
    if not has_roster(home):
        return None
    return read(SignedRoster, read_file(home.folder / ROSTER_FILE, max_bytes=MAX_DOCUMENT_BYTES))


def own_key(home: SiteHome) -> str:
    """sha256 of the key that this site's certificate is for."""
    certificate = read_certificate(home.path(home.config.certificates.certificate))
    return public_key_sha256(pki.leaf_key(certificate))


def take_handover(path: Path, data: bytes, *, now: dt.datetime | None = None) -> None:
    """Trust the root that a root in ``path`` signed for, beside it; again is no change.

    Raises:
        Refusal: no trusted root signed it, it is no authority, or a change is under way already.
        InvalidInput: ``path`` holds no certificate.
        StorageFailed: it could not be written.
    """
    roots = read_certificate(path)
    try:
        (successor,) = pki.load_certificates(read(Handover, data).successor.encode())
    except (InvalidInput, ValueError) as error:
        raise Refusal("next root must be one certificate, got none or several") from error
    if successor in pki.load_certificates(roots):
        return
    handover = verify(Handover, data, roots)  # before anything in it is looked at closer
    _require_root(successor, now)
    if len(pki.load_certificates(roots)) > 1:
        raise Refusal("roots must change one at a time, got a third before the first retired")
    write_file(path, pki.to_pem(successor) + roots, mode=0o644)
    log.info("root trusted", sha256=pki.fingerprint(successor), by=handover.root)


def _require_root(root: x509.Certificate, now: dt.datetime | None) -> None:
    """It is a self-signed authority that is valid now."""
    try:
        root.verify_directly_issued_by(root)
        may_sign = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        pki.leaf_key(root)
    except (*UNREADABLE, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise Refusal("next root must be a self-signed authority, got no such") from error
    moment = now or dt.datetime.now(dt.UTC)
    if not may_sign or not root.not_valid_before_utc <= moment <= root.not_valid_after_utc:
        raise Refusal("next root must be an authority that is valid today, got another")


def _take_roster(home: SiteHome, data: bytes) -> None:
    kept = read_roster(home)
    if not data:
        if kept is not None:
            raise Refusal(f"server must show a roster from {kept.sequence} on, got none")
        return
    roster = verify(SignedRoster, data, read_certificate(root_path(home)))
    if kept is not None and roster.sequence < kept.sequence:
        raise Refusal(
            f"roster's sequence number must be at least {kept.sequence}, got {roster.sequence} "
            "(an older one is shown)"
        )
    if kept is not None and roster.sequence == kept.sequence and roster != kept:
        raise Refusal(f"roster {roster.sequence} must be the one kept here, got another")
    if roster == kept:
        return
    write_file(home.folder / ROSTER_FILE, data, mode=0o644)
    log.info("roster taken", sequence=roster.sequence, sites=", ".join(roster.sites))
    if own_key(home) not in roster.sites.get(home.site, ()):
        log.warning("signed roster lacks this site or its key", sequence=roster.sequence)


def _take_retirement(home: SiteHome, data: bytes, now: dt.datetime | None) -> None:
    path = root_path(home)
    roots = pki.load_certificates(read_certificate(path))
    retired = read(Retirement, data).retired
    kept = [root for root in roots if pki.fingerprint(root) != retired]
    if len(kept) == len(roots):
        return
    left = b"".join(pki.to_pem(root) for root in kept)
    # By the word of one that stays: a root does not retire itself.
    verify(Retirement, data, left or read_certificate(path))
    if not left:
        raise Refusal("last root must not be retired, got a retirement of it")
    try:
        certificate = read_certificate(home.path(home.config.certificates.certificate))
        pki.check_site_chain(certificate, left, now=now)
    except InvalidInput:
        log.warning("root kept until this site's certificate is renewed", sha256=retired)
        return
    write_file(path, left, mode=0o644)
    log.info("root retired", sha256=retired)
