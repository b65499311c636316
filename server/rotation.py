"""Going over to another root, with a time in which both are accepted; and to another intermediate.

    begin   a new root and its intermediate in ``pki/next``; the old root signs a handover, which
            the sites fetch and check, and by which they trust the new root beside the old one and
            ask for a certificate under it
    end     once every site has one: the new root signs the old one's retirement; the server shows a
            certificate under the new root, and the sites drop the old one

Each is one durable step: the folder's name for the first, the retirement's file for the second.
What a crash leaves after it, the next start tidies.

Not covered: a root's key in other hands. Whoever has it can sign a handover too; then sites are
enrolled anew, with fingerprints compared by telephone.
"""

import datetime as dt
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from common import pki
from common.certificates import read_certificate
from common.errors import InvalidInput, StorageFailed
from common.failpoints import reach, register
from common.files import exists, make_folder, read_private, sync_folder, write_file
from common.keys import MAX_PEM_BYTES
from common.signed import Handover, Retirement, sign
from server.authority import (
    HANDOVER_FILE,
    NEXT,
    NEXT_INTERMEDIATE,
    RETIREMENT_FILE,
    read_authorities,
)
from server.config import load_server_config
from server.enrolment import ROSTER_FILE
from server.publication import draft, publish, published, root_of, sign_draft
from server.roster import Roster

register("rotation.begun", "rotation.ended", "rotation.cut-off", "rotation.half-tidied")
register("rotation.certificate-aside", "rotation.intermediate-key-kept")

