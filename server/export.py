"""``fl-server export``: a finished job's evidence in one file, or a refusal.

Before anything is written, every claim of the bundle is checked as an auditor would, under this
server's own root; and no audit that was handed in may contradict the ledgers.

Not covered: what the documents say (server/documents).
"""

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import pki
from common.audit.certificate import Audit
from common.audit.claims import Claim
from common.audit.evidence import Evidence, write_bundle
from common.audit.report import AuditReport, read_report
from common.audit.verify import verify
from common.certificates import read_certificate
from common.cli import installed_version
from common.errors import InvalidInput, Refusal
from common.files import exists, write_file
from common.receipt import SignedEnding, SignedReceipt
from common.result import Result, read_result
from server.authority import read_authorities
from server.checkpoint import Checkpoints
from server.config import load_server_config
from server.documents import write_documents
from server.enrolment import ROSTER_FILE
from server.home import require_home
from server.roster import Roster

OUTCOMES = "jobs"


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle that was written."""

    file: Path
    sha256: str
    size: int
    claims: tuple[Claim, ...]
    root_sha256: str


def export(home: Path, job: str, file: Path, reports: Sequence[Path] = ()) -> Exported:
    """Write the evidence of a finished job.

    Args:
        home: the server's, which may be running.
        job: its name, or the first characters of its id.
        file: where to; never over another.
        reports: of audits (common/audit/report.py).

    Raises:
        InvalidInput: no such job, none that ended well, or ``file`` is there.
        Refusal: a claim fails, or an audit contradicts the ledgers; nothing is written.
        StorageFailed: the disk refused.
    """
    require_home(home)
    if exists(file):
        raise InvalidInput(f"{file} must not exist yet, got a file there")
    evidence, roots = read_evidence(home, job), read_authorities(home).roots
    server = pki.Credential(
        read_certificate(home / "pki" / "server.pem"), pki.read_key(home / "pki" / "server.key")
    )
    # Before any document is made from it: those take its claims as they are.
    require_sound(write_bundle(evidence, {}, server), roots)
    audits = [_checked(read_report(path), evidence.result) for path in reports]
    data = write_bundle(evidence, write_documents(evidence, audits), server)
    claims = require_sound(data, roots)
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
        made_at=f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        software=f"veiltune {installed_version()}",
    )


def require_sound(data: bytes, roots: bytes) -> tuple[Claim, ...]:
    """Every claim of a bundle, none of which fails.

    Raises:
        Refusal: one does; all that do are named.
    """
    report = verify(data, roots)
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


def _checked(report: AuditReport, result: Result) -> Audit:
    """A report that is of this job and does not contradict it.

    Raises:
        Refusal: it is another's, of private records, or its bound is above what was charged.
    """
    report.require_public()
    if report.job_sha256 != result.job_sha256:
        raise Refusal(f"audit report must be of this job, got {report.job_sha256[:16]}")
    spent = {site.name: site.epsilon for site in result.sites}
    claimed = spent.get(report.site)
    if report.site not in spent or claimed is None:
        raise Refusal(f"audit report must be of a site with an epsilon here, got {report.site}")
    if report.lower_bound > claimed or report.verdict == "refuted":
        raise Refusal(
            f"audit {report.name} must be consistent with epsilon {claimed:.4g} of {report.site}, "
            f"got a lower bound of {report.lower_bound:.4g}: the claim is refuted"
        )
    return Audit(
        name=report.name,
        lower_bound=report.lower_bound,
        significance=report.significance,
        epsilon=report.epsilon,
        verdict=report.verdict,
    )


def _root(roots: bytes) -> str:
    return pki.fingerprint(roots)
