"""Reports of audits against the evidence that they are handed in with.

What an audit bounds is the epsilon of all steps of the plan, so that is what it is held against. A
site that was away, or a job that ended early, was charged for fewer steps of the very same
mechanism: what refutes the epsilon of all steps refutes the mechanism, and theirs.

Not covered: that an audit was run, and found this.
"""

import math
from collections import Counter
from collections.abc import Sequence

from common.audit.certificate_parts import Audit
from common.audit.evidence import Evidence
from common.audit.recompute import TOLERANCE
from common.audit.report import REFUTED
from common.errors import Refusal

MOST_SIGNIFICANCE = 0.05  # one that is wrong more often says nothing for a claim
_LEAST_SIGNIFICANCE = 1e-9  # of less, no release or canary that anybody makes could tell


def require_audits(audits: Sequence[Audit], evidence: Evidence) -> None:
    """Each is of a claim and code that the evidence has, none of them refutes it or comes twice.

    Raises:
        Refusal: one is not, or is not consistent with the claim.
    """
    for audit in audits:
        _require_audit(audit, evidence)
    of_claim = Counter((audit.name, audit.site) for audit in audits)
    for audit in audits:
        found = of_claim[audit.name, audit.site]
        if found > audit.runs:
            raise Refusal(
                f"audits {audit.name} of {audit.site} must be no more than the {audit.runs} that "
                f"share their significance, got {found}"
            )
    if len(set(audits)) < len(audits):
        raise Refusal("audits must each be another, got one twice")


def _require_audit(audit: Audit, evidence: Evidence) -> None:
    if not _LEAST_SIGNIFICANCE <= audit.significance <= MOST_SIGNIFICANCE:
        rule = (
            f"at most {MOST_SIGNIFICANCE:g}"
            if audit.significance > MOST_SIGNIFICANCE
            else f"at least {_LEAST_SIGNIFICANCE:g}"
        )
        raise Refusal(f"audit's significance must be {rule}, got {audit.significance:g}")
    claimed = _claimed(audit, evidence)
    _require_code(audit, evidence)
    if audit.lower_bound > claimed or audit.verdict == REFUTED:
        raise Refusal(
            f"audit {audit.name} must be consistent with epsilon {claimed:.4g} of all steps at "
            f"{audit.site}, got a lower bound of {audit.lower_bound:.4g}: the claim is refuted"
        )


def _claimed(audit: Audit, evidence: Evidence) -> float:
    """What all steps of the plan cost, which has to be the claim that was audited."""
    spent = {site.name for site in evidence.result.sites if site.epsilon is not None}
    planned = evidence.result.privacy.epsilon(evidence.job.job.steps)
    if audit.site not in spent or planned is None:
        raise Refusal(f"audit must be of a site with an epsilon here, got {audit.site}")
    if not math.isclose(audit.epsilon, planned, rel_tol=TOLERANCE):
        raise Refusal(
            f"audit's epsilon must be {planned:.6g}, that of all "
            f"{evidence.job.job.steps} steps of training, got {audit.epsilon:.6g}"
        )
    return planned


def _require_code(audit: Audit, evidence: Evidence) -> None:
    """The audited code is one that the site signed a round's charge under."""
    charges = (signed.receipt.charges.get(audit.site) for signed in evidence.rounds)
    known = sorted({charge.reserved.code_sha256 for charge in charges if charge is not None})
    if audit.code_sha256 not in known:
        told = ", ".join(code[:16] for code in known[:5]) or "none"
        raise Refusal(
            f"audit's code_sha256 must be one that {audit.site} was charged under "
            f"({told}), got {audit.code_sha256[:16]}"
        )
