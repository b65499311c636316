"""The server as a witness: it keeps the longest ledger head of every site and sends it back.

A site whose ledger is an older copy, or went on from one, finds that out by it. A round's charge is
checked against the job and the site's admitted keys before its head is confirmed, and no update is
taken before that, nor any counts. A site's last word on a job is kept for auditors.
"""

import hashlib
import math
from functools import partial

import structlog
from flwr.app import Message

from common import messages
from common.errors import UpdateRejected
from common.job import Job
from common.phases import read_charged, read_ended
from common.privacy.charge import check_charge, check_ending
from common.privacy.entries import Purpose, Reserved
from common.privacy.event import GaussianSteps
from common.receipt import Confirmation, SignedConfirmation, most_charge_bytes, to_bytes
from server.checkpoint import Checkpoints

log = structlog.get_logger(__name__)


def witness(checkpoints: Checkpoints, site: str, reply: Message) -> None:
    """Remember the ledger head in a reply; one that contradicts an earlier one is named."""
    try:
        head = messages.read_head(reply.content, messages.HEAD) if reply.has_content() else None
    except UpdateRejected as error:
        log.warning("head not taken", site=site, reason=str(error))
        return
    if head is None:
        return
    if not head.is_signed():
        log.warning("head not taken", site=site, reason="its signature is not its key's")
        return
    found = checkpoints.witness(site, head)
    if found == "forked":
        log.error("ledger forked", site=site, size=head.size, remedy="two copies are used")
    elif found == "foreign":
        log.error("head not taken", site=site, reason="its key is not the site's certificate's")
    elif found == "shorter":
        log.warning("older ledger head", site=site, size=head.size)


def confirm(
    checkpoints: Checkpoints, job: Job, round_: int, input_sha256: str, site: str, reply: Message
) -> SignedConfirmation | Confirmation:
    """Check and keep the charge in a reply; the word for its head.

    Raises:
        UpdateRejected: it is missing, not the round's, not the site's, or not proved.
        StorageFailed: it could not be kept.
    """
    charge = read_charged(reply.content)
    most, size = most_charge_bytes(len(job.sites)), len(to_bytes(charge))
    if size > most:
        raise UpdateRejected(
            f"charge must be at most {most} bytes in a job of {len(job.sites)} sites, got {size}"
        )
    entry = check_charge(charge, partial(_is_key, checkpoints, site))
    _require_planned(entry, job, round_, input_sha256)
    return checkpoints.confirm(job.sha256, round_, site, charge)


def keep_ending(checkpoints: Checkpoints, job: Job, site: str, reply: Message) -> None:
    """Keep a site's last word on a job; one that is not proved is named in the log and left.

    Raises:
        StorageFailed: it could not be kept.
    """
    try:
        ending = read_ended(reply.content) if reply.has_content() else None
        if ending is None:
            return
        entry = check_ending(ending, partial(_is_key, checkpoints, site))
        if entry.job_sha256 != job.sha256:
            raise UpdateRejected(f"ending must be of this job, got {entry.job_sha256[:12]}")
    except UpdateRejected as error:
        log.warning("ending not taken", site=site, reason=str(error))
        return
    checkpoints.keep_ending(job.sha256, site, ending)


def _is_key(checkpoints: Checkpoints, site: str, public_key: str) -> bool:
    return checkpoints.holds_key(site, hashlib.sha256(bytes.fromhex(public_key)).hexdigest())


def _require_planned(entry: Reserved, job: Job, round_: int, input_sha256: str) -> None:
    if (entry.job_sha256, entry.round, entry.input_sha256) != (job.sha256, round_, input_sha256):
        raise UpdateRejected(
            f"charge must be for round {round_} of job {job.sha256[:12]} from "
            f"{input_sha256[:12]}, got round {entry.round} of {entry.job_sha256[:12]} from "
            f"{entry.input_sha256[:12]}"
        )
    plan, charge, terms = job.privacy, entry.charge, entry.terms
    event, purpose = _planned(job, round_)
    # Each side calibrates the noise itself: equal but for how a machine rounds.
    is_planned = charge.sampling_rate == event.sampling_rate and math.isclose(
        charge.noise_multiplier, event.noise_multiplier, rel_tol=1e-6
    )
    if charge.steps != event.steps or not is_planned:
        raise UpdateRejected(
            f"charge must be {event.steps} steps at rate {event.sampling_rate:g} and "
            f"noise {event.noise_multiplier:g}, got {charge.steps} at {charge.sampling_rate:g} and "
            f"{charge.noise_multiplier:g}"
        )
    if entry.purpose != purpose:
        raise UpdateRejected(f"charge must be for {purpose}, got one for {entry.purpose}")
    if (terms.unit, terms.unit_cap, terms.delta) != (plan.unit, plan.unit_cap, plan.delta):
        raise UpdateRejected("charge must be under the job's terms, got other terms")


def _planned(job: Job, round_: int) -> tuple[GaussianSteps, Purpose]:
    """What a site is charged under that number: a round, or the counts after the last."""
    if job.metrics_event is not None and round_ == job.metrics_round:
        return job.metrics_event, "metrics"
    rate, steps = job.privacy.sampling_rate, job.training.local_steps
    return GaussianSteps(rate, job.noise_multiplier, steps), "update"
