"""Setting up a server's identity and deciding which sites have one.

``init_server`` makes the root, the intermediate, the server's certificate and the operator's key.
The intermediate signs sites; the root's key is needed again only to renew the intermediate, so
``pki/root.key`` belongs on a medium that is kept elsewhere, and every command works without it.

Not covered: another intermediate or root (server/rotation.py), invitations (server/joining.py).
"""

import datetime as dt
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from common import pki
from common.address import split_address
from common.bundle import Bundle
from common.config import check_name, parse
from common.errors import InvalidInput, StorageFailed
from common.files import exists, make_folder, read_file, sync_folder, write_file
from common.invitation import Token
from common.keys import public_key_sha256
from server.authority import read_authorities
from server.config import CONFIG_FILE, ServerConfig, load_server_config
from server.invitations import Invitations
from server.notices import read_documents
from server.roster import Issued, Roster

MAX_CSR_BYTES = 16 * 1024
ROSTER_FILE = "roster.json"

_TOML_HEAD = """\
# Veiltune server. Read at start; certificates and keys are in pki/.
# listen: where this server listens; address: how the sites reach it, as their bundles say.
# join_listen and join_address: the same for sites that join by a token; by default the next port.
# database: any SQLAlchemy URL; a relative SQLite file is taken from this folder.

"""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What ``init_server`` made; the fingerprints are sha256 in hex, for people to compare."""

    home: Path
    address: str
    hosts: tuple[str, ...]
    root_sha256: str
    server_sha256: str
    operator: str
    root_key: Path


@dataclass(frozen=True, slots=True)
class InvitedSite:
    """What ``invite`` made; the token is nowhere else."""

    site: str
    token: Token
    expires: dt.datetime


@dataclass(frozen=True, slots=True)
class EnrolledSite:
    """What ``enroll`` issued, for both sides to compare.

    Attributes:
        key_sha256: what the site was shown when it made its request.
        sha256: of the certificate; the site is shown it, root and operator when it installs.
    """

    site: str
    bundle: Path
    serial: str
    sha256: str
    key_sha256: str
    root_sha256: str
    operator: str
    not_after: dt.datetime


def init_server(
    home: Path,
    *,
    hosts: Sequence[str],
    address: str,
    name: str = "veiltune",
    listen: str | None = None,
    now: dt.datetime | None = None,
) -> ServerIdentity:
    """Make a server's home: ``pki/``, an empty roster and ``server.toml``.

    All of ``pki/`` appears at once or not at all.

    Args:
        home: the folder; it may exist, but hold no server yet.
        hosts: further DNS names and IP addresses for the server's certificate.
        address: ``host:port`` by which sites reach it; its host is in the certificate too.
        name: what the federation is called in its certificates.
        listen: ``host:port`` to listen on; by default every interface, at the address's port.
        now: the moment from which the certificates count.

    Raises:
        InvalidInput: the home holds a server already, or an argument is malformed.
        StorageFailed: the disk is full, or the like.
    """
    _refuse_existing(home)
    host, port = split_address(address)
    config = parse(
        ServerConfig,
        {"name": name, "listen": listen or f"0.0.0.0:{port}", "address": address},
        CONFIG_FILE,
    )
    hosts = tuple(dict.fromkeys([host, *hosts]))
    files = _new_identity(name, hosts, now)
    make_folder(home)
    toml = _TOML_HEAD + tomli_w.dumps(config.model_dump(exclude_none=True))
    write_file(home / CONFIG_FILE, toml.encode(), overwrite=False)
    try:
        _write_pki(home, files)
    except StorageFailed:
        (home / CONFIG_FILE).unlink(missing_ok=True)
        raise
    return ServerIdentity(
        home=home,
        address=address,
        hosts=hosts,
        root_sha256=pki.fingerprint(files["root.pem"]),
        server_sha256=pki.fingerprint(files["server.pem"]),
        operator=pki.operator_public_hex(files["operator.key"]),
        root_key=home / "pki" / "root.key",
    )


def enroll(
    home: Path,
    csr_path: Path,
    out: Path | None = None,
    *,
    replace: bool = False,
    now: dt.datetime | None = None,
) -> EnrolledSite:
    """Issue a site's certificate and write the bundle that it installs.

    Args:
        home: the server's home.
        csr_path: the site's signing request.
        out: the bundle, or the folder for it; by default ``<SITE>.bundle`` beside the request.
        replace: revoke the site's certificate for another key, if one stands.
        now: the moment from which the certificate counts.

    Raises:
        InvalidInput: a malformed request, no server in ``home``, or an earlier certificate that
            stands and is not to be replaced.
        StorageFailed: the disk is full, or the like.
    """
    csr = read_file(csr_path, max_bytes=MAX_CSR_BYTES)
    bundle, entry = admit(home, csr, replace=replace, now=now)
    certificate, root = bundle.certificate.encode(), bundle.root.encode()
    path = out or csr_path.parent
    if path.is_dir():
        path = path / f"{bundle.site}.bundle"
    write_file(path, bundle.to_bytes(), mode=0o644)
    return EnrolledSite(
        site=bundle.site,
        bundle=path,
        serial=entry.serial,
        sha256=entry.sha256,
        key_sha256=public_key_sha256(pki.leaf_key(certificate)),
        root_sha256=pki.fingerprint(root),
        operator=bundle.operator,
        not_after=entry.not_after,
    )


def invite(
    home: Path,
    site: str,
    *,
    hours: float = 24.0,
    replace: bool = False,
    now: dt.datetime | None = None,
) -> InvitedSite:
    """Make a token by which ``site`` may enrol one key; an earlier one of the site ends.

    Args:
        home: the server's home.
        site: who is invited.
        hours: until the token expires.
        replace: revoke, when the token is used, the site's certificate for another key.
        now: the moment from which the hours count.

    Raises:
        InvalidInput: no server in ``home``, no name, hours out of range, or a certificate that
            stands and is not to be replaced.
        StorageFailed: it could not be written; nobody is invited.
    """
    config = load_server_config(home)
    root = read_authorities(home).current.root_sha256
    address, moment = config.joins_at, now or dt.datetime.now(dt.UTC)
    earlier = Roster(home / ROSTER_FILE).sites().get(check_name("site", site), ())
    if not replace and (standing := [entry for entry in earlier if entry.stands(moment)]):
        raise InvalidInput(
            f"site {site} must have no certificate that stands, got one until "
            f"{standing[-1].not_after:%Y-%m-%d} (replace it to revoke that one)"
        )
    made, secret = Invitations(home).invite(site, hours, replace=replace, now=now)
    return InvitedSite(site, Token(address, root, secret), made.expires)


def admit(
    home: Path, csr: bytes, *, replace: bool = False, now: dt.datetime | None = None
) -> tuple[Bundle, Issued]:
    """Issue a site's certificate, put it on the roster, and say what the site installs.

    Raises:
        InvalidInput: as ``enroll``.
        StorageFailed: as ``enroll``.
    """
    config = load_server_config(home)
    authorities = read_authorities(home)
    operator = read_file(home / "pki" / "operator.pub", max_bytes=1024)
    certificate = pki.issue_site(csr, authorities.newest.intermediate, now=now)
    content = {
        "site": pki.check_site_chain(certificate, authorities.roots, now=now),
        "server": config.address,
        "operator": operator.decode("ascii", "replace").strip(),
        "certificate": certificate.decode("ascii"),
        "root": authorities.roots.decode("ascii"),
        "handover": read_documents(home).handover.decode("ascii") or None,
    }
    bundle = parse(Bundle, content, "bundle")
    return bundle, Roster(home / ROSTER_FILE).enroll(certificate, replace=replace, now=now)


def revoke(home: Path, site: str, *, now: dt.datetime | None = None) -> int:
    """Turn a site away from now on, a running server's sessions included.

    Returns:
        How many certificates this revoked; 0 when all were revoked before.

    Raises:
        InvalidInput: no server in ``home``, or the site was never enrolled.
        StorageFailed: the roster could not be written; nothing is revoked.
    """
    load_server_config(home)
    # First: a token that is being used has its certificate by now, or comes too late.
    Invitations(home).cancel(check_name("site", site))
    return Roster(home / ROSTER_FILE).revoke(site, now=now)


def _refuse_existing(home: Path) -> None:
    for taken in ("pki", CONFIG_FILE):
        if exists(home / taken):
            raise InvalidInput(f"home must not hold a server yet, got {home} with {taken} in it")


def _new_identity(name: str, hosts: Sequence[str], now: dt.datetime | None) -> dict[str, bytes]:
    """Everything that ``pki/`` holds, by file name."""
    root = pki.create_root(name, now=now)
    intermediate = pki.create_intermediate(root, now=now)
    server = pki.issue_server(intermediate, hosts, now=now)
    operator_key = pki.new_operator_key()
    return {
        "root.pem": root.certificate,
        "root.key": root.key,
        "intermediate.pem": intermediate.certificate,
        "intermediate.key": intermediate.key,
        "server.pem": server.certificate,
        "server.key": server.key,
        "operator.key": operator_key,
        "operator.pub": f"{pki.operator_public_hex(operator_key)}\n".encode(),
    }


def _write_pki(home: Path, files: dict[str, bytes]) -> None:
    """Write the folder aside, then give it its name."""
    aside = home / f".pki.{secrets.token_hex(8)}.tmp"
    make_folder(aside)
    try:
        for name, data in files.items():
            write_file(aside / name, data)
        try:
            aside.rename(home / "pki")
        except OSError as error:
            raise StorageFailed(f"{home / 'pki'} must be made, but {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(home)
