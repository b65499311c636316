"""What the signed rounds cost, against what ``result.json`` claims.

A site is counted for every round that it was asked for, and for its counts where it was asked for
some, whether or not it answered: silence is no proof that nothing was trained. Every function says
what it found and raises Refusal at the first thing that does not hold.

Not covered: what a person known to several sites spends; other jobs on the same records.
"""

import math
from functools import lru_cache

from common.audit.charges import due_counts, due_rounds
from common.audit.evidence import Evidence
from common.audit.recompute import TOLERANCE
from common.errors import AccountingInDoubt, Refusal
from common.measured import measured
from common.privacy import accounting, crosscheck
from common.privacy.event import GaussianSteps
from common.result import PrivacyStatement, hold_out_declared, privacy_statement
from common.words import counted

_CALIBRATION = 0.01  # how far two versions' noise for the same epsilon may lie apart


def check_statement(evidence: Evidence) -> str:
    """The result is of this job and states its mechanism; the whole plan costs what was agreed."""
    job, result = evidence.job.job, evidence.result
    if (result.job_sha256, result.name, result.task) != (job.sha256, job.job.name, job.job.task):
        raise Refusal(f"result must be of job {job.job.name}, got one of {result.name}")
    if sorted(site.name for site in result.sites) != list(job.sites):
        raise Refusal("result must state every site of the job, got others")
    if result.privacy.seeded != evidence.is_simulation:
        raise Refusal("a run whose noise can be repeated must be marked SIMULATION, got another")
    if result.grid != "link" and not evidence.is_simulation:  # elsewhere no server signs rounds
        raise Refusal(f"result must be of a run over the link, got one by {result.grid}")
    if result.hold_out not in (None, hold_out_declared(job)):  # earlier versions said nothing
        raise Refusal("result must say of the hold-out what the operator declared, got another")
    _require_same_mechanism(result.privacy, privacy_statement(job, seeded=evidence.is_simulation))
    counts = _require_same_counts(evidence)
    if not job.is_private or job.privacy.epsilon is None or job.privacy.delta is None:
        return "no privacy is claimed"
    plan = accounting.epsilon(result.privacy.events(job.steps, counts), job.privacy.delta)
    whole = f"all {job.steps} steps" + (" with the counts" if counts else "")
    if plan > job.privacy.epsilon + TOLERANCE:
        raise Refusal(f"{whole} must cost at most epsilon {job.privacy.epsilon:g}, got {plan:.4f}")
    return (
        f"noise multiplier {result.privacy.noise_multiplier:.4g}: {whole} would "
        f"cost epsilon {plan:.4f} of {job.privacy.epsilon:g} at delta {job.privacy.delta:g}"
    )


def _require_same_counts(evidence: Evidence) -> int:
    """The result counts what the job says, with its noise on them; how many releases there are."""
    job, stated = evidence.job.job, evidence.result.metrics
    noise = evidence.result.privacy.metrics_noise_multiplier
    due = measured(job, {}, ())
    if due is None or stated is None or noise is None:
        if (due is None) != (stated is None):
            raise Refusal("result must state counts where the job has any, and nowhere else")
        return 0
    free = {"deviation", "sites", "silent", "together", "estimates"}
    if due.model_dump(exclude=free) != stated.model_dump(exclude=free):
        raise Refusal("result must state the job's histograms, cap and hold-out, got others")
    if not math.isclose(stated.deviation, noise * due.sensitivity, rel_tol=TOLERANCE):
        raise Refusal(
            f"counts must have noise {noise:.6g} times what one unit can add, "
            f"{due.sensitivity:.6g}, got {stated.deviation:.6g}"
        )
    if stated.recomputed() != stated:
        raise Refusal("shares must be those that the counts beside them give, got others")
    return 1


