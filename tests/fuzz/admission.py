"""Parsers of what decides who takes part: first contact, renewals, the root's word, a backup.

A stranger reaches the first of them, with no certificate.
"""

import datetime as dt
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from client.trust import take_handover
from common import pki
from common.bundle import Bundle
from common.config import Section
from common.link import federation_pb2 as wire
from common.link import first_contact
from common.signed import Document, Handover, Retirement, SignedRoster, sign, verify
from server import archive, desk
from server.archive import Manifest
from server.invitations import INVITATIONS_FILE, Invitations
from server.publication import Draft, read_draft
from tests.fuzz.parser import Parser, as_file, root, site

_DIGEST, _FEDERATION = "ab" * 32, "north"
_AT = dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC)


def bundle() -> Bundle:
    """What an enrolled site installs."""
    return Bundle(
        site="A",
        server="h.example:443",
        operator="cd" * 32,
        certificate=site()[0].decode(),
        root=root().certificate.decode(),
    )


def _line(kind: type[Section]) -> Callable[[bytes], object]:
    return lambda data: first_contact.parse_line(kind, data)


def _joins() -> dict[str, Parser]:
    chain, _, csr = site()
    greeting = first_contact.Greeting(chain=chain.decode(), root=root().certificate.decode())
    request = first_contact.Request(secret="5a" * 20, csr=csr.decode())
    answer = first_contact.Answer(bundle=bundle())
    return {
        "join request": Parser(_line(first_contact.Request), first_contact.to_line(request)),
        "join greeting": Parser(_line(first_contact.Greeting), first_contact.to_line(greeting)),
        "join answer": Parser(_line(first_contact.Answer), first_contact.to_line(answer)),
        "join refusal": Parser(
            _line(first_contact.Answer),
            first_contact.to_line(first_contact.Answer(refusal="no such invitation")),
        ),
    }


def _signed(document: Document) -> bytes:
    return sign(document, root())


def _handover(data: bytes) -> object:
    """As a site takes it, which looks at the next root before the signature."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "root.pem"
        path.write_bytes(root().certificate)
        take_handover(path, data)
        return path.read_bytes()


def _roots_word() -> dict[str, Parser]:
    known = root().certificate
    signer = pki.fingerprint(known)
    sites: dict[str, tuple[str, ...]] = {"A": (_DIGEST,)}
    roster = SignedRoster(
        root=signer,
        federation=_FEDERATION,
        sequence=3,
        signed_at=_AT,
        sites=sites,
        denied=("2b",),
    )
    successor = pki.create_root("next").certificate.decode()
    draft = Draft(federation=_FEDERATION, sequence=3, sites=sites, denied=(), roots=known.decode())
    return {
        "signed roster": Parser(lambda data: verify(SignedRoster, data, known), _signed(roster)),
        "handover": Parser(
            _handover,
            _signed(Handover(root=signer, federation=_FEDERATION, successor=successor)),
        ),
        "retirement": Parser(
            lambda data: verify(Retirement, data, known),
            _signed(Retirement(root=signer, federation=_FEDERATION, retired=_DIGEST)),
        ),
        "roster to be signed": Parser(as_file("roster.json", read_draft), draft.to_bytes()),
    }


def _invitations() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Invitations(Path(folder)).invite("A", 5.0)
        return (Path(folder) / INVITATIONS_FILE).read_bytes()


def _unpacked(path: Path) -> object:
    with archive.opened(path) as (packed, manifest):
        archive.unpack(packed, manifest, path.parent / "home")
    return manifest


def _backup() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, file = Path(folder) / "roster.json", Path(folder) / "b.backup"
        source.write_bytes(b"{}\n")
        with zipfile.ZipFile(file, "w") as made:
            kept = {"pki/roster.json": archive.add(made, "pki/roster.json", source)}
            archive.finish(
                made,
                Manifest(
                    software="veiltune 1",
                    made_at="2026-03-04T05:06:07Z",
                    root_sha256=_DIGEST,
                    files=kept,
                ),
            )
        return file.read_bytes()


def _manifest() -> bytes:
    kept = {"pki/server.key": {"sha256": _DIGEST, "bytes": 7}}
    content = {"software": "v", "made_at": "2026-03-04T05:06:07Z", "root_sha256": _DIGEST}
    return json.dumps({**content, "files": kept}).encode()


def admission_parsers() -> dict[str, Parser]:
    """Those of this module, by the name of what they read."""
    renewal = wire.RenewRequest(csr=site()[2], roots=[_DIGEST])
    return {
        **_joins(),
        **_roots_word(),
        "renewal": Parser(
            lambda data: pki.read_csr(desk._parsed(data).csr), renewal.SerializeToString()
        ),
        "invitations.json": Parser(
            as_file(INVITATIONS_FILE, lambda path: Invitations(path.parent).standing()),
            _invitations(),
        ),
        "backup": Parser(as_file("b.backup", _unpacked), _backup()),
        "backup's manifest": Parser(archive._manifest, _manifest()),
    }
