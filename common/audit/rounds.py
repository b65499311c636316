"""A job's rounds as the server signed them: none missing, none added, each from the one before.

Every function says what it found and raises Refusal at the first thing that does not hold.

Not covered: the sites' charges in them (common/audit/charges.py); that the mean of the updates is
what came out, since no update is in a bundle; that a site sent the counts that the result states,
since what it sent is named by a hash over more than them.
"""

from itertools import pairwise

from common.audit.charges import moment_of
from common.audit.evidence import Evidence
from common.errors import Refusal
from common.receipt import RoundReceipt, verify_signed
from common.stopping import is_over, kept_round
from common.words import counted


def check_chain(evidence: Evidence) -> str:
    """No round is missing, added, or of another job; each receipt names the one before by hash."""
    job, receipts = evidence.job.job, evidence.receipts
    numbers = [signed.receipt.round for signed in receipts]
    if job.metrics is not None:
        if job.metrics_round not in numbers[-1:]:
            raise Refusal(f"job's counts must have the last receipt, got {numbers[-20:]}")
        numbers = numbers[:-1]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise Refusal(f"rounds must be 1 to the last, each once, got {numbers[:20]}")
    before = ""
    _require_in_time(evidence)
    for signed in receipts:
        if signed.receipt.job_sha256 != job.sha256:
            raise Refusal(f"round {signed.receipt.round} must be of this job, got another's")
        if signed.receipt.before != before:
            raise Refusal(f"round {signed.receipt.round} must follow the one before, got another")
        before = signed.sha256
    stated = [row.round for row in evidence.result.rounds]
    if stated != numbers:
        raise Refusal(f"result's rounds must be the {len(numbers)} signed ones, got {len(stated)}")
    rows = evidence.result.rounds
    if not is_over(job, rows) or (len(rows) > 1 and is_over(job, rows[:-1])):
        raise Refusal(
            f"job must end after {job.training.rounds} rounds or by its patience, "
            f"got {len(numbers)} rounds"
        )
    words = f"rounds 1 to {numbers[-1]} of {job.training.rounds}, each bound to the one before"
    if len(numbers) < job.training.rounds:
        words += "; ended early by its patience, with scores that the server states"
    return words if job.metrics is None else f"{words}, and the counts after them"


def _require_in_time(evidence: Evidence) -> None:
    """No round was closed before the one before it, and the bundle is made after all of them."""
    closed = [(f"round {s.receipt.round}", s.receipt.closed_at) for s in evidence.receipts]
    for (one, at), (other, later) in pairwise([*closed, ("bundle", evidence.made_at)]):
        if moment_of(later) < moment_of(at):
            raise Refusal(f"{other} must not be earlier than {one}, {at}, got {later}")


def check_signatures(evidence: Evidence, roots: bytes) -> str:
    """Each receipt is signed by a server's key, certified when it was closed."""
    for signed in evidence.receipts:
        try:
            verify_signed(signed, roots)
        except Refusal as error:
            raise Refusal(f"round {signed.receipt.round}: {error}") from error
    first, last = evidence.receipts[0].receipt, evidence.receipts[-1].receipt
    receipts = counted(len(evidence.receipts), "receipt")
    return f"{receipts} signed by the server, {first.closed_at} to {last.closed_at}"


def check_links(evidence: Evidence) -> str:
    """What came out of a round went into the next, and the kept round's is the result's adapter."""
    for one, other in pairwise(signed.receipt for signed in evidence.rounds):
        if other.input_sha256 != one.output_sha256:
            raise Refusal(
                f"round {other.round} must start from what round {one.round} made, got another"
            )
    result = evidence.result
    kept = kept_round(evidence.job.job, result.rounds)
    if result.kept_round not in (None, kept):
        raise Refusal(f"kept round must be {kept}, got {result.kept_round}")
    if kept > len(evidence.rounds):
        raise Refusal(f"kept round must be one with a receipt, got {kept}")
    output = evidence.rounds[kept - 1].receipt.output_sha256
    counting = evidence.counting
    if counting and {counting.input_sha256, counting.output_sha256} != {output}:
        raise Refusal(f"counts must be of the adapter that round {kept} made, got another's")
    if result.vector_sha256 != output:
        found = (result.vector_sha256 or "none")[:16]
        raise Refusal(f"result's adapter must be what round {kept} made, got {found}")
    return f"adapter {output[:16]} is what round {kept} made"


def check_replies(evidence: Evidence) -> str:
    """Only sites of the job were asked and answered; whose update counts had charged for it."""
    for signed in evidence.receipts:
        _check_replies(signed.receipt, evidence)
    replies = sum(len(signed.receipt.replies) for signed in evidence.rounds)
    asked = sum(len(signed.receipt.asked) for signed in evidence.receipts)
    silent = asked - sum(len(signed.receipt.charges) for signed in evidence.receipts)
    words = f"{counted(asked, 'order')}, {replies} answered with an update"
    if counting := evidence.counting:
        words += f", {len(counting.replies)} with counts"
    return f"{words}; {silent} without a charge count as charged" if silent else words


def _check_replies(receipt: RoundReceipt, evidence: Evidence) -> None:
    job, where = evidence.job.job, f"round {receipt.round}"
    asked, named = set(receipt.asked), [reply.site for reply in receipt.replies]
    if list(receipt.asked) != sorted(asked) or len(set(named)) != len(named):
        raise Refusal(f"{where} must name each site once, in order, got one twice")
    strangers = (asked | set(receipt.heads)) - set(job.sites)
    strangers |= (set(named) | set(receipt.charges)) - asked
    if strangers:
        raise Refusal(f"{where} must be of sites that were asked, got {min(strangers)} too")
    accepted = {reply.site for reply in receipt.replies if reply.accepted}
    if uncharged := accepted - set(receipt.charges):
        raise Refusal(f"{where} must hold {min(uncharged)}'s charge beside its update, got none")
    if receipt is evidence.counting:
        _require_stated(receipt, evidence)
    elif len(accepted) < job.training.quorum:
        raise Refusal(
            f"{where} must have a quorum of {job.training.quorum}, got {len(accepted)} updates"
        )


def _require_stated(receipt: RoundReceipt, evidence: Evidence) -> None:
    """The result has counts of those who gave some, and names the others who were asked."""
    stated, given = evidence.result.metrics, {reply.site for reply in receipt.replies}
    if stated is None or {one.site for one in stated.sites} != given:
        raise Refusal(f"result must hold the counts of {', '.join(sorted(given))}, got others")
    if not set(receipt.asked) - given <= set(stated.silent):
        raise Refusal("result must name every site that was asked and gave no counts, got fewer")
