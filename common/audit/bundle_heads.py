"""The ledger heads in a bundle of evidence, as a history like the one that a site keeps.

Not covered: heads of other jobs, which a site's own history has (common/audit/heads_cli.py).
"""

from collections.abc import Iterable, Iterator, Set

from common import pki
from common.audit.claims import Claim
from common.audit.evidence import Evidence
from common.audit.verify import verify
from common.errors import InvalidInput
from common.heads import Alarm, HeadRow, State
from common.job import require_site
from common.privacy.charge import HeadOf
from common.receipt import SignedReceipt


def heads_of_bundle(
    data: bytes, roots: bytes | None, site: str = ""
) -> tuple[list[HeadRow], list[Alarm]]:
    """Every head of a site, or of all, by round; and each claim of the bundle that fails.

    Args:
        data: the bundle.
        roots: the root that is trusted (PEM); None: the authorities that the bundle names.
        site: whose heads; empty for all.

    Raises:
        InvalidInput: it is no bundle, its bytes are not those that its server signed, or its job
            has no such site.
    """
    report = verify(data, roots)
    evidence, manifest = report.evidence, report.manifest
    if evidence is None or manifest is None:
        raise InvalidInput(f"file must be a sound bundle of evidence, got: {_words(report.failed)}")
    if site:
        require_site(evidence.job.job, site)
    alarms = [
        Alarm(claim.subject, manifest.job_sha256, manifest.made_at, _words([claim]))
        for claim in report.failed
        if site in ("", claim.subject) or not claim.subject
    ]
    unproven = {claim.subject for claim in report.failed if claim.name == "charges"}
    return [row for row in _rows(evidence, unproven) if site in ("", row.site)], alarms


def _rows(evidence: Evidence, unproven: Set[str]) -> Iterator[HeadRow]:
    """Each head that differs from the one before it, of all sites, round by round."""
    last: dict[str, HeadOf] = {}
    for signed in evidence.receipts:
        for site in evidence.job.job.sites:
            for head, is_charged in _shown(signed, site):
                if not head.is_same(last.get(site)):
                    is_proven = is_charged and site not in unproven
                    yield _row(site, head, signed, _state(last.get(site), head, is_proven))
                    last[site] = head


def _shown(signed: SignedReceipt, site: str) -> Iterator[tuple[HeadOf, bool]]:
    """The heads of a site in a receipt, and whether a charge's proof leads to each."""
    charge = signed.receipt.charges.get(site)
    if charge is not None:
        yield charge.head, True
    if site in signed.receipt.heads:
        yield signed.receipt.heads[site], False


def _state(known: HeadOf | None, head: HeadOf, is_proven: bool) -> State:
    if known is None:
        return "first"
    if head.size < known.size:
        return "SHRUNK"
    if head.size == known.size:
        return "FORKED"
    return "consistent" if is_proven else "unproven"


def _row(site: str, head: HeadOf, signed: SignedReceipt, state: State) -> HeadRow:
    receipt = signed.receipt
    return HeadRow(
        site=site,
        size=head.size,
        root=head.root,
        at=receipt.closed_at,
        job_sha256=receipt.job_sha256,
        round=receipt.round,
        confirmed_by=pki.fingerprint(signed.chain.encode()),
        state=state,
        signature=head.signature,
        public_key=head.public_key,
    )


def _words(failed: Iterable[Claim]) -> str:
    return "; ".join(f"{claim.name}: {claim.found}" for claim in failed)
