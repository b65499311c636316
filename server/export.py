"""``fl-server export``: a finished job's evidence in one file, or a refusal.

Before anything is written, every claim of the bundle is checked as an auditor would, under this
server's own root; and no audit that was handed in may contradict the ledgers, or be of another
claim or other code than they are.

Not covered: what the documents say (common/documents).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import pki
from common.audit.adapter_file import MAX_ADAPTER_BYTES
from common.audit.certificate_parts import Audit
from common.audit.claims import Claim
from common.audit.evidence import Evidence, write_bundle
from common.audit.handed_in import require_audits
from common.audit.report import AuditReport, read_report
from common.audit.verify import verify
from common.certificates import read_certificate
from common.cli import installed_version
from common.errors import InvalidInput, Refusal
from common.files import exists, read_file, write_file
from common.receipt import SignedEnding, SignedReceipt
from common.result import read_result
from common.saved import WEIGHTS
from server.authority import read_authorities
from server.checkpoint import Checkpoints
from server.config import load_server_config
from server.documents import write_documents
from server.enrolment import ROSTER_FILE
from server.home import require_home
from server.notices import read_documents
from server.receipts import now
from server.roster import Roster
from server.unended import counted_in_full

OUTCOMES = "jobs"


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle that was written."""

    file: Path
    sha256: str
    size: int
    claims: tuple[Claim, ...]
    root_sha256: str


def export(
    home: Path, job: str, file: Path, reports: Sequence[Path] = (), *, with_roster: bool = True
) -> Exported:
    """Write the evidence of a finished job.

    Args:
        home: the server's, which may be running.
        job: its name, or the first characters of its id.
        file: where to; never over another.
        reports: of audits (common/audit/report.py).
        with_roster: whether the root's roster goes with it, where one was published. Without it
            the bundle cannot show that no site was made up, and says so.

    Raises:
        InvalidInput: no such job, none that ended well, or ``file`` is there.
        Refusal: a claim fails, or an audit contradicts the ledgers or is not of what they say;
            nothing is written.
        StorageFailed: the disk refused.
    """
    require_home(home)
    if exists(file):
        raise InvalidInput(f"{file} must not exist yet, got a file there")
    evidence, roots = counted_in_full(read_evidence(home, job)), read_authorities(home).roots
    if not with_roster:
        evidence = replace(evidence, roster=b"")
    server = pki.Credential(
        read_certificate(home / "pki" / "server.pem"), pki.read_key(home / "pki" / "server.key")
    )
    # Before any document is made from it: those take its claims as they are.
    weights = _weights(home, evidence)
    require_sound(write_bundle(evidence, {}, server), roots, weights)
    audits = [_audit(read_report(path), evidence) for path in reports]
    require_audits(audits, evidence)
    data = write_bundle(evidence, write_documents(evidence, audits), server)
    claims = require_sound(data, roots, weights)
    write_file(file, data, mode=0o644, overwrite=False)
    return Exported(file, hashlib.sha256(data).hexdigest(), len(data), claims, _root(roots))


def read_evidence(home: Path, job: str) -> Evidence:
    """What the server has recorded of a finished job.

    Raises:
        InvalidInput: it did not end well, or ran where no round is signed.
    """
    checkpoints = Checkpoints(load_server_config(home).database)
    try:
        row = checkpoints.job(job)
        receipts = checkpoints.round_receipts(row.sha256)
        endings = checkpoints.endings(row.sha256)
    finally:
        checkpoints.close()
    if row.state != "finished":
        raise InvalidInput(f"job must be finished to have evidence, got one {row.state}")
    if not receipts:
        raise InvalidInput("job must have signed rounds, got one run by an earlier version")
    result = read_result(home / OUTCOMES / row.sha256 / "result.json")
    return Evidence(
        job=row.signed,
        receipts=tuple(receipts),
        certificates=_certificates(Roster(home / ROSTER_FILE), receipts, endings),
        endings=endings,
        result=result,
        is_simulation=result.privacy.seeded,
        made_at=max(now(), receipts[-1].receipt.closed_at),
        software=f"veiltune {installed_version()}",
        roster=read_documents(home).roster,
    )


def _weights(home: Path, evidence: Evidence) -> bytes | None:
    """The adapter's file that the job left behind, while it is there."""
    path = home / OUTCOMES / evidence.result.job_sha256 / "adapter" / WEIGHTS
    return read_file(path, max_bytes=MAX_ADAPTER_BYTES) if path.is_file() else None


def require_sound(data: bytes, roots: bytes, weights: bytes | None = None) -> tuple[Claim, ...]:
    """Every claim of a bundle, with the adapter's file where it is there; none of them fails.

    Raises:
        Refusal: one does; all that do are named.
    """
    report = verify(data, roots, weights)
    if report.failed:
        told = (
            f"{c.name}{' of ' + c.subject if c.subject else ''}: {c.found}" for c in report.failed
        )
        raise Refusal(f"every claim must hold before it is exported, got {'; '.join(told)}")
    return report.claims


def _certificates(
    roster: Roster, receipts: Sequence[SignedReceipt], endings: Mapping[str, SignedEnding]
) -> dict[str, bytes]:
    """For each site, the certificates of all keys that signed a head of it."""
    keys: dict[str, dict[str, None]] = {}
    shown = [item for signed in receipts for item in signed.receipt.heads.items()]
    for site, head in [*shown, *((site, ending.head) for site, ending in endings.items())]:
        digest = hashlib.sha256(bytes.fromhex(head.public_key)).hexdigest()
        keys.setdefault(site, {})[digest] = None
    found = {}
    for site, digests in keys.items():
        pems = [roster.certificate(digest) for digest in digests]
        found[site] = b"".join(pem for pem in pems if pem is not None)
        if None in pems:
            raise InvalidInput(
                f"certificate of {site} must be kept here, got none (it was issued by an earlier "
                f"version: it will be kept once the site has renewed it)"
            )
    return found


def _audit(report: AuditReport, evidence: Evidence) -> Audit:
    """A report on this job's mechanism, as the certificate states it.

    Raises:
        Refusal: it is of another job or delta, or of private records.
    """
    report.require_public()
    delta = evidence.result.privacy.delta
    if report.job_sha256 != evidence.result.job_sha256:
        raise Refusal(f"audit report must be of this job, got {report.job_sha256[:16]}")
    if report.delta != delta:
        raise Refusal(f"audit report's delta must be {delta or 0:g}, got {report.delta:g}")
    return Audit(
        name=report.name,
        site=report.site,
        code_sha256=report.code_sha256,
        runs=report.runs,
        lower_bound=report.lower_bound,
        significance=report.significance,
        epsilon=report.epsilon,
        verdict=report.verdict,
    )


def _root(roots: bytes) -> str:
    return pki.fingerprint(roots)
