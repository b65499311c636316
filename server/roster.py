"""Which certificates the server admits: issued here, not revoked, not expired.

The root vouches for whom the operator once enrolled; the roster says who is welcome now. It is one
JSON file, replaced atomically under a lock, so that ``fl-server revoke`` and a running server share
it without talking: the server looks at the file's stamp at each check and reads it again when that
has changed. A roster that cannot be read admits nobody. Beside it lies the latest certificate of
every key that was ever admitted, for auditors (server/export.py).

Not covered: telling a connected site that it was revoked (server/link.py asks here every second).
"""

import datetime as dt
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import AwareDatetime, Field, StringConstraints

from common import pki
from common.config import Name, Section, Sha256, parse
from common.errors import InvalidInput, Refusal, StorageFailed
from common.files import exists, locked, make_folder, read_file, write_file
from common.keys import MAX_PEM_BYTES, public_key_sha256
from common.strict_json import parse_json

MAX_ROSTER_BYTES = 16 * 1024 * 1024
ISSUED = "issued"
_MOST_STANDING = 16  # certificates of one key, beside the one that asks for another
MOST_A_DAY = 6  # certificates of one key, unless the newest is due to be renewed
_DAY = dt.timedelta(days=1)

log = structlog.get_logger(__name__)

Serial = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,40}\z")]


class Issued(Section):
    """One certificate that was issued; ``serial`` in hex, ``issuer`` its authority's sha256.

    ``retired`` is when the root above it was dropped before its site had gone over.
    """

    serial: Serial
    sha256: Sha256
    key_sha256: Sha256
    issuer: Sha256 | None = None
    not_before: AwareDatetime | None = None
    not_after: AwareDatetime
    revoked: AwareDatetime | None = None
    retired: AwareDatetime | None = None

    def stands(self, now: dt.datetime) -> bool:
        """Whether it is neither revoked nor retired nor expired."""
        return self.revoked is None and self.retired is None and self.not_after >= now


class _Sites(Section):
    version: int = Field(default=1, ge=1, le=1)
    sites: dict[Name, tuple[Issued, ...]] = Field(default_factory=dict)


