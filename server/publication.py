"""The roster that the root signs: drafted here, signed where its key is kept, published here.

What is signed is a picture of ``roster.json``: the sites and their keys that stand, and the serial
numbers that were revoked and have not expired. Admission itself stays with ``roster.json``, which
changes at once; the signed picture tells the sites whom the holder of the root's key knows.

Not covered: what sites do with it (client/trust.py, client/policy.py).
"""

import datetime as dt
import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from common import pki
from common.config import Name, Section, Sha256, Whole, parse
from common.errors import InvalidInput, Refusal
from common.files import exists, read_file, write_file
from common.signed import MAX_DOCUMENT_BYTES, Pem, Serial, SignedRoster, read, sign, verify
from common.strict_json import read_json
from server.authority import read_authorities
from server.config import load_server_config
from server.enrolment import ROSTER_FILE
from server.notices import ROSTER_FILE as SIGNED_FILE
from server.roster import Roster


class Draft(Section):
    """What the holder of a root's key is asked to sign; ``roots`` are those whose key may."""

    veiltune_roster_draft: Literal[1] = 1
    federation: Name
    sequence: Whole = Field(ge=1)
    sites: dict[Name, tuple[Sha256, ...]]
    denied: tuple[Serial, ...] = ()
    roots: Pem

    def to_bytes(self) -> bytes:
        """JSON to read and to carry."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()


def draft(home: Path, *, now: dt.datetime | None = None) -> Draft:
    """What stands now, with a number above any published before.

    It follows the clock, so it is above those that a server forgot which was restored from a
    backup; and above the one published last, whatever the clock says.

    Raises:
        InvalidInput: no server in ``home``, or a file of it is not what it must be.
    """
    moment, last = now or dt.datetime.now(dt.UTC), published(home)
    sites: dict[str, tuple[str, ...]] = {}
    denied = []
    for site, entries in Roster(home / ROSTER_FILE).sites().items():
        if keys := sorted({e.key_sha256 for e in entries if e.stands(moment)}):
            sites[site] = tuple(keys)
        denied += [e.serial for e in entries if e.revoked and e.not_after >= moment]
    return Draft(
        federation=load_server_config(home).name,
        sequence=max(int(moment.timestamp()), last.sequence + 1 if last else 1),
        sites=sites,
        denied=tuple(sorted(denied)),
        roots=read_authorities(home).roots.decode("ascii"),
    )


def read_draft(path: Path) -> Draft:
    """Read what ``Draft.to_bytes`` wrote.

    Raises:
        InvalidInput: unreadable, too large, or no draft.
    """
    content = read_json(path, max_bytes=MAX_DOCUMENT_BYTES)
    if not isinstance(content, dict):
        raise InvalidInput(f"{path.name} must be a draft (a JSON object), got another value")
    return parse(Draft, content, path.name)


def sign_draft(found: Draft, key: bytes, *, now: dt.datetime | None = None) -> bytes:
    """The signed roster; ``key`` (PEM) must be that of one of the draft's roots.

    Raises:
        InvalidInput: it is no key, or another's.
    """
    root = root_of(found.roots.encode(), key)
    document = SignedRoster(
        root=pki.fingerprint(root.certificate),
        federation=found.federation,
        sequence=found.sequence,
        signed_at=(now or dt.datetime.now(dt.UTC)).replace(microsecond=0),
        sites=found.sites,
        denied=found.denied,
    )
    return sign(document, root)


def root_of(roots: bytes, key: bytes) -> pki.Credential:
    """The one of ``roots`` (PEM) that ``key`` (PEM) belongs to, with it.

    Raises:
        InvalidInput: it belongs to none.
    """
    public = pki.load_key(key).public_key()
    for root in pki.load_certificates(roots):
        if pki.leaf_key(root) == public:
            return pki.Credential(pki.to_pem(root), key)
    raise InvalidInput("signing key must be the root's, got another")


def publish(home: Path, data: bytes) -> SignedRoster:
    """Show a signed roster to the sites from now on.

    Raises:
        InvalidInput: no root of this server signed it, or its number is not above the last one's.
        StorageFailed: it could not be written; the last one is shown.
    """
    try:
        roster = verify(SignedRoster, data, read_authorities(home).roots)
    except Refusal as error:
        raise InvalidInput(str(error)) from error
    last = published(home)
    if last is not None and roster.sequence <= last.sequence:
        raise InvalidInput(
            f"roster's sequence number must be above {last.sequence}, got {roster.sequence} "
            "(sites refuse an older one: draft it again)"
        )
    write_file(home / SIGNED_FILE, data, mode=0o644)
    return roster


def published(home: Path) -> SignedRoster | None:
    """The roster that sites are shown.

    Raises:
        InvalidInput: the file is none.
    """
    path = home / SIGNED_FILE
    if not exists(path):
        return None
    try:
        return read(SignedRoster, read_file(path, max_bytes=MAX_DOCUMENT_BYTES))
    except Refusal as error:
        raise InvalidInput(f"{path.name}: {error}") from error
