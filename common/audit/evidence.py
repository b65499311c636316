"""A job's evidence as one file: what an auditor needs to check every epsilon without a site.

The file is a ZIP that has one form only: members stored and sorted, dated 1980, nothing beside
them. A reader makes it anew from the files that it found and wants the same bytes, so neither a
trick of the format nor a byte that nobody reads can pass. The manifest names every file by hash and
is signed by the server's key, whose chain of certificates it names too; nothing else is parsed
before those hold.

Not covered: whose root the chain leads to, and whether what is said is true (common/audit/
verify.py); what the documents say.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Final, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field, StringConstraints

from common import pki
from common.config import NAME_PATTERN, VERSION_PATTERN, Section, Sha256, parse
from common.errors import InvalidInput, Refusal
from common.job import Hex64, SignedJob, parse_signed_job
from common.keys import MAX_PEM_BYTES
from common.privacy.charge import SignedEntry
from common.privacy.entries import Stamp
from common.receipt import (
    RoundReceipt,
    SignedEnding,
    SignedReceipt,
    read_ending,
    read_receipt,
    to_bytes,
)
from common.result import MAX_RESULT_BYTES, Result, to_json
from common.signed import Hex, Pem
from common.stored_zip import MOST_MEMBERS, is_plain, pack, unpack
from common.strict_json import parse_json

MAX_BUNDLE_BYTES: Final = 256 * 1024 * 1024
_MAX_MANIFEST_BYTES: Final = 32 * 1024 * 1024
MANIFEST, SEAL, JOB, RESULT = "manifest.json", "manifest.sig", "job.json", "result.json"
ROSTER: Final = "roster.json"
CERTIFICATE, ENDING = "certificate.pem", "ending.json"
DOCUMENTS: Final = "documents/"
SEAL_DOMAIN: Final = b"veiltune evidence v1\n"
# What is called otherwise is no document of a job: a certificate cannot hide behind a name.
_DOCUMENT = (
    r"(?:index\.(?:html|pdf)|model-card\.md|(?:receipts|refusals|policies)\.html|sbom\.cdx\.json"
    rf"|(?:sites/{NAME_PATTERN}/)?certificate\.(?:json|html|pdf)"
    rf"|sites/{NAME_PATTERN}/data-card\.(?:json|html))"
)
_FILE = re.compile(
    rf"{re.escape(JOB)}|{re.escape(RESULT)}|{re.escape(ROSTER)}|rounds/\d{{5,6}}\.json"
    rf"|sites/{NAME_PATTERN}/(?:certificate\.pem|ending\.json)|{DOCUMENTS}{_DOCUMENT}"
)
Kind = Literal["federation", "SIMULATION"]


@dataclass(frozen=True)
class Evidence:
    """The parsed content of a bundle, without its documents.

    Attributes:
        job: the manifest that the operator signed.
        receipts: of every closed round, 1 first, and after them that of the job's counts.
        certificates: each site's certificates (PEM), for every key that signed a charge of it: a
            leaf, then its intermediate, and so on.
        endings: each site's last word on the job, where the site was there when it ended.
        result: what the job claims.
        is_simulation: whether somebody can repeat the noise, so that nothing is promised.
        made_at: when the bundle was made, as 2026-11-28T01:00:00Z.
        software: the version that made it.
        roster: who takes part, as the root signed it for the sites; empty where it signed none.
    """

    job: SignedJob
    receipts: tuple[SignedReceipt, ...]
    certificates: Mapping[str, bytes]
    result: Result
    is_simulation: bool
    made_at: str
    software: str
    endings: Mapping[str, SignedEnding] = field(default_factory=dict)
    roster: bytes = b""

    @cached_property
    def rounds(self) -> tuple[SignedReceipt, ...]:
        """The receipts of rounds alone."""
        last = self.job.job.training.rounds
        return tuple(signed for signed in self.receipts if signed.receipt.round <= last)

    @cached_property
    def counting(self) -> RoundReceipt | None:
        """The receipt of the counts, where the job has any."""
        job = self.job.job
        numbered = (s.receipt for s in self.receipts if s.receipt.round == job.metrics_round)
        return None if job.metrics is None else next(numbered, None)

    @cached_property
    def twins(self) -> Mapping[str, str]:
        """Sites that show what another shows of its ledger, with that other.

        Entries are salted and keys are made where they stay, so no two ledgers have a key, a first
        entry or the root of a head in common.
        """
        owners, found = dict[str, str](), dict[str, str]()
        for site, mark in self._marks():
            other = owners.setdefault(mark, site)
            if other != site:
                found |= {site: other, other: site}
        return found

    def _marks(self) -> Iterator[tuple[str, str]]:
        """(site, what only one ledger can have)."""
        shown: list[tuple[str, SignedEntry]] = list(self.endings.items())
        for signed in self.receipts:
            shown += signed.receipt.charges.items()
            for site, head in signed.receipt.heads.items():
                yield from ((site, head.root), (site, head.public_key))
        for site, entry in shown:
            yield from ((site, entry.head.root), (site, entry.head.public_key))
            yield from ((site, row.hash) for row in entry.hand_overs if row.seq == 0)


class Manifest(Section):
    """What a bundle is and holds; ``chain_sha256`` is of the chain (PEM) of who signed it."""

    format: Literal["veiltune-evidence"] = "veiltune-evidence"
    version: Literal[1] = 1
    kind: Kind
    job_sha256: Sha256
    operator: Hex64
    made_at: Stamp
    software: Annotated[
        str, StringConstraints(pattern=rf"^veiltune (?:unknown|{VERSION_PATTERN})\z")
    ]
    chain_sha256: Sha256
    files: dict[str, Sha256] = Field(max_length=MOST_MEMBERS)


class Seal(Section):
    """ECDSA P-256 over the manifest's bytes; ``chain`` (PEM): the server's leaf, intermediate."""

    chain: Pem
    signature: Hex


@dataclass(frozen=True)
class Bundle:
    """A bundle whose container is sound; of its content nothing was believed yet."""

    manifest: Manifest
    seal: Seal
    files: Mapping[str, bytes]

    @cached_property
    def documents(self) -> dict[str, bytes]:
        """The documents, by their names below ``documents/``."""
        named = {n: d for n, d in self.files.items() if n.startswith(DOCUMENTS)}
        return {name.removeprefix(DOCUMENTS): data for name, data in named.items()}


def write_bundle(
    evidence: Evidence, documents: Mapping[str, bytes], server: pki.Credential
) -> bytes:
    """The bundle's bytes, the same whenever content and signature are.

    Args:
        evidence: what it is about.
        documents: by their names below ``documents/``.
        server: the key that signs, with its chain.

    Raises:
        InvalidInput: a file of another name than a bundle has, or the key is not the chain's.
    """
    files = _files(evidence) | {DOCUMENTS + name: data for name, data in documents.items()}
    for name in files:
        _require_name(name)
    manifest = Manifest(
        kind="SIMULATION" if evidence.is_simulation else "federation",
        job_sha256=evidence.job.job.sha256,
        operator=evidence.job.signer,
        made_at=evidence.made_at,
        software=evidence.software,
        chain_sha256=hashlib.sha256(server.certificate).hexdigest(),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    said = to_bytes(manifest)
    return pack({**files, MANIFEST: said, SEAL: to_bytes(seal(said, server))})


def seal(manifest: bytes, server: pki.Credential) -> Seal:
    """The server's word for a manifest's bytes.

    Raises:
        InvalidInput: the key is not that of the chain's leaf.
    """
    key = pki.load_key(server.key)
    if key.public_key() != pki.leaf_key(server.certificate):
        raise InvalidInput("server key must be that of its certificate, got another")
    signature = key.sign(SEAL_DOMAIN + manifest, ec.ECDSA(hashes.SHA256()))
    return Seal(chain=server.certificate.decode("ascii"), signature=signature.hex())


def open_bundle(data: bytes) -> Bundle:
    """Read a bundle's container, manifest and seal; no signature and no hash is checked.

    Raises:
        InvalidInput: it is no bundle.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise InvalidInput(f"bundle must be at most {MAX_BUNDLE_BYTES} bytes, got {len(data)}")
    files = unpack(data, "bundle")
    if missing := {MANIFEST, SEAL} - set(files):
        raise InvalidInput(f"bundle must have a {min(missing)}, got none")
    said, signature = files.pop(MANIFEST), files.pop(SEAL)
    if len(said) > _MAX_MANIFEST_BYTES or len(signature) > 2 * MAX_PEM_BYTES:
        raise InvalidInput(f"{MANIFEST} and {SEAL} must be of a usual size, got too large a one")
    for name in files:
        _require_name(name)
    return Bundle(_canonical(Manifest, said, MANIFEST), _canonical(Seal, signature, SEAL), files)