class Roster:
    """The roster file of one server home; safe to share between threads and processes.

    Args:
        path: ``roster.json``; absent means that no site is enrolled.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[tuple[int, int, int], _Sites] | None = None

    def sites(self) -> dict[str, tuple[Issued, ...]]:
        """Every site that was ever enrolled, with its certificates, oldest first.

        Raises:
            InvalidInput: the file is not a roster.
        """
        return dict(self._read().sites)

    def enroll(
        self, certificate: bytes, *, replace: bool = False, now: dt.datetime | None = None
    ) -> Issued:
        """Admit a site by a certificate just issued; durable when this returns.

        A certificate for the key that the site has already is a renewal, and both stand. One for a
        new key takes the place of those that stand, which are revoked, if ``replace`` says so.

        Raises:
            InvalidInput: the site has a certificate of another key that stands, and ``replace`` is
                false; or the key was revoked, or belongs to another site.
            StorageFailed: the roster could not be written; the site is not admitted.
        """
        moment = now or dt.datetime.now(dt.UTC)
        site, entry = pki.read_identity(certificate), _entry(certificate)
        with self._locked():
            content = self._read()
            _check_key(content, site, entry)
            earlier = content.sites.get(site, ())
            others = [e for e in earlier if e.stands(moment) and e.key_sha256 != entry.key_sha256]
            if others and not replace:
                raise InvalidInput(
                    f"site {site} must have no certificate of another key that stands, got one "
                    f"until {others[-1].not_after:%Y-%m-%d} (replace it to revoke that one)"
                )
            kept = tuple(_revoked(e, moment) if e in others else e for e in earlier)
            self._keep(certificate, entry)
            self._write({**content.sites, site: (*kept, entry)})
        return entry

    def renew(self, certificate: bytes, serial: int, *, now: dt.datetime | None = None) -> Issued:
        """Admit a site by a further certificate for the key it has; durable when this returns.

        Certificates of that key that have expired are forgotten, and of those that stand the ones
        that end first where there are many; never the one that asked.

        Args:
            certificate: just issued.
            serial: of the certificate that asked for it.
            now: the moment to look at.

        Raises:
            Refusal: the one that asked is not admitted now, or was for another key; or so many
                were issued for this key within a day, and the newest is not due.
            InvalidInput: the roster is none.
            StorageFailed: the roster could not be written; the new one is not admitted.
        """
        moment = now or dt.datetime.now(dt.UTC)
        site, entry = pki.read_identity(certificate), _entry(certificate)
        with self._locked():
            self.check(site, serial, now=moment)
            entries = self._read().sites[site]
            asking = _find(entries, serial)
            if asking is None or asking.key_sha256 != entry.key_sha256:
                raise Refusal(f"renewal of {site} must be for the key it has, got another")
            _check_pace(site, entries, asking, moment)
            kept = _without_stale(entries, asking, moment)
            self._keep(certificate, entry)
            self._write({**self._read().sites, site: (*kept, entry)})
        return entry

    def retire(self, issuer: str, *, now: dt.datetime | None = None) -> tuple[str, ...]:
        """Turn away every site without a certificate of ``issuer``; durable when this returns.

        Its key is not revoked: it may be enrolled again.

        Args:
            issuer: the authority (sha256, hex) below the one root that is left.
            now: the moment to look at.

        Returns:
            The sites that this turned away.

        Raises:
            InvalidInput: the roster is none.
            StorageFailed: the roster could not be written; nobody is turned away.
        """
        moment = now or dt.datetime.now(dt.UTC)
        with self._locked():
            sites = self._read().sites
            behind = {
                site: entries
                for site, entries in sites.items()
                if (stands := [e for e in entries if e.stands(moment)])
                and all(e.issuer != issuer for e in stands)
            }
            if behind:
                self._write(sites | {s: _retired(entries, moment) for s, entries in behind.items()})
        return tuple(behind)

    def certificate(self, key_sha256: str) -> bytes | None:
        """The latest certificate chain (PEM) that was issued for a key; None by earlier versions.

        Raises:
            InvalidInput: the file cannot be read.
        """
        path = self._issued(key_sha256)
        return read_file(path, max_bytes=MAX_PEM_BYTES) if exists(path) else None

    def revoke(self, site: str, *, now: dt.datetime | None = None) -> int:
        """Turn away every certificate that ``site`` has; durable when this returns.

        Returns:
            How many certificates this revoked: 0 when all were revoked before.

        Raises:
            InvalidInput: the site was never enrolled.
            StorageFailed: the roster could not be written; nothing is revoked.
        """
        moment = now or dt.datetime.now(dt.UTC)
        with self._locked():
            content = self._read()
            if site not in content.sites:
                raise InvalidInput(f"site must be enrolled, got {site[:80]!r}")
            entries = content.sites[site]
            count = sum(entry.revoked is None for entry in entries)
            if count:
                revoked = tuple(_revoked(entry, moment) for entry in entries)
                self._write({**content.sites, site: revoked})
        return count

    def check(
        self, site: str, serial: int, certificate: bytes = b"", *, now: dt.datetime | None = None
    ) -> None:
        """Return if the certificate of ``site`` with this serial number is admitted now.

        A roster put back from a backup does not know what its sites renewed since. So a certificate
        that TLS has traced to our root is put on it if it is for a key of ``site`` that stands; any
        other that it does not know is refused.

        Args:
            site: whom the certificate names.
            serial: its number.
            certificate: the chain (PEM) as TLS checked it; without it, none is added.
            now: the moment to look at.

        Raises:
            Refusal: unknown site or certificate, revoked, retired, expired, or no roster to look
                in or to write to.
        """
        moment = now or dt.datetime.now(dt.UTC)
        try:
            entries = self._read().sites.get(site)
            if entries is None:
                raise Refusal(f"site must be enrolled at this server, got {site[:80]!r}")
            if certificate and _find(entries, serial) is None:
                entries = self._add_renewed(site, certificate, moment)
        except (InvalidInput, StorageFailed) as error:
            raise Refusal(f"roster must be usable before a site is admitted: {error}") from error
        entry = _find(entries, serial)
        if entry is None:
            raise Refusal(f"certificate of {site} must be issued here, got serial {serial:x}")
        _require_standing(site, entry, moment)

    def holds_key(self, site: str, key_sha256: str, *, now: dt.datetime | None = None) -> bool:
        """Whether a certificate of ``site`` that is admitted now is for this public key."""
        try:
            entries = self._read().sites.get(site, ())
        except (InvalidInput, StorageFailed):
            return False
        moment = now or dt.datetime.now(dt.UTC)
        return any(e.key_sha256 == key_sha256 and e.stands(moment) for e in entries)

    def _add_renewed(
        self, site: str, certificate: bytes, moment: dt.datetime
    ) -> tuple[Issued, ...]:
        """The site's certificates and this one, written if it was not there and may be."""
        entry = _entry(certificate)
        with self._locked():
            content = self._read()
            entries = content.sites.get(site, ())
            if _find(entries, int(entry.serial, 16)) is None:
                _check_renewed(site, entries, entry, moment)
                entries = (*entries, entry)
                self._write({**content.sites, site: entries})
                log.info("certificate noted", site=site, serial=entry.serial)
        return entries

    def _keep(self, certificate: bytes, entry: Issued) -> None:
        """Before it is admitted: whoever takes part can be shown to have been let in."""
        path = self._issued(entry.key_sha256)
        make_folder(path.parent)
        write_file(path, certificate, mode=0o644)

    def _issued(self, key_sha256: str) -> Path:
        return self._path.parent / ISSUED / f"{key_sha256}.pem"

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self._path.with_suffix(".lock"))

    def _read(self) -> _Sites:
        """The file's content, from memory while the file is the one that was read."""
        stamp = self._stamp()
        seen = self._seen
        if stamp is None:
            return _Sites()
        if seen is not None and seen[0] == stamp:
            return seen[1]
        # Stamped before it is read: a change in between is seen at the next check.
        content = _parse(self._path)
        self._seen = (stamp, content)
        return content

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageFailed(f"roster must be readable, got: {error.strerror}") from error
        return status.st_mtime_ns, status.st_ino, status.st_size

    def _write(self, sites: dict[str, tuple[Issued, ...]]) -> None:
        data = _Sites(sites=dict(sorted(sites.items()))).model_dump(mode="json")
        write_file(self._path, (json.dumps(data, indent=1) + "\n").encode())


