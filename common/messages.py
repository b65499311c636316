"""The messages of a job: what the server asks of a site, and the closed set of what it may answer.

Everything that leaves a site for the server is built here and nowhere else: a verdict in fixed
words, the site's name, or one round's update with public constants beside it. No loss, no count, no
timing, but for a job's one release of counts with noise (common/metric_messages.py). The site's
ledger head goes with verdict and update, and the last one that the server kept comes back with each
offer and order: how many entries the site has, and a salted hash over them. A round's charge comes
before its update (common/phases.py): one entry of the ledger, which says what the job said anyway,
under a salt.

Arrays are raw buffers checked by common/link/payload.py. The global adapter travels in fp32, so
that all sides start a round from the same bits; the job's codec holds for the updates.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from common.adapter import AdapterTable, Vector, vector_sha256
from common.contents import config_in
from common.errors import JobRefused, UpdateRejected
from common.histograms import bins
from common.job import MAX_INTEGER, Job, SignedJob, parse_signed_job
from common.link.codecs import CODECS
from common.link.payload import message_cap, pack, unpack
from common.phases import read_prove, read_receipts
from common.privacy.account import ENDED_BY_SERVER
from common.privacy.charge import HeadOf
from common.privacy.ledger import WITNESSED, Head
from common.receipt import MAX_CHARGE_BYTES, SignedReceipt

OFFER, TRAIN, CLOSE, SITE = "query.offer", "train", "query.close", "query.site"

# What a site says when its reasons are its own.
NO_UPDATE = "update could not be made"
WRONG_BASE = "model.base must be the job's at this site, got another or none"
# Its disk, not the job: the same message may be answered better later.
IN_TROUBLE = "site is in trouble"
# Its ledger, which stays as it is: asked again, it says the same.
NO_LEDGER = "site's ledger is not whole, so it trains no more"
# Nobody at the site has looked at the job yet: asked again, it may say yes or no.
WAITING = "job waits for a person at this site"

_UPDATE_KEYS = {"arrays", "head", "manifest", "round"}
_ROUND_KEYS = {"round", "input_sha256", "steps", "charged_steps"}
GLOBAL_CODEC = CODECS["fp32"]
HEAD = "head"
Packed = Mapping[str, ArrayRecord | ConfigRecord]
_HEX_CHARACTERS = 400  # of a signature or a public key, at most


@dataclass(frozen=True, slots=True)
class Verdict:
    """A site's answer to an offer, or to anything that it will not do."""

    is_accepted: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's word that a round's bytes arrived, and whether they were used."""

    round: int
    payload_sha256: str
    is_accepted: bool


@dataclass(frozen=True)
class Order:
    """A round that the server asks for.

    ``rounds``: the signed receipts of rounds that this site has not seen; ``prove``: its own
    earlier heads, which its charge is to go on from.
    """

    signed: SignedJob
    round: int
    receipt: Receipt | None
    rounds: tuple[SignedReceipt, ...] = ()
    prove: tuple[HeadOf, ...] = ()


@dataclass(frozen=True)
class Update:
    """A site's answer to a round: its noised change and the public steps it took."""

    vector: Vector
    round: int
    input_sha256: str
    steps: int
    charged_steps: int
    head: Head


def job_cap(job: Job, table: AdapterTable) -> int:
    """The most bytes that any message of this job may have, in either direction."""
    counts = 8 * bins(job.histograms)  # common/metric_messages.py
    of_adapter = max(message_cap(table, codec) for codec in CODECS.values())
    return max(of_adapter + counts + 2 * len(job.canonical), 2 * MAX_CHARGE_BYTES)


def offer(signed: SignedJob, witnessed: Head | None = None) -> RecordDict:
    """Ask a site whether it will take part; ``witnessed`` is the last head that it sent."""
    return RecordDict(
        {"job": ConfigRecord({"manifest": signed.to_bytes()}), **_of_head(WITNESSED, witnessed)}
    )


def read_offer(content: RecordDict) -> SignedJob:
    """The signed manifest of any message of a job.

    Raises:
        JobRefused: there is none, or it is not one.
    """
    manifest = (config_in(content, "job") or ConfigRecord()).get("manifest")
    if not isinstance(manifest, bytes):
        raise JobRefused("message must carry a signed manifest, got none")
    return parse_signed_job(manifest)