def require_sealed(bundle: Bundle) -> None:
    """Check the manifest's signature, by the chain that comes with it.

    Raises:
        Refusal: another signature, or another chain than the manifest names.
    """
    chain = bundle.seal.chain.encode("ascii")
    if hashlib.sha256(chain).hexdigest() != bundle.manifest.chain_sha256:
        raise Refusal("manifest must name the certificates beside it, got others")
    message = SEAL_DOMAIN + to_bytes(bundle.manifest)
    try:
        signature = bytes.fromhex(bundle.seal.signature)
        pki.leaf_key(chain).verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, InvalidInput) as error:
        raise Refusal("manifest must be signed by the server's key, got another") from error


def require_files(bundle: Bundle) -> None:
    """Check that the files are those that the manifest names.

    Raises:
        Refusal: one has other bytes, is missing or is not named.
    """
    named = bundle.manifest.files
    if strangers := set(bundle.files) ^ set(named):
        raise Refusal(
            f"bundle must hold the files of its manifest and no other, got {min(strangers)[:80]} "
            f"{'missing' if min(strangers) in named else 'beside them'}"
        )
    for name, data in bundle.files.items():
        if hashlib.sha256(data).hexdigest() != named[name]:
            raise Refusal(f"{name} must be as the manifest names it, got other bytes")