_FILES = ("root.pem", "intermediate.pem", "intermediate.key", HANDOVER_FILE, RETIREMENT_FILE)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the sites have come.

    Attributes:
        current: the root in force (sha256, hex).
        coming: the one that follows it, if a change is under way.
        ready: sites with a certificate under ``coming``.
        waiting: sites without.
        cut_off: sites that the end of a change turned away.
    """

    current: str
    coming: str | None
    ready: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    cut_off: tuple[str, ...] = ()


def standing(home: Path, *, now: dt.datetime | None = None) -> Standing:
    """Which roots are accepted (sha256, hex), and which sites have gone over.

    Raises:
        InvalidInput: no server in ``home``, or a file of it is not what it must be.
    """
    load_server_config(home)
    found, moment = read_authorities(home), now or dt.datetime.now(dt.UTC)
    if found.coming is None:
        return Standing(found.current.root_sha256, None)
    issuer = pki.fingerprint(found.coming.intermediate.certificate)
    ready: list[str] = []
    waiting: list[str] = []
    for site, entries in Roster(home / ROSTER_FILE).sites().items():
        stands = [entry for entry in entries if entry.stands(moment)]
        if stands:
            has_gone_over = any(entry.issuer == issuer for entry in stands)
            (ready if has_gone_over else waiting).append(site)
    roots = found.current.root_sha256, found.coming.root_sha256
    return Standing(*roots, tuple(ready), tuple(waiting))


def begin(home: Path, key: bytes, *, now: dt.datetime | None = None) -> Standing:
    """Make another root beside the one whose ``key`` (PEM) this is.

    Raises:
        InvalidInput: no server in ``home``, another key, or a change that is under way.
        StorageFailed: nothing has begun.
    """
    config = load_server_config(home)
    tidy(home)
    found = read_authorities(home)
    if found.coming is not None:
        raise InvalidInput(
            f"roots must change one at a time, got one under way to {found.coming.root_sha256[:16]}"
        )
    old = root_of(found.current.root, key)
    new = pki.create_root(config.name, now=now)
    intermediate = pki.create_intermediate(new, now=now)
    handover = Handover(
        root=found.current.root_sha256,
        federation=config.name,
        successor=new.certificate.decode("ascii"),
    )
    files = {
        "root.pem": new.certificate,
        "root.key": new.key,
        "intermediate.pem": intermediate.certificate,
        "intermediate.key": intermediate.key,
        HANDOVER_FILE: sign(handover, old),
    }
    _write_folder(home / "pki" / NEXT, files)
    reach("rotation.begun")
    return standing(home, now=now)


def end(home: Path, key: bytes, *, force: bool = False, now: dt.datetime | None = None) -> Standing:
    """Drop the old root; ``key`` (PEM) is the new one's.

    A roster that was published is signed again, by the new root.

    Args:
        home: the server's home.
        key: of the new root.
        force: cut off the sites that have no certificate under it: sessions that stand end within
            a second, and each is enrolled again, with the key it has or another.
        now: the moment to look at.

    Raises:
        InvalidInput: no change is under way, another key, or sites that would be cut off.
        StorageFailed: a write is in doubt; called again, it goes on.
    """
    config, state = load_server_config(home), standing(home, now=now)
    coming = read_authorities(home).coming
    if coming is None:
        tidy(home)
        raise InvalidInput("a change of roots must be under way, got none")
    root = root_of(coming.root, key)
    if state.waiting and not force:
        raise InvalidInput(
            f"every site must have a certificate under the new root, got none for "
            f"{', '.join(state.waiting)} (they fetch it within minutes when they run)"
        )
    if published(home) is not None:
        found = draft(home, now=now)
        kept = {site: keys for site, keys in found.sites.items() if site not in state.waiting}
        found = found.model_copy(update={"sites": kept})
        publish(home, sign_draft(found, key, now=now))
    retirement = Retirement(root=coming.root_sha256, federation=config.name, retired=state.current)
    write_file(home / "pki" / NEXT / RETIREMENT_FILE, sign(retirement, root))
    reach("rotation.ended")
    cut_off = tidy(home, now=now)
    return replace(standing(home, now=now), cut_off=cut_off)


def renew_intermediate(home: Path, key: bytes, *, now: dt.datetime | None = None) -> int:
    """Another intermediate under the root whose ``key`` (PEM) this is.

    What the one before signed stays good until it ends.

    Returns:
        The new one's days.

    Raises:
        InvalidInput: no server in ``home``, another key, or a change of roots that is under way.
        StorageFailed: a write is in doubt; the old one or the new one signs.
    """
    load_server_config(home)
    tidy(home)
    found, folder = read_authorities(home), home / "pki"
    if found.coming is not None:
        raise InvalidInput("change of roots must be ended before, got one under way")
    new = pki.create_intermediate(root_of(found.current.root, key), now=now)
    write_file(folder / NEXT_INTERMEDIATE, new.certificate)
    reach("rotation.certificate-aside")
    write_file(folder / "intermediate.key", new.key)
    reach("rotation.intermediate-key-kept")
    write_file(folder / "intermediate.pem", new.certificate)
    (folder / NEXT_INTERMEDIATE).unlink()
    return pki.days_left(new.certificate, now=now)


def tidy(home: Path, *, now: dt.datetime | None = None) -> tuple[str, ...]:
    """Give the files of an ended change their places; until then they are read where they lie.

    Returns:
        The sites that had not gone over, and are turned away from now on.

    Raises:
        InvalidInput: the roster, or what lies there, is not what it must be.
        StorageFailed: the disk is full, or the like; called again, it goes on.
    """
    folder, coming = home / "pki", home / "pki" / NEXT
    if not exists(coming / RETIREMENT_FILE):
        return ()
    issuer = pki.fingerprint(read_certificate(coming / "intermediate.pem"))
    cut_off = Roster(home / ROSTER_FILE).retire(issuer, now=now)
    reach("rotation.cut-off")
    for name in _FILES:
        write_file(folder / name, read_private(coming / name, max_bytes=MAX_PEM_BYTES))
    reach("rotation.half-tidied")
    if exists(coming / "root.key"):
        if exists(folder / "root.key"):
            old = read_private(folder / "root.key", max_bytes=MAX_PEM_BYTES)
            write_file(folder / "root.retired.key", old)
        new = read_private(coming / "root.key", max_bytes=MAX_PEM_BYTES)
        write_file(folder / "root.key", new)
    done = folder / f".{NEXT}.{secrets.token_hex(8)}.tmp"
    try:
        coming.rename(done)
    except OSError as error:
        raise StorageFailed(f"{coming} must be moved away, but {error.strerror}") from error
    sync_folder(folder)
    shutil.rmtree(done, ignore_errors=True)
    return cut_off


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write it aside, then give it its name."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    make_folder(aside)
    try:
        for name, data in files.items():
            write_file(aside / name, data)
        try:
            aside.rename(folder)
        except OSError as error:
            raise StorageFailed(f"{folder} must be made, but {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(folder.parent)