def verdict(*, accepted: bool, reason: str = "", head: Head | None = None) -> RecordDict:
    """A site's yes or no, with the head of its ledger where it can be read.

    ``reason`` follows from the job and the site's own file alone, or is fixed words: once records
    have been sampled, a number in it would be a release.
    """
    said = ConfigRecord({"accepted": accepted, "reason": reason[:500]})
    return RecordDict({"verdict": said, **_of_head(HEAD, head)})


def read_verdict(content: RecordDict) -> Verdict | None:
    """The verdict in an answer, or ``None`` when it is an update."""
    record = config_in(content, "verdict")
    if record is None:
        return None
    return Verdict(record.get("accepted") is True, str(record.get("reason", ""))[:500])


def site_name(site: str) -> RecordDict:
    """A site's answer to ``SITE``: its name, which is public."""
    return RecordDict({"site": ConfigRecord({"name": site})})


def read_site_name(content: RecordDict) -> str | None:
    """The name that a node says it has, or ``None`` where it says none."""
    name = (config_in(content, "site") or ConfigRecord()).get("name")
    return name if isinstance(name, str) else None


def not_yet(reply: Message) -> str:
    """Why a site could not answer for now, in fixed words; empty for an answer.

    Such a reply is as good as none: the same message may be answered later.
    """
    if not reply.has_content():
        return IN_TROUBLE
    said = read_verdict(reply.content)
    if said is None or said.is_accepted or said.reason not in (IN_TROUBLE, WAITING):
        return ""
    return said.reason


def pack_global(vector: Vector, table: AdapterTable) -> Packed:
    """The records of an order that carry the global ``vector``, (P,)."""
    return pack(vector, table, GLOBAL_CODEC)


def order(
    signed: SignedJob,
    table: AdapterTable,
    vector: Vector,
    round_: int,
    receipt: Receipt | None,
    witnessed: Head | None = None,
    *,
    packed: Packed | None = None,
    shown: Mapping[str, ConfigRecord] | None = None,
) -> RecordDict:
    """Ask a site to train a round from the global ``vector``.

    ``shown`` is what ``common.phases.shown`` made, of receipts and heads. ``packed`` is what
    ``pack_global`` made of the vector, for a round's orders to share: one buffer, however many
    sites there are.
    """
    body = ConfigRecord({"round": round_})
    if receipt is not None:
        body["receipt"] = json.dumps([receipt.round, receipt.payload_sha256, receipt.is_accepted])
    return RecordDict(
        {
            "job": ConfigRecord({"manifest": signed.to_bytes()}),
            "round": body,
            **(pack_global(vector, table) if packed is None else packed),
            **_of_head(WITNESSED, witnessed),
            **(shown or {}),
        }
    )


def read_order(content: RecordDict) -> Order:
    """The round that an order asks for; its adapter is read by ``read_global``.

    Raises:
        JobRefused: no manifest.
        UpdateRejected: no round number, or receipts or heads that are none.
    """
    body = config_in(content, "round") or ConfigRecord()
    round_ = body.get("round")
    if not isinstance(round_, int) or round_ < 1:
        raise UpdateRejected(f"round must be at least 1, got {round_!r}")
    receipt = _read_receipt(body.get("receipt"))
    rounds, prove = read_receipts(content), read_prove(content)
    return Order(read_offer(content), round_, receipt, rounds, prove)


def read_global(content: RecordDict, table: AdapterTable) -> Vector:
    """The global adapter that an order carries, (P,).

    Raises:
        UpdateRejected: table, shape, dtype, finiteness or hash differ from the job's.
    """
    return unpack(content, table, GLOBAL_CODEC)


def update(job: Job, table: AdapterTable, result: Update) -> RecordDict:
    """A site's answer to a round, rounded by the job's codec."""
    body = ConfigRecord(
        {
            "round": result.round,
            "input_sha256": result.input_sha256,
            "steps": result.steps,
            "charged_steps": result.charged_steps,
        }
    )
    packed: Packed = pack(result.vector, table, CODECS[job.training.codec])
    return RecordDict({"round": body, **packed, **_of_head(HEAD, result.head)})