def read_evidence(bundle: Bundle) -> Evidence:
    """Parse the files; whose they are and what they say is not checked.

    Raises:
        InvalidInput: one of them is not what its name says, or a round's file is missing.
    """
    files, manifest = bundle.files, bundle.manifest
    try:
        job = parse_signed_job(_of(files, JOB))
        if job.to_bytes() != files[JOB]:
            raise InvalidInput(f"{JOB} must be canonical JSON, got another form")
        rounds = sorted(name for name in files if name.startswith("rounds/"))
        receipts = [_receipt(name, files[name]) for name in rounds]
        endings = {site: read_ending(data) for site, data in _of_sites(files, ENDING).items()}
    except Refusal as error:
        raise InvalidInput(str(error)) from error
    if not receipts:
        raise InvalidInput("bundle must have a receipt of every round, got none")
    certificates = _of_sites(files, CERTIFICATE)
    for pem in certificates.values():
        pki.load_certificates(pem)
    return Evidence(
        job=job,
        receipts=tuple(sorted(receipts, key=lambda signed: signed.receipt.round)),
        certificates=certificates,
        result=_result(_of(files, RESULT)),
        is_simulation=manifest.kind == "SIMULATION",
        made_at=manifest.made_at,
        software=manifest.software,
        endings=endings,
        roster=files.get(ROSTER, b""),
    )


def _of_sites(files: Mapping[str, bytes], kind: str) -> dict[str, bytes]:
    """Site -> its file of a kind."""
    return {
        name.split("/")[1]: data
        for name, data in files.items()
        if name.startswith("sites/") and name.endswith(f"/{kind}")
    }


def _files(evidence: Evidence) -> dict[str, bytes]:
    """All but manifest and documents."""
    rounds = {_round_name(s.receipt.round): to_bytes(s) for s in evidence.receipts}
    sites = {f"sites/{site}/{CERTIFICATE}": pem for site, pem in evidence.certificates.items()}
    ends = {f"sites/{site}/{ENDING}": to_bytes(said) for site, said in evidence.endings.items()}
    if len(rounds) != len(evidence.receipts):
        raise InvalidInput("receipts must be one for each round, got two of one")
    result = to_json(evidence.result).encode()
    if evidence.roster:
        sites[ROSTER] = evidence.roster
    return {**rounds, **sites, **ends, JOB: evidence.job.to_bytes(), RESULT: result}


def _round_name(number: int) -> str:
    return f"rounds/{number:05}.json"


def _receipt(name: str, data: bytes) -> SignedReceipt:
    signed = read_receipt(data)
    if name != _round_name(signed.receipt.round):
        raise InvalidInput(f"{name} must be of that round, got round {signed.receipt.round}")
    pki.load_certificates(signed.chain.encode("ascii"))
    return signed


def _result(data: bytes) -> Result:
    if len(data) > MAX_RESULT_BYTES:
        raise InvalidInput(f"{RESULT} must be at most {MAX_RESULT_BYTES} bytes, got {len(data)}")
    result = parse(Result, _table(data, RESULT), RESULT)
    if to_json(result).encode() != data:
        raise InvalidInput(f"{RESULT} must be as it was written, got another form")
    return result


def _of(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise InvalidInput(f"bundle must have a {name}, got none")
    return files[name]


Kept = TypeVar("Kept", bound=Section)


def _canonical(kind: type[Kept], data: bytes, name: str) -> Kept:
    found = parse(kind, _table(data, name), name)
    if to_bytes(found) != data:
        raise InvalidInput(f"{name} must be canonical JSON, got another form")
    return found


def _table(data: bytes, name: str) -> dict[str, object]:
    try:
        content = parse_json(data)
    except ValueError as error:
        raise InvalidInput(f"{name} must be JSON, got something else") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{name} must be a JSON object, got another value")
    return content


def _require_name(name: str) -> None:
    if not is_plain(name) or not _FILE.fullmatch(name):
        raise InvalidInput(f"file in a bundle must be one of its kinds, got {name[:80]!r}")
