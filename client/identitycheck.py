"""``doctor``'s look at a site's identity: its key, its certificate, the root, and that they fit.

Not covered: what the server thinks of it (client/linkcheck.py).
"""

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from client.config import SiteHome
from common import permissions, pki, validity
from common.certificates import read_certificate
from common.diagnosis import Finding, fault, ok, unchecked
from common.errors import InvalidInput, VeiltuneError

KEY, ROOT, CERTIFICATE = "key", "root", "certificate"
CHAIN, PAIR = "certificate chain", "key and certificate"
SOON_DAYS, ROOT_SOON_DAYS = 14, 365


def key(home: SiteHome, renew: str) -> Iterator[Finding]:
    """The private key: there, this user's alone, of the right kind.

    Raises:
        InvalidInput: it is no P-256 key.
    """
    path = _path(home, KEY)
    if (wrong := permissions.key_fault(KEY, path, renew)) is not None:
        yield wrong
        return
    pki.read_key(path)
    yield ok(KEY, f"{path.parent.name}/{path.name}: ECDSA P-256, for this user alone")


def root(home: SiteHome, renew: str) -> Iterator[Finding]:
    """What is trusted: each root in its time, and its fingerprint for people to compare.

    Raises:
        InvalidInput: it is missing or no certificate.
    """
    roots = pki.load_certificates(read_certificate(_path(home, ROOT)))
    named = {f"the root {pki.fingerprint(one)[:8]}": one for one in roots}
    lines = list(validity.in_time(ROOT, named, renew, soon_days=ROOT_SOON_DAYS))
    if lines[0].mark == "ok":
        told = [
            f"{pki.fingerprint(one)}, until {one.not_valid_after_utc:%Y-%m-%d}" for one in roots
        ]
        lines = [ok(ROOT, f"sha256 {' and '.join(told)}")]
    yield from lines


def certificate(home: SiteHome, renew: str) -> Iterator[Finding]:
    """The certificate: in its time, under the root, this site's, for this key.

    Raises:
        InvalidInput: it is missing or no certificate.
    """
    pem = read_certificate(_path(home, CERTIFICATE))
    leaf, *above = pki.load_certificates(pem)
    named = {"this site's": leaf, **dict(zip(("the intermediate",), above, strict=False))}
    yield from validity.in_time(CERTIFICATE, named, renew, soon_days=SOON_DAYS)
    yield from _chain(home, pem, [leaf, *above], renew)


def _chain(
    home: SiteHome, pem: bytes, chain: list[x509.Certificate], renew: str
) -> Iterator[Finding]:
    try:
        root_pem = read_certificate(_path(home, ROOT))
    except InvalidInput:
        yield unchecked(CHAIN, "the root cannot be read", "mend the root first")
        return
    # At a moment when all have begun, so that this line is about the rest.
    starts = [one.not_valid_before_utc for one in (*chain, *pki.load_certificates(root_pem))]
    try:
        owner = pki.check_site_chain(pem, root_pem, now=max(starts))
    except InvalidInput as error:
        yield fault(CHAIN, str(error), renew)
        return
    if owner != home.site:
        words = f"the certificate is site {owner}'s, not {home.site}'s"
        yield fault(CHAIN, words, "install this site's own bundle")
        return
    yield ok(CHAIN, f"names site {owner}, and leads to the root")
    yield _pair(home, pem, renew)


def _pair(home: SiteHome, pem: bytes, renew: str) -> Finding:
    try:
        own = pki.load_key(pki.read_key(_path(home, KEY)))
    except VeiltuneError:
        return unchecked(PAIR, "the key cannot be read", "mend the key first")
    if pki.leaf_key(pem) != own.public_key():
        words = "the certificate is for another key than the one here"
        return fault(PAIR, words, f"put that key back, or: {renew}")
    return ok(PAIR, "belong together")


def _path(home: SiteHome, of: str) -> Path:
    paths = home.config.certificates
    return home.path({KEY: paths.key, ROOT: paths.root, CERTIFICATE: paths.certificate}[of])
