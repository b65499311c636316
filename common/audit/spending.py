"""What each site spent, out of a job's evidence: the result's claims held against signed rows.

Every document takes its figures from here. A claim that the rows do not bear out is refused, so
that no document says what the evidence does not.

Not covered: signatures and proofs (common/audit/verify.py).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.audit.charges import due_counts, due_rounds
from common.audit.evidence import Evidence
from common.errors import InvalidInput, UpdateRejected
from common.privacy import accounting, crosscheck
from common.privacy.charge import HeadOf, SignedCharge
from common.privacy.crosscheck import Epsilons
from common.privacy.entries import Created, Reserved, read_entry
from common.privacy.event import GaussianSteps
from common.privacy.lifetime import LifetimeCap, cap_from_dict
from common.result import SiteResult
from common.statement import SitePromise, require_same_job, site_promises

# Fourier transforms of other library builds differ in the last digits; nobody's privacy does.
TOLERANCE = 1e-6
_ABREAST = 5  # numbers of sites that are composed one by one; beyond, all of them


@dataclass(frozen=True, slots=True)
class Spending:
    """One site's.

    Attributes:
        promise: its public size, steps and epsilons.
        asked: rounds that it was asked for.
        signed: steps of the rows that it signed.
        shown: entries of its ledger that the evidence opens.
        entries: entries of its ledger by its last head; ``None`` without one.
        cap: over the life of its data; ``None`` where the evidence does not open the entry.
        keys: sha256 of each key (SubjectPublicKeyInfo, DER) that signed a head.
        counts: releases of counts that it is charged, 0 or 1.
        is_ended: whether its last word on the job is here.
        events: what it is charged, for accountants.
    """

    promise: SitePromise
    asked: int
    signed: int
    shown: int
    entries: int | None
    cap: LifetimeCap | None
    keys: tuple[str, ...]
    counts: int
    is_ended: bool
    events: tuple[GaussianSteps, ...]

    @property
    def cap_figure(self) -> float | None:
        """What it is charged costs by the cap's own accounting."""
        return None if self.cap is None else self.cap.epsilon(self.events)


def spendings(evidence: Evidence) -> tuple[Spending, ...]:
    """One for each site of the result.

    Raises:
        InvalidInput: the result is another job's, or claims what the rows do not bear out.
    """
    result, job = evidence.result, evidence.job.job
    require_same_job(result, job)
    rows = [_rows(evidence, site) for site in result.sites]
    for site, found in zip(result.sites, rows, strict=True):
        _require_borne_out(evidence, site, found)
        _require_epsilon(evidence, site)
    promises = site_promises(result, job)  # which takes seconds
    return tuple(
        _spending(found, promise, site.counts, result.privacy.events(site.steps, site.counts))
        for found, promise, site in zip(rows, promises, result.sites, strict=True)
    )


def figures(spending: Spending) -> Epsilons:
    """Its epsilon by three accountants."""
    return _compared(spending.events, _delta(spending))


@lru_cache(maxsize=64)
def _compared(events: tuple[GaussianSteps, ...], delta: float) -> Epsilons:
    """PRV and RDP take a second, and sites mostly have spent the same."""
    return crosscheck.compare(events, delta)


def together(sites: Sequence[Spending]) -> tuple[tuple[int, float], ...]:
    """(k, epsilon) of one unit at the k sites that spent most: 1 to 5, and all."""
    ordered = sorted(sites, key=lambda s: -(s.promise.epsilon or 0.0))
    numbers = sorted({*range(1, min(_ABREAST, len(sites)) + 1), len(sites)})
    delta = _delta(sites[0])

    def epsilon(number: int) -> float:
        return accounting.epsilon([e for s in ordered[:number] for e in s.events], delta)

    return tuple((number, epsilon(number)) for number in numbers)


