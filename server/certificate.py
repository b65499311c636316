"""The server's own certificate, renewed from the intermediate before it ends.

Each certificate has a key of its own. The key's file is replaced before the certificate's: where a
crash falls between the two they do not match, and the next look issues another pair.

Not covered: connections that stand; they keep the certificate that they were made with.
"""

import datetime as dt
from pathlib import Path

import structlog

from common import pki
from common.certificates import hosts_of, read_certificate
from common.errors import InvalidInput, StorageFailed
from common.failpoints import reach, register
from common.files import write_file
from common.link.channel import Credentials
from common.validity import closes_soon
from server.authority import SOON_DAYS, Authorities, read_authorities

register("server.own-key-kept", "server.own-certificate-kept")

log = structlog.get_logger(__name__)


class ServerCertificate:
    """What ``pki/`` holds for TLS; ``refresh`` keeps it usable.

    Args:
        home: the server's.

    Raises:
        InvalidInput: no certificate that can be used, and none can be issued.
    """

    def __init__(self, home: Path, *, now: dt.datetime | None = None) -> None:
        self._pki = home / "pki"
        self._home = home
        self._fault = ""
        self._warned: dt.date | None = None
        self._credentials = self._usable(now)

    @property
    def credentials(self) -> Credentials:
        """The same object for as long as nothing has changed."""
        return self._credentials

    def refresh(self, *, now: dt.datetime | None = None) -> None:
        """Renew the certificate if it is time, and take up what changed on disk.

        What fails is logged once; the credentials stay as they are. That the intermediate will end
        soon is logged once a day.
        """
        try:
            latest = self._usable(now)
        except (InvalidInput, StorageFailed) as error:
            self._say(str(error))
            return
        if latest != self._credentials:
            self._credentials = latest

    def _usable(self, now: dt.datetime | None) -> Credentials:
        moment = now or dt.datetime.now(dt.UTC)
        authorities = read_authorities(self._home)
        self._warn_of_end(authorities, moment)
        chain, key = read_certificate(self._pki / "server.pem"), self._key()
        fault = _fault(chain, key, authorities, moment)
        if fault or pki.renewal_time(chain) <= moment:
            try:
                chain, key = self._renew(chain, authorities, now)
            except (InvalidInput, StorageFailed) as error:
                if fault:
                    raise
                self._say(str(error))
        return Credentials(authorities.roots, chain, key)

    def _renew(
        self, chain: bytes, authorities: Authorities, now: dt.datetime | None
    ) -> tuple[bytes, bytes]:
        new = pki.issue_server(authorities.current.intermediate, hosts_of(chain), now=now)
        write_file(self._pki / "server.key", new.key)
        reach("server.own-key-kept")
        write_file(self._pki / "server.pem", new.certificate)
        reach("server.own-certificate-kept")
        self._fault = ""
        log.info("server certificate renewed", days=pki.days_left(new.certificate, now=now))
        return new.certificate, new.key

    def _key(self) -> bytes:
        return pki.read_key(self._pki / "server.key")

    def _warn_of_end(self, authorities: Authorities, moment: dt.datetime) -> None:
        certificate = pki.load_certificates(authorities.newest.intermediate.certificate)[0]
        if self._warned == moment.date() or not closes_soon(certificate, SOON_DAYS, moment):
            return
        self._warned = moment.date()
        log.warning(
            "intermediate ends soon",
            days=pki.days_left(certificate, now=moment),
            until=f"{certificate.not_valid_after_utc:%Y-%m-%d}",
            remedy="fl-server rotate intermediate --sign-with KEY",
        )

    def _say(self, fault: str) -> None:
        if fault != self._fault:
            log.error("server certificate not renewed", reason=fault)
        self._fault = fault


def _fault(chain: bytes, key: bytes, authorities: Authorities, moment: dt.datetime) -> str:
    """Why this pair cannot be served; empty when it can."""
    if pki.leaf_key(chain) != pki.load_key(key).public_key():
        return "key and certificate do not match"
    host = next(iter(hosts_of(chain)), "")
    try:
        pki.check_server_chain(chain, authorities.current.root, host, now=moment)
    except InvalidInput as error:
        return str(error)
    return ""