def _parse(path: Path) -> _Sites:
    try:
        content = parse_json(read_file(path, max_bytes=MAX_ROSTER_BYTES))
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{path.name} must be a roster in JSON, got something else") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{path.name} must be a roster (a JSON object), got another value")
    return parse(_Sites, content, path.name)


def _entry(certificate: bytes) -> Issued:
    leaf, *above = pki.load_certificates(certificate)
    return Issued(
        serial=f"{leaf.serial_number:x}",
        sha256=pki.fingerprint(leaf),
        key_sha256=public_key_sha256(pki.leaf_key(leaf)),
        issuer=pki.fingerprint(above[0]) if above else None,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def _find(entries: tuple[Issued, ...], serial: int) -> Issued | None:
    return next((e for e in entries if int(e.serial, 16) == serial), None)


def _require_standing(site: str, entry: Issued, moment: dt.datetime) -> None:
    if entry.revoked is not None:
        raise Refusal(
            f"certificate of {site} must not be revoked, got serial {entry.serial}, "
            f"revoked on {entry.revoked:%Y-%m-%d %H:%M} UTC"
        )
    if entry.retired is not None:
        raise Refusal(
            f"certificate of {site} must be of the root in force, got one of the root that was "
            f"dropped on {entry.retired:%Y-%m-%d %H:%M} UTC (the site is invited again)"
        )
    if not entry.stands(moment):
        raise Refusal(
            f"certificate of {site} must be valid today, "
            f"got one that expired on {entry.not_after:%Y-%m-%d}"
        )


def _check_renewed(
    site: str, entries: tuple[Issued, ...], entry: Issued, moment: dt.datetime
) -> None:
    """One that is not known must be for a key that is, and that was not turned away."""
    same = [e for e in entries if e.key_sha256 == entry.key_sha256]
    for revoked in (e for e in same if e.revoked is not None):
        _require_standing(site, revoked, moment)
    if not any(e.stands(moment) for e in same):
        which = "a key that has none which stands" if same else "a key that is not known"
        raise Refusal(
            f"certificate of {site} must be issued here, got serial {entry.serial} for {which} "
            "(the site is invited again, and keeps its key)"
        )
    _require_standing(site, entry, moment)


def _without_stale(
    entries: tuple[Issued, ...], asking: Issued, moment: dt.datetime
) -> tuple[Issued, ...]:
    """All but what a key that is renewed for years would pile up."""
    same = [e for e in entries if e.key_sha256 == asking.key_sha256 and e is not asking]
    ended = [e for e in same if e.revoked is None and not e.stands(moment)]
    standing = sorted((e for e in same if e.stands(moment)), key=lambda e: e.not_after)
    stale = [*ended, *standing[: max(0, len(standing) - _MOST_STANDING)]]
    return tuple(e for e in entries if e not in stale)


def _check_pace(
    site: str, entries: tuple[Issued, ...], asking: Issued, moment: dt.datetime
) -> None:
    same = [e for e in entries if e.key_sha256 == asking.key_sha256]
    recent = [e for e in same if e.not_before is not None and e.not_before > moment - _DAY]
    if len(recent) < MOST_A_DAY or _is_due(recent[-1], moment):
        return
    raise Refusal(
        f"renewals of {site} must be at most {MOST_A_DAY - 1} a day beyond those that are due, "
        f"got one more (the newest certificate stands until {recent[-1].not_after:%Y-%m-%d})"
    )


def _is_due(entry: Issued, moment: dt.datetime) -> bool:
    """Whether two thirds of its life are over, which is when sites renew."""
    start = entry.not_before or entry.not_after
    return start + (entry.not_after - start) * 2 / 3 <= moment


def _retired(entries: tuple[Issued, ...], moment: dt.datetime) -> tuple[Issued, ...]:
    return tuple(
        e.model_copy(update={"retired": moment}) if e.stands(moment) else e for e in entries
    )


def _revoked(entry: Issued, moment: dt.datetime) -> Issued:
    return entry if entry.revoked else entry.model_copy(update={"revoked": moment})


def _check_key(content: _Sites, site: str, entry: Issued) -> None:
    """A key has one owner, and does not come back once it was revoked."""
    for owner, entries in content.sites.items():
        for other in entries:
            if other.key_sha256 != entry.key_sha256:
                continue
            if owner != site:
                raise InvalidInput(f"key of site {site} must be its own, got that of {owner}")
            if other.revoked is not None:
                raise InvalidInput(
                    f"key of site {site} must be a new one, got one revoked on "
                    f"{other.revoked:%Y-%m-%d} (the site moves its pki folder away and runs init)"
                )
