"""Checking a site's exported ledger: every entry and signature, and what was spent by it.

The replay is the one that the site itself trusts (common/privacy/account.py); every epsilon is
computed anew from the charges.

Not covered: whether the site ran what it recorded; what was cut off at the end, unless a later head
was kept elsewhere and is given.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from common import pki
from common.errors import InvalidInput, LedgerBroken
from common.files import read_file
from common.keys import MAX_PEM_BYTES
from common.privacy.account import Account, Charge, Submission, spent
from common.privacy.entries import Rekeyed
from common.privacy.extract import read_extract, verified
from common.privacy.ledger import Chain, Head
from common.privacy.lifetime import LifetimeCap, cap_from_dict

MAX_LEDGER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class JobSpent:
    """A job's charges. ``epsilon`` (PLD, at ``delta``) is ``None`` without privacy or a bound.

    ``counts``: releases of counts that were charged, in epsilon as well.
    """

    name: str
    job_sha256: str
    state: str
    unit: str
    rounds: int
    steps: int
    planned_steps: int | None
    delta: float
    epsilon: float | None
    counts: int = 0


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What a ledger that is whole says.

    Attributes:
        site: whose it says it is.
        size: how many entries.
        root: over them, hex.
        keys: public keys (DER, hex) that signed, in order.
        hand_overs: the entries that named all but the first of them.
        cap: the lifetime's.
        jobs: in the order in which they were accepted.
        epsilon: all private charges by the cap's own accounting, ``None`` without a bound.
        epsilon_by_pld: the same by PLD, at the cap's delta.
        is_within: whether the cap allows all of them.
        uncovered_rounds: charges without noise.
    """

    site: str
    size: int
    root: str
    keys: tuple[str, ...]
    hand_overs: tuple[Rekeyed, ...]
    cap: LifetimeCap
    jobs: tuple[JobSpent, ...]
    epsilon: float | None
    epsilon_by_pld: float | None
    is_within: bool
    uncovered_rounds: int


def check_ledger(path: Path, public_key: str = "", witnessed: Head | None = None) -> LedgerReport:
    """Check an exported ledger and compute what was spent.

    Args:
        path: the file.
        public_key: the key (DER, hex) that must have signed last; empty to ask nothing.
        witnessed: a head that the ledger must continue.

    Raises:
        InvalidInput: it is no such file.
        LedgerBroken: the first claim that does not hold.
    """
    chain, account = verified(read_extract(read_file(path, max_bytes=MAX_LEDGER_BYTES)))
    if public_key and chain.keys[-1] != public_key:
        raise LedgerBroken("ledger must be signed last by the key given, got another")
    if witnessed is not None:
        _require_continued(chain, witnessed)
    return _report(chain, account)


def read_public(path: Path) -> str:
    """The key (DER, hex) in a PEM file: a certificate, as a site's, or a public key.

    Raises:
        InvalidInput: there is none in it.
    """
    pem = read_file(path, max_bytes=MAX_PEM_BYTES)
    if b"BEGIN CERTIFICATE" in pem:
        key: object = pki.leaf_key(pem)
    else:
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidInput(f"{path.name} must be a certificate or public key (PEM)") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidInput(f"{path.name} must be of an ECDSA P-256 key, got another")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def _require_continued(chain: Chain, head: Head) -> None:
    if head.public_key not in chain.keys or not head.is_signed():
        raise LedgerBroken("head given must be signed by a key of the ledger, got another's")
    if head.size > chain.size:
        raise LedgerBroken(
            f"ledger must hold the {head.size} entries of the head given, got {chain.size}"
        )
    if head.root != chain.root(head.size).hex():
        raise LedgerBroken(f"ledger must begin with the {head.size} entries of the head given")


def _report(chain: Chain, account: Account) -> LedgerReport:
    created = account.created
    try:
        cap = cap_from_dict(created.cap if created else {})
    except InvalidInput as error:
        raise LedgerBroken(f"ledger's lifetime cap must be one that we know: {error}") from error
    charges = account.charges()
    events = [charge.event for charge in charges if charge.is_private]
    return LedgerReport(
        site=created.site if created else "",
        size=chain.size,
        root=chain.root().hex(),
        keys=chain.keys,
        hand_overs=tuple(account.hand_overs),
        cap=cap,
        jobs=tuple(_job(job, account.charges(job.sha256), cap) for job in account.jobs.values()),
        epsilon=_finite(cap.epsilon(events)),
        epsilon_by_pld=_finite(spent(charges, cap.delta)),
        is_within=cap.allows(events) and _are_covered(charges, cap),
        uncovered_rounds=len(charges) - len(events),
    )


def _are_covered(charges: Sequence[Charge], cap: LifetimeCap) -> bool:
    return all(cap.covers(charge.job_sha256) for charge in charges if charge.is_private)


def _job(job: Submission, charges: list[Charge], cap: LifetimeCap) -> JobSpent:
    delta = cap.delta if job.terms.delta is None else job.terms.delta
    is_private = all(charge.is_private for charge in charges)
    rounds = [charge for charge in charges if charge.purpose == "update"]
    return JobSpent(
        name=job.name,
        job_sha256=job.sha256,
        state=job.state,
        unit=job.terms.unit,
        rounds=len(rounds),
        steps=sum(charge.event.steps for charge in rounds),
        planned_steps=job.plan.steps if job.plan else None,
        delta=delta,
        epsilon=_finite(spent(charges, delta)) if is_private else None,
        counts=len(charges) - len(rounds),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
