"""Another certificate for the key that a site has, asked for over the link.

The key stays, because it signs the ledger and the roster of the root names it; so a renewal
replaces one file at once, and a crash leaves the old certificate or the new one. While one process
renews, another that wants to waits: each asks with what lies there then.

Not covered: another key (a new enrolment, and ``fl-client ledger rekey``); a certificate that has
expired, which the server's port does not let in.
"""

import datetime as dt

import structlog

from client.calls import call, link_config
from client.config import SiteHome
from client.identity import Identity, read_identity
from common import pki
from common.errors import InvalidInput, Refusal
from common.failpoints import reach, register
from common.files import locked, write_file
from common.keys import MAX_PEM_BYTES
from common.link import federation_pb2 as wire
from common.link.channel import RENEW

register("site.certificate-received", "site.certificate-kept")

log = structlog.get_logger(__name__)


def is_due(identity: Identity, *, now: dt.datetime | None = None) -> bool:
    """Whether two thirds of its life are over, or a newer root than its own is trusted."""
    newest = pki.load_certificates(identity.root)[0]
    try:
        pki.check_site_chain(identity.certificate, pki.to_pem(newest), now=now)
    except InvalidInput:
        return True
    return pki.renewal_time(identity.certificate) <= (now or dt.datetime.now(dt.UTC))


def renew(home: SiteHome) -> Identity:
    """Ask the server for another certificate and put it in the place of the old one.

    Raises:
        LinkDown: the server cannot be reached, does not know this call, or turned this site away.
        Refusal: what came is no certificate that this site can use.
        InvalidInput: the files of this home cannot be used.
        StorageFailed: it could not be written; the old one stands.
    """
    path = home.path(home.config.certificates.certificate)
    with locked(path.with_suffix(".lock")):
        old = read_identity(home)
        old.check()
        request = wire.RenewRequest(
            csr=pki.create_csr(home.site, old.key),
            roots=[pki.fingerprint(root) for root in pki.load_certificates(old.root)],
        )
        frame = call(link_config(home, old), RENEW, request.SerializeToString())
        new = Identity(old.site, old.root, _certificate(frame), old.key)
        _require_better(old, new)
        reach("site.certificate-received")
        write_file(path, new.certificate, mode=0o644)
        reach("site.certificate-kept")
    log.info("certificate renewed", days_left=new.days_left)
    return new


def _certificate(frame: wire.Frame) -> bytes:
    chain = frame.renewed.certificate
    if not 0 < len(chain) <= MAX_PEM_BYTES:
        raise Refusal(
            f"answer must be a certificate of at most {MAX_PEM_BYTES} bytes, got {len(chain)}"
        )
    return bytes(chain)


def _require_better(old: Identity, new: Identity) -> None:
    try:
        new.check()
        (before, *_), (after, *_) = (
            pki.load_certificates(identity.certificate) for identity in (old, new)
        )
    except InvalidInput as error:
        raise Refusal(f"renewed certificate must fit this site: {error}") from error
    if after.not_valid_after_utc < before.not_valid_after_utc:
        raise Refusal(
            "renewed certificate must end no earlier than the one before, "
            f"{before.not_valid_after_utc:%Y-%m-%d}, got {after.not_valid_after_utc:%Y-%m-%d}"
        )