def _delta(spending: Spending) -> float:
    if spending.promise.delta is None:
        raise InvalidInput(f"sites.{spending.promise.name}.delta must be given, got none")
    return spending.promise.delta


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the receipts say of one site."""

    charges: tuple[SignedCharge, ...]
    asked: int
    answered: int
    steps: int
    counts: int
    due: int
    is_ended: bool
    heads: tuple[HeadOf, ...]


def _rows(evidence: Evidence, site: SiteResult) -> _Rows:
    receipts = [signed.receipt for signed in evidence.receipts]
    charges = tuple(r.charges[site.name] for r in receipts if site.name in r.charges)
    reserved = {row.round: row for row in (_reserved(evidence, c) for c in charges)}
    updates = [row for row in reserved.values() if row.purpose == "update"]
    return _Rows(
        charges=charges,
        asked=sum(site.name in signed.receipt.asked for signed in evidence.rounds),
        answered=len(updates),
        steps=sum(row.charge.steps for row in updates),
        counts=due_counts(site.name, evidence),
        due=due_rounds(site.name, evidence) * evidence.result.privacy.local_steps,
        is_ended=site.name in evidence.endings,
        heads=tuple(r.heads[site.name] for r in receipts if site.name in r.heads),
    )


def _spending(
    rows: _Rows, promise: SitePromise, counts: int, events: tuple[GaussianSteps, ...]
) -> Spending:
    return Spending(
        promise=promise,
        asked=rows.asked,
        signed=rows.steps,
        shown=len({row.seq for c in rows.charges for row in (c.row, *c.hand_overs)}),
        entries=rows.heads[-1].size if rows.heads else None,
        cap=_cap(rows.charges),
        keys=tuple(sorted({_sha256(head.public_key) for head in rows.heads})),
        counts=counts,
        is_ended=rows.is_ended,
        events=events,
    )


def _reserved(evidence: Evidence, charge: SignedCharge) -> Reserved:
    """The row's content, if it is this job's mechanism."""
    try:
        row = charge.reserved
    except UpdateRejected as error:
        raise InvalidInput(f"evidence must hold charges, got: {error}") from error
    stated = evidence.result.privacy
    event = stated.events(row.charge.steps, int(row.purpose == "metrics"))[-1]
    found = (row.job_sha256, row.charge.sampling_rate, row.charge.noise_multiplier, row.terms.unit)
    wanted = (
        evidence.result.job_sha256,
        event.sampling_rate,
        event.noise_multiplier,
        stated.unit,
    )
    if found != wanted:
        raise InvalidInput(
            f"charge of round {row.round} must be of the job's mechanism {wanted}, got {found}"
        )
    return row


def _require_borne_out(evidence: Evidence, site: SiteResult, rows: _Rows) -> None:
    """All that the site signed is claimed, and with it every round that it did not answer.

    Where its last word is missing, what it may have been asked for after its last charge is claimed
    too. More may be: a round that the site was asked for and that was never closed.
    """
    if site.counts < rows.counts:
        raise InvalidInput(f"result.sites.{site.name}.counts must be 1 by the receipts, got 0")
    silent = max(0, rows.asked - rows.answered)
    least = max(rows.due, rows.steps + silent * evidence.result.privacy.local_steps)
    if site.steps < least:
        raise InvalidInput(
            f"result.sites.{site.name}.steps must be at least {least} by the receipts, "
            f"got {site.steps}"
        )


def _require_epsilon(evidence: Evidence, site: SiteResult) -> None:
    found = evidence.result.privacy.epsilon(site.steps, site.counts)
    if (found is None) != (site.epsilon is None) or not math.isclose(
        found or 0.0, site.epsilon or 0.0, rel_tol=TOLERANCE, abs_tol=TOLERANCE
    ):
        raise InvalidInput(
            f"result.sites.{site.name}.epsilon must be {found} by its charges, got {site.epsilon}"
        )


def _cap(charges: Sequence[SignedCharge]) -> LifetimeCap | None:
    """The lifetime's cap, where a charge shows the ledger's first entry and it can be read."""
    for row in (row for charge in charges for row in charge.hand_overs):
        entry = read_entry(row.body.encode(), row.seq)
        if isinstance(entry, Created):
            try:
                return cap_from_dict(entry.cap)
            except InvalidInput:  # none, or a kind that a later version made
                return None
    return None


def _sha256(public_key: str) -> str:
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()