def check_epsilon(site: str, evidence: Evidence) -> str:
    """A site's epsilon is at least that of its rounds, by PLD; PRV and RDP agree with it."""
    result = evidence.result
    stated = next((row for row in result.sites if row.name == site), None)
    if stated is None:
        raise Refusal(f"result must state what {site} spent, got nothing")
    rounds = due_rounds(site, evidence)
    was = "was" if site in evidence.endings else "may have been"
    steps = rounds * evidence.job.job.training.local_steps
    if stated.steps < steps:
        raise Refusal(
            f"{site} must state the {steps} steps of the {counted(rounds, 'round')} that it "
            f"{was} asked for, got {stated.steps}"
        )
    if stated.counts < due_counts(site, evidence):
        raise Refusal(f"{site} must state the counts that it {was} asked for, got none")
    if result.privacy.mode == "none" or result.privacy.delta is None:
        return f"{counted(stated.steps, 'step')} without privacy, none claimed"
    if stated.epsilon is None or stated.delta != result.privacy.delta:
        raise Refusal(f"{site} must state an epsilon at delta {result.privacy.delta}, got another")
    events = result.privacy.events(stated.steps, stated.counts)
    found = _compared(events, result.privacy.delta)
    spent = counted(stated.steps, "step") + (" and its counts" if stated.counts else "")
    _require_same(stated.epsilon, found.pld, f"{site}'s epsilon for {spent}")
    return (
        f"{found.pld:.4f} for {spent} at delta {stated.delta:g} "
        f"(PRV {found.prv:.4f}, RDP at most {found.rdp:.4f})"
    )


def check_rounds(evidence: Evidence) -> str:
    """Each round's epsilon is at least that of the site which had been asked most by then."""
    privacy, steps = evidence.result.privacy, evidence.job.job.training.local_steps
    if privacy.mode == "none":
        return "no epsilon is claimed"
    most, rows = 0.0, evidence.result.rounds
    for row in rows:
        due = max(due_rounds(s, evidence, row.round) for s in evidence.job.job.sites)
        found = privacy.epsilon(due * steps)
        if row.epsilon is None or found is None or row.epsilon < found - TOLERANCE:
            raise Refusal(
                f"round {row.round} must state at least epsilon {found}, got {row.epsilon}"
            )
        most = max(most, row.epsilon)
    ends = max((s.epsilon for s in evidence.result.sites if s.epsilon is not None), default=0.0)
    if most > ends + TOLERANCE:
        raise Refusal(f"no round must state more than the end's {ends:.6g}, got {most:.6g}")
    return f"{rows[0].epsilon:.4f} after round 1, {rows[-1].epsilon:.4f} after {rows[-1].round}"


@lru_cache(maxsize=256)
def _compared(events: tuple[GaussianSteps, ...], delta: float) -> crosscheck.Epsilons:
    found = crosscheck.compare(events, delta)
    if found.doubt:
        raise AccountingInDoubt(found.doubt)
    return found


def _require_same(stated: float, found: float, what: str) -> None:
    if not math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise Refusal(f"{what} must be {found:.6g}, got {stated:.6g}")


def _require_same_mechanism(stated: PrivacyStatement, planned: PrivacyStatement) -> None:
    """Libraries of another version may calibrate otherwise, but for what the eye can see.

    More noise than the job needs is as wrong as less: with it, charges that the sites never made
    would cost next to nothing.
    """
    free = {"accountant_version", "noise_multiplier", "metrics_noise_multiplier"}
    noises = (
        ("noise multiplier", stated.noise_multiplier, planned.noise_multiplier),
        ("counts' noise", stated.metrics_noise_multiplier, planned.metrics_noise_multiplier),
    )
    for name, found, wanted in noises:
        if not math.isclose(found or 0.0, wanted or 0.0, rel_tol=_CALIBRATION):
            raise Refusal(f"result must state the job's {name}, {wanted}, got {found}")
    said, due = stated.model_dump(exclude=free), planned.model_dump(exclude=free)
    if wrong := [name for name in due if said[name] != due[name]]:
        raise Refusal(f"result must state the job's mechanism, got another {' and '.join(wrong)}")
