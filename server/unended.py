"""Sites whose last word on a job is missing, counted for all that they may have been asked for.

A site that was away when its job ended cannot say that no further round was asked of it, and an
auditor cannot tell it from one whose last word was kept back. So evidence counts it as charged for
every round of the plan after its last charge; once the site has been back, a new export counts
what it says.

Not covered: the job's own ``result.json`` in the server's home, which states what was asked for.
"""

from collections.abc import Sequence
from dataclasses import replace

from common.audit.charges import due_counts, due_rounds
from common.audit.evidence import Evidence
from common.measured import MetricsResult
from common.result import Result, RoundResult, site_result


def counted_in_full(evidence: Evidence) -> Evidence:
    """The evidence with a result that counts every site without a last word so."""
    sites, steps = evidence.job.job.sites, evidence.job.job.training.local_steps
    away = [site for site in sites if site not in evidence.endings]
    result = evidence.result
    if not away:
        return evidence
    due = {site: due_rounds(site, evidence) * steps for site in away}
    counted = [site for site in away if due_counts(site, evidence)]
    parts = {
        "sites": [
            site_result(
                one.name,
                max(one.steps, due.get(one.name, 0)),
                result.privacy,
                is_counted=bool(one.counts) or one.name in counted,
            )
            for one in result.sites
        ],
        "metrics": _metrics(result.metrics, counted),
        "rounds": [_round(row, evidence) for row in result.rounds],
    }
    return replace(evidence, result=Result.model_validate(dict(result) | parts))


def _metrics(stated: MetricsResult | None, counted: Sequence[str]) -> MetricsResult | None:
    if stated is None:
        return None
    silent = (set(stated.silent) | set(counted)) - {one.site for one in stated.sites}
    return stated.model_copy(update={"silent": tuple(sorted(silent))})


def _round(row: RoundResult, evidence: Evidence) -> RoundResult:
    """A round's epsilon is that of the site which may have been asked most by then."""
    job, privacy = evidence.job.job, evidence.result.privacy
    most = max(due_rounds(site, evidence, row.round) for site in job.sites)
    least = privacy.epsilon(most * job.training.local_steps)
    if row.epsilon is None or least is None or row.epsilon >= least:
        return row
    return row.model_copy(update={"epsilon": least})