def read_update(content: RecordDict, job: Job, table: AdapterTable) -> Update:
    """A site's update, once everything about it has been checked but its norm.

    Raises:
        UpdateRejected: anything but the closed schema and the job's constants.
    """
    if set(content) != _UPDATE_KEYS:
        raise UpdateRejected(
            f"update must hold {', '.join(sorted(_UPDATE_KEYS))}, got {sorted(content)[:6]}"
        )
    body = config_in(content, "round") or ConfigRecord()
    if set(body) != _ROUND_KEYS:
        raise UpdateRejected(
            f"update's round must hold {', '.join(sorted(_ROUND_KEYS))}, got {sorted(body)[:6]}"
        )
    numbers = {}
    for key in ("round", "steps", "charged_steps"):
        value = body.get(key)
        if not isinstance(value, int) or value < 0:
            raise UpdateRejected(f"update's {key} must be a count, got {value!r}")
        numbers[key] = value
    if numbers["steps"] != job.training.local_steps:
        raise UpdateRejected(
            f"update's steps must be {job.training.local_steps}, got {numbers['steps']}"
        )
    _require_possible_charge(numbers["charged_steps"], numbers["round"], job)
    if (head := read_head(content, HEAD)) is None:
        raise UpdateRejected("update's head must be a ledger's, got none")
    return Update(
        vector=unpack(content, table, CODECS[job.training.codec]),
        input_sha256=str(body.get("input_sha256", "")),
        head=head,
        **numbers,
    )


def read_head(content: RecordDict, name: str) -> Head | None:
    """The ledger head in a message: a site's own (``HEAD``) or the one that came back to it.

    Raises:
        UpdateRejected: there is something in its place that is none.
    """
    body = config_in(content, name)
    if body is None:
        return None
    size, words = body.get("size"), [body.get(key) for key in ("root", "signature", "public_key")]
    if (
        set(body) != {"size", "root", "signature", "public_key"}
        or type(size) is not int
        or not 0 < size < MAX_INTEGER
        or not all(isinstance(word, str) and len(word) <= _HEX_CHARACTERS for word in words)
        or len(str(words[0])) != 64
    ):
        raise UpdateRejected(f"{name} must be a ledger's head, got something else")
    return Head(size, *(str(word) for word in words))


def _of_head(name: str, head: Head | None) -> dict[str, ConfigRecord]:
    return {} if head is None else {name: ConfigRecord(asdict(head))}


def _require_possible_charge(charged: int, round_: int, job: Job) -> None:
    """This round is charged, and none more than once; another figure would be taken for epsilon."""
    steps = job.training.local_steps
    most = steps * min(round_, job.training.rounds)
    if not steps <= charged <= most or charged % steps:
        raise UpdateRejected(
            f"update's charged_steps must be whole rounds of {steps}, at most {most}, got {charged}"
        )


def close(
    job_sha256: str,
    state: str,
    final: Vector | None,
    receipt: Receipt | None,
    *,
    shown: Mapping[str, ConfigRecord] | None = None,
) -> RecordDict:
    """Tell a site that a job has ended, and with which adapter; ``shown`` as for an order."""
    body = ConfigRecord(
        {
            "job_sha256": job_sha256,
            "state": state,
            "final_sha256": "" if final is None else vector_sha256(final),
        }
    )
    if receipt is not None:
        body["receipt"] = json.dumps([receipt.round, receipt.payload_sha256, receipt.is_accepted])
    return RecordDict({"close": body, **(shown or {})})


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a job, as a site learns it."""

    job_sha256: str
    state: str
    final_sha256: str
    receipt: Receipt | None
    rounds: tuple[SignedReceipt, ...] = ()
    prove: tuple[HeadOf, ...] = ()


def read_close(content: RecordDict) -> Closing:
    """The end of a job.

    Raises:
        UpdateRejected: the message says nothing of the kind, that the job goes on, or has
            receipts that are none.
    """
    body = config_in(content, "close") or ConfigRecord()
    job_sha256, state, final = (
        str(body.get(key, "")) for key in ("job_sha256", "state", "final_sha256")
    )
    if (
        state not in ENDED_BY_SERVER
        or not re.fullmatch("[0-9a-f]{64}", job_sha256)
        or not re.fullmatch("([0-9a-f]{64})?", final)
    ):
        raise UpdateRejected("close must name a job, its end and its adapter, got something else")
    receipt = _read_receipt(body.get("receipt"))
    shown = read_receipts(content), read_prove(content)
    return Closing(job_sha256, state, final, receipt, *shown)


def _read_receipt(value: object) -> Receipt | None:
    if value is None:
        return None
    try:
        round_, digest, is_accepted = json.loads(str(value)[:200])
    except (ValueError, TypeError, RecursionError) as error:
        raise UpdateRejected("receipt must be a round, a hash and a verdict, got other") from error
    if (
        type(round_) is not int
        or not 0 < round_ < MAX_INTEGER
        or not isinstance(digest, str)
        or type(is_accepted) is not bool
    ):
        raise UpdateRejected("receipt must be a round, a hash and a verdict, got other")
    return Receipt(round_, digest, is_accepted)
