"""Asking the sites for their counts, once, of the adapter that is kept.

Who is asked is durable before they are, and counts as charged whatever comes back. As in a round a
site shows its charge first, and its counts leave once the server has confirmed the head that holds
it. The first answer of a site is the one; asked again after a crash, a site gives the same bytes.
At the end a signed receipt, bound to that of the last round, holds every charge; nobody is asked
after it.

Not covered: what the counts say (common/estimates.py).
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import structlog
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from common import messages, phases
from common.adapter import vector_sha256
from common.errors import UpdateRejected
from common.flower import arrival_of
from common.job import Job
from common.metric_messages import METRICS, read_counts
from common.phases import RELEASE, is_charge
from common.receipt import Reply
from common.trace import exchange_id
from server import tables
from server.checkpoint import Checkpoints, Receipt
from server.counts import Answer, answers, note_asked
from server.participants import Participants
from server.round import ASK_AGAIN_S, site_of
from server.witness import confirm, witness

_GROUP = "metrics"

log = structlog.get_logger(__name__)


def measure(
    sites: Participants,
    checkpoints: Checkpoints,
    vector: NDArray[np.float32],
    content: Callable[[str], RecordDict],
    took_part: set[str],
) -> dict[str, Receipt]:
    """Ask every site that takes part until it has answered or the deadline is over.

    Args:
        sites: the job's, who are offered it again where the server was started anew.
        checkpoints: where the answers are kept.
        vector: the adapter that is kept, (P,).
        content: the order to a site.
        took_part: sites that have trained, and are waited for.

    Returns:
        The receipts that go with the job's close.
    """
    job = sites.job
    end = time.monotonic() + job.training.deadline_s
    while not checkpoints.are_counts_closed(job):
        known = answers(checkpoints, job.sha256)
        done = {site for site, answer in known.items() if answer.is_answered}
        sites.offer()
        wanted = (took_part | sites.accepted) - set(sites.refused) - done
        left_s = end - time.monotonic()
        if not wanted or left_s <= 0:
            break
        ask = wanted & sites.accepted & sites.connected()
        if ask:
            note_asked(checkpoints, job.sha256, ask)
            confirmed: dict[str, RecordDict] = {}
            for reply in sites.send(ask, METRICS, content, _GROUP, left_s):
                _take(job, checkpoints, vector_sha256(vector), reply, confirmed)
            for reply in sites.send(confirmed, RELEASE, confirmed.__getitem__, _GROUP, left_s):
                _take(job, checkpoints, vector_sha256(vector), reply, None)
        time.sleep(min(ASK_AGAIN_S, 0.1 if ask else 1.0, max(0.0, left_s)))
    known = answers(checkpoints, job.sha256)
    replies = (
        Reply(site=site, payload_sha256=answer.payload_sha256, accepted=True)
        for site, answer in known.items()
        if answer.counts is not None
    )
    checkpoints.close_counts(job, vector_sha256(vector), replies)
    return _receipts(job, known)


def _take(
    job: Job,
    checkpoints: Checkpoints,
    input_sha256: str,
    reply: Message,
    confirmed: dict[str, RecordDict] | None,
) -> None:
    """Take a reply in; a charge's confirmation goes into ``confirmed``, ``None`` after that."""
    site = site_of(job, reply)
    asked = reply.metadata.reply_to_message_id
    identifier = exchange_id(job.sha256, str(job.metrics_round), asked)
    if reason := messages.not_yet(reply):
        log.warning("no counts yet", id=identifier, site=site, reason=reason)
        return
    counts, reason = None, ""
    if confirmed is not None and is_charge(reply.content):
        try:
            said = confirm(checkpoints, job, job.metrics_round, input_sha256, site, reply)
            confirmed[site] = phases.confirm(said)
            log.info("charge taken", id=identifier, site=site)
            return
        except UpdateRejected as error:
            reason = str(error)
    else:
        witness(checkpoints, site, reply)
        counts, reason = _read(job, input_sha256, reply, is_confirmed=confirmed is None)
    _keep(job, checkpoints, reply, counts, reason)


def _keep(
    job: Job, checkpoints: Checkpoints, reply: Message, counts: bytes | None, reason: str
) -> None:
    """A site's one answer, durable."""
    site = site_of(job, reply)
    identifier = exchange_id(job.sha256, str(job.metrics_round), reply.metadata.reply_to_message_id)
    if reason:
        log.warning("no counts", id=identifier, site=site, reason=reason)
    else:
        log.info("counts taken", id=identifier, site=site)
    table = tables.counts
    mine = (table.c.job_sha256 == job.sha256) & (table.c.site == site)
    with checkpoints.writing() as connection:
        connection.execute(
            table.update()
            .where(mine & (table.c.payload_sha256 == ""))
            .values(
                counts=counts,
                reason=reason,
                payload_sha256=arrival_of(reply).content_sha256,
                bytes_up=arrival_of(reply).total_bytes,
            )
        )


def _read(
    job: Job, input_sha256: str, reply: Message, *, is_confirmed: bool
) -> tuple[bytes | None, str]:
    """A reply's counts, or why there are none."""
    verdict = messages.read_verdict(reply.content)
    if verdict is not None:
        return None, verdict.reason or "refused"
    try:
        if not is_confirmed:
            raise UpdateRejected("counts must follow their confirmed charge, got none")
        found = read_counts(reply.content, job)
        if found.input_sha256 != input_sha256:
            raise UpdateRejected("counts must be of the adapter that was sent, got another's")
    except UpdateRejected as error:
        return None, str(error)
    return found.counts.astype("<i8").tobytes(), ""


def _receipts(job: Job, known: Mapping[str, Answer]) -> dict[str, Receipt]:
    return {
        site: Receipt(
            site=site,
            round=job.metrics_round,
            payload_sha256=answer.payload_sha256,
            steps=0,
            charged_steps=0,
            bytes_up=answer.bytes_up,
            accepted=answer.counts is not None,
        )
        for site, answer in known.items()
        if answer.is_answered
    }
