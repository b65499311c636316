"""A person's word on a job: jobs that wait for it, and what was decided.

A job that meets every rule and needs a person's word is kept in the home's ``offers`` folder until
somebody decides. The decision is an entry of the ledger, with who made it and when; the latest one
of a job holds. A refusal ends a job that runs, for ever: what it has charged stays charged, and
what it held of its budget is let go.

Not covered: whether the person is who they say; the machine's own accounts decide who may write
here.
"""

import getpass
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from client.account import has_run, open_account
from client.config import SiteHome
from client.outbox import Outbox
from common.config import MAX_CONFIG_BYTES
from common.errors import InvalidInput, JobRefused, JobWaits, StorageFailed
from common.files import exists, make_folder, read_file, write_file
from common.job import SignedJob, find_job, parse_signed_job
from common.privacy.account import REFUSED

APPROVE: Literal["approve"] = "approve"
REFUSE: Literal["refuse"] = "refuse"
WAITS, APPROVED = "waiting for approval", "approved"

log = structlog.get_logger(__name__)


class Decision(Protocol):
    """A ledger's entry on a job."""

    @property
    def job_sha256(self) -> str: ...  # noqa: D102
    @property
    def decision(self) -> str: ...  # noqa: D102
    @property
    def who(self) -> str: ...  # noqa: D102
    @property
    def at(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Offer:
    """A job that was offered and met every rule, and how it stands with this site's people."""

    name: str
    sha256: str
    state: str
    manifest: bytes


def require_approval(signed: SignedJob, home: SiteHome, decisions: Iterable[Decision]) -> None:
    """Let a job pass that nobody refused and that was approved if it must be.

    Raises:
        JobRefused: a person said no.
        JobWaits: nobody has said anything yet; the job is kept for them to see.
        StorageFailed: it cannot be kept.
    """
    said = latest(decisions, signed.job.sha256)
    if said == REFUSE:
        raise JobRefused("job must be approved by a person at this site, got a refusal")
    if home.config.policy.approval == "person" and said != APPROVE:
        _keep(signed, home)
        raise JobWaits("job must be approved by a person at this site, got no word yet")


def latest(decisions: Iterable[Decision], job_sha256: str) -> str:
    """The last word on a job; empty for none."""
    words = [one.decision for one in decisions if one.job_sha256 == job_sha256]
    return words[-1] if words else ""


def offers(home: SiteHome, decisions: Iterable[Decision]) -> list[Offer]:
    """The jobs that came to a person's attention here; the log names a file that holds none."""
    states = {"": WAITS, APPROVE: APPROVED, REFUSE: REFUSED}
    known = list(decisions)
    found = []
    for path in sorted((home.folder / "offers").glob("*.json")):
        try:
            manifest = read_file(path, max_bytes=MAX_CONFIG_BYTES)
            job = parse_signed_job(manifest).job
        except (InvalidInput, JobRefused, StorageFailed) as error:
            log.warning("offer not readable", file=f"offers/{path.name}", reason=str(error))
            continue
        state = states[latest(known, job.sha256)]
        found.append(Offer(job.job.name, job.sha256, state, manifest))
    return found


def decide(home: SiteHome, wanted: str, decision: Literal["approve", "refuse"], who: str) -> Offer:
    """Record a person's word on a job; again is no second entry. A refusal ends it.

    Args:
        home: the site's.
        wanted: the job's name, or the first characters of its sha256.
        decision: their word.
        who: who says so.

    Raises:
        InvalidInput: no such job, more than one, or one to approve that has ended.
        StorageFailed: the entry is in doubt.
    """
    if not 0 < len(who) <= 200 or not who.isprintable():
        raise InvalidInput(f"who must be 1 to 200 printable characters, got {who[:80]!r}")
    outbox = open_account(home)
    begun = {job.sha256: job for job in outbox.submissions()}
    offer = find_job(list(_decidable(home, outbox).values()), wanted)
    if decision == APPROVE and offer.sha256 in begun and not begun[offer.sha256].is_open:
        raise InvalidInput(
            f"job must be open or not begun to be approved, got one that is {offer.state} "
            "(the operator may submit it anew)"
        )
    if latest(outbox.decisions(), offer.sha256) != decision:
        outbox.decide(offer.sha256, decision, who)
    if decision == REFUSE:
        outbox.close_job(offer.sha256, REFUSED, "")
    state = APPROVED if decision == APPROVE else REFUSED
    return Offer(offer.name, offer.sha256, state, offer.manifest)


def known_job(home: SiteHome, wanted: str) -> SignedJob:
    """The job of that name or id that waits here or was accepted, to be looked at.

    Raises:
        InvalidInput: no such job, or more than one.
        StorageFailed: the account cannot be read.
    """
    outbox = open_account(home, is_reader=True) if has_run(home) else None
    return parse_signed_job(find_job(list(_decidable(home, outbox).values()), wanted).manifest)


def _decidable(home: SiteHome, outbox: Outbox | None) -> dict[str, Offer]:
    """Offers and jobs of the account, by sha256; the account knows better how a job stands."""
    if outbox is None:
        return {offer.sha256: offer for offer in offers(home, ())}
    begun = [Offer(row.name, row.sha256, row.state, row.manifest) for row in outbox.jobs()]
    return {offer.sha256: offer for offer in (*offers(home, outbox.decisions()), *begun)}


def login_name() -> str:
    """Who is logged in.

    Raises:
        InvalidInput: this machine has no name for them.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # OSError from Python 3.13 on
        raise InvalidInput("who must be given with --by, got no login name") from error


def _keep(signed: SignedJob, home: SiteHome) -> None:
    path = home.folder / "offers" / f"{signed.job.sha256}.json"
    if exists(path):
        return
    make_folder(path.parent)
    write_file(path, signed.to_bytes())
    log.info(
        "job waits for approval",
        job=signed.job.job.name,
        sha256=signed.job.sha256,
        decide="fl-client approve or refuse",
    )
