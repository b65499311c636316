"""What sites ask for between sessions: another certificate, and what the root has signed.

A certificate is renewed for the key and the site of the one that the caller shows, and only while
the roster admits that one: revocation ends a site's renewals as it ends its sessions.

Not covered: who the caller is (server/link.py), first contact (server/joining.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from common import pki
from common.errors import InvalidInput, Refusal, UpdateRejected
from common.failpoints import reach, register
from common.link import federation_pb2 as wire
from common.link.channel import DOCUMENTS, RENEW
from server.authority import read_authorities
from server.enrolment import MAX_CSR_BYTES
from server.notices import read_documents
from server.roster import Roster

_MOST_ROOTS = 8

register("server.certificate-issued", "server.certificate-recorded")

log = structlog.get_logger(__name__)

Answer = Callable[[str, int, bytes], bytes]


class Desk:
    """Answers by the method's name; each takes the caller's site and serial and its request."""

    def __init__(self, home: Path, roster: Roster) -> None:
        self._home = home
        self._roster = roster

    @property
    def answers(self) -> Mapping[str, Answer]:
        """For ``LinkServer``."""
        return {RENEW: self._renew, DOCUMENTS: self._documents}

    def _renew(self, site: str, serial: int, data: bytes) -> bytes:
        request = _parsed(data)
        try:
            owner, _ = pki.read_csr(request.csr)
        except InvalidInput as error:
            raise UpdateRejected(str(error)) from error
        if owner != site:
            raise Refusal(f"renewal must be for site {site}, which asks, got one for {owner}")
        authority = read_authorities(self._home).signing_for(request.roots)
        chain = pki.issue_site(request.csr, authority.intermediate)
        reach("server.certificate-issued")
        entry = self._roster.renew(chain, serial)
        reach("server.certificate-recorded")
        log.info(
            "certificate renewed",
            site=site,
            serial=entry.serial,
            until=f"{entry.not_after:%Y-%m-%d}",
        )
        renewed = wire.Renewed(certificate=chain)
        return bytes(wire.Frame(renewed=renewed).SerializeToString())

    def _documents(self, site: str, serial: int, data: bytes) -> bytes:
        del site, serial, data  # everybody reads the same
        found = read_documents(self._home)
        trust = wire.Trust(
            roster=found.roster, handover=found.handover, retirement=found.retirement
        )
        return bytes(wire.Frame(trust=trust).SerializeToString())


def _parsed(data: bytes) -> wire.RenewRequest:
    try:
        request = wire.RenewRequest.FromString(data)
    except DecodeError as error:
        raise UpdateRejected(
            f"renewal request must parse, got {len(data)} bytes that do not"
        ) from error
    if len(request.csr) > MAX_CSR_BYTES or len(request.roots) > _MOST_ROOTS:
        raise UpdateRejected(
            f"renewal request must have at most {MAX_CSR_BYTES} bytes and {_MOST_ROOTS} roots, "
            f"got {len(request.csr)} and {len(request.roots)}"
        )
    return request
