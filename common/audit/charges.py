"""One site's charges and ledger heads, as they stand in the rounds' receipts.

Every function says what it found and raises Refusal at the first thing that does not hold.

Not covered: entries of the site's ledger that are not shown (fl-audit ledger reads all of them).
"""

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common import pki
from common.audit.evidence import Evidence
from common.errors import InvalidInput, Refusal
from common.privacy.charge import HeadOf, SignedCharge, SignedEntry, check_charge, check_ending
from common.privacy.entries import Created, Reserved
from common.receipt import RoundReceipt
from common.words import counted

_MOST_CERTIFICATES = 64


@dataclass(frozen=True, slots=True)
class Certified:
    """A site's key (DER, hex) and the certificate chain (PEM) that names it."""

    public_key: str
    chain: bytes

    def was_valid(self, site: str, roots: bytes, moment: dt.datetime) -> bool:
        """Whether a root vouched for it as this site's key at that time.

        A certificate that was renewed later for the same key will do, one that had ended will not.
        """
        leaf = pki.load_certificates(self.chain)[0]
        at = max(moment, leaf.not_valid_before_utc)
        try:
            return pki.check_site_chain(self.chain, roots, now=at) == site
        except InvalidInput:
            return False


def certified_keys(site: str, evidence: Evidence) -> tuple[Certified, ...]:
    """The keys that the site's certificates name; who vouches for them is not asked.

    Raises:
        Refusal: no certificate, or too many.
        InvalidInput: something else in their place.
    """
    pem = evidence.certificates.get(site)
    if pem is None:
        raise Refusal(f"site {site} must have a certificate here, got none")
    found = pki.load_certificates(pem)
    if len(found) > _MOST_CERTIFICATES:
        raise Refusal(f"certificates of {site} must be at most {_MOST_CERTIFICATES}, got more")
    pems = [pki.to_pem(certificate) for certificate in found]
    if b"".join(pems) != pem:
        raise Refusal(f"certificates of {site} must be plain PEM, got other bytes beside them")
    if len(pems) % 2:
        raise Refusal(f"certificates of {site} must be a leaf and its intermediate each, got more")
    pairs = zip(pems[::2], pems[1::2], strict=True)
    return tuple(Certified(_key_of(leaf), leaf + above) for leaf, above in pairs)


def check_certificates(site: str, evidence: Evidence, roots: bytes) -> str:
    """Each of the site's certificates names it and leads to a root."""
    keys = certified_keys(site, evidence)
    for one in keys:
        leaf = pki.load_certificates(one.chain)[0]
        named = pki.check_site_chain(one.chain, roots, now=leaf.not_valid_before_utc)
        if named != site:
            raise Refusal(f"certificate of {site} must name it, got {named}")
    return f"{counted(len({one.public_key for one in keys}), 'key')} certified as {site}'s"


def check_charges(site: str, evidence: Evidence, roots: bytes) -> str:
    """Each charge is signed, under its head, and what the job's plan says of it."""
    keys, count = certified_keys(site, evidence), 0
    if other := evidence.twins.get(site):
        raise Refusal(f"ledger of {site} must be its own, got entries or a key of {other}'s")
    for receipt, charge in _charges(site, evidence):
        valid = _valid(keys, site, roots, receipt)
        try:
            entry = check_charge(charge, valid.__contains__)
            _require_named(charge, site, evidence)
            _require_plan(entry, receipt, evidence)
            _require_asked(entry.job_steps, asked_steps(site, evidence, receipt.round))
        except Refusal as error:
            raise Refusal(f"round {receipt.round}: {error}") from error
        count += 1
    words = f"{counted(count, 'charge')} signed and as planned"
    if evidence.counting and site in evidence.counting.charges:
        words += ", one of them of counts"
    asked = sum(site in signed.receipt.asked for signed in evidence.receipts)
    return words + (f"; {asked - count} of {asked} orders without one" if asked > count else "")


def check_heads(site: str, evidence: Evidence, roots: bytes) -> str:
    """The site's heads never shrink, none has two roots, and each charge's continues the last."""
    keys, last = certified_keys(site, evidence), None
    for signed in evidence.receipts:
        receipt = signed.receipt
        valid = _valid(keys, site, roots, receipt)
        for head in _heads(receipt, site, last):
            if not head.head.is_signed() or head.public_key not in valid:
                raise Refusal(f"round {receipt.round}: head must be signed by {site}'s key")
            _require_growth(last, head, f"round {receipt.round}")
            last = head
    if last is None:
        raise Refusal(f"site {site} must have a ledger head in the receipts, got none")
    return f"grew to {last.size} entries, root {last.root[:16]}"


def check_last_word(site: str, evidence: Evidence, roots: bytes) -> str:
    """The site's ledger ended the job with no more charged than the receipts ask for.

    Without it a round after the last charge that is shown could have been kept from the bundle.
    """
    last = evidence.receipts[-1].receipt
    valid, known = _valid(certified_keys(site, evidence), site, roots, last), last.heads.get(site)
    ending = evidence.endings[site]
    entry = check_ending(ending, valid.__contains__)
    _require_named(ending, site, evidence)
    if entry.job_sha256 != evidence.job.job.sha256:
        raise Refusal(f"ending must be of this job, got one of {entry.job_sha256[:16]}")
    if known is not None and not known.is_same(ending.since):
        raise Refusal("ending must continue the last head of the receipts, got another")
    shown = [c.reserved for _, c in _charges(site, evidence)]
    steps, counts = max((e.job_steps or 0 for e in shown), default=0), entry.counts
    if entry.steps is None or counts is None or entry.steps < steps:
        raise Refusal(f"ending must state at least the {steps} steps charged, got {entry.steps}")
    _require_asked(entry.steps, asked_steps(site, evidence))
    if counts > asked_counts(site, evidence):
        raise Refusal(f"ending must state no counts that nobody asked for, got {counts}")
    words = f"{counted(entry.steps, 'step')} charged in all"
    return f"{words}, and its counts" if counts else words


def _require_named(shown: SignedEntry, site: str, evidence: Evidence) -> None:
    """Entries that name a key say that the ledger is this site's, and is about the job's unit.

    A ledger may be made before its site insists on a unit, and then says none.
    """
    job = evidence.job.job
    for entry in shown.named:
        if entry.is_ephemeral and not evidence.is_simulation:
            raise Refusal(f"ledger must be under {site}'s own key, got one made for it alone")
        if not isinstance(entry, Created):
            continue
        if entry.site != site:
            raise Refusal(f"ledger must begin as {site}'s, got {entry.site:.80}'s")
        if job.is_private and entry.unit not in ("", job.privacy.unit):
            raise Refusal(f"ledger's unit must be {job.privacy.unit}, got {entry.unit:.80}")


def asked_rounds(site: str, evidence: Evidence, last: int | None = None) -> int:
    """In how many rounds, up to ``last``, the site was asked."""
    receipts = evidence.rounds[: len(evidence.rounds) if last is None else last]
    return sum(site in signed.receipt.asked for signed in receipts)


def asked_steps(site: str, evidence: Evidence, last: int | None = None) -> int:
    """The steps of training of those rounds."""
    return asked_rounds(site, evidence, last) * evidence.job.job.training.local_steps


def due_rounds(site: str, evidence: Evidence, last: int | None = None) -> int:
    """How many rounds, up to ``last``, the site counts as charged for.

    Those that it was asked for. Where its last word is missing, every round of the plan after its
    last charge as well: that one was asked of it, and kept back with its last word, looks the same.
    """
    planned = evidence.job.job.training.rounds
    last = planned if last is None else last
    if site in evidence.endings:
        return asked_rounds(site, evidence, last)
    charged = (s.receipt.round for s in evidence.receipts if site in s.receipt.charges)
    known = min(last, max(charged, default=0))
    return asked_rounds(site, evidence, known) + last - known


def due_counts(site: str, evidence: Evidence) -> int:
    """1 where the site may have been asked for its counts, else 0."""
    if site in evidence.endings or evidence.job.job.metrics is None:
        return asked_counts(site, evidence)
    return 1


def asked_counts(site: str, evidence: Evidence) -> int:
    """1 where the site was asked for its counts, else 0."""
    return int(evidence.counting is not None and site in evidence.counting.asked)


def _require_asked(steps: int | None, asked: int) -> None:
    """A site's own sum over the job is within what the receipts ask it for."""
    if steps is None:
        raise Refusal("charge must state the job's steps so far, got none: an earlier version")
    if steps > asked:
        raise Refusal(f"ledger must have at most the {asked} steps asked for, got {steps}")


def _valid(
    keys: Sequence[Certified], site: str, roots: bytes, receipt: RoundReceipt
) -> frozenset[str]:
    """The keys that were certified as the site's when a round was closed."""
    moment = moment_of(receipt.closed_at)
    return frozenset(key.public_key for key in keys if key.was_valid(site, roots, moment))


def _heads(receipt: RoundReceipt, site: str, last: HeadOf | None) -> Iterator[HeadOf]:
    """The heads that a receipt shows of a site, oldest first."""
    charge = receipt.charges.get(site)
    if charge is not None:
        if charge.since is None and last is not None:
            raise Refusal(f"round {receipt.round}: charge must continue the head before, got none")
        if charge.since is not None and last is not None and not charge.since.is_same(last):
            raise Refusal(
                f"round {receipt.round}: charge must continue the head of {last.size} entries "
                f"that was seen before, got one of {charge.since.size}"
            )
        yield charge.head
        last = charge.head
    if site not in receipt.heads:
        if last is not None:
            raise Refusal(f"round {receipt.round}: head of {site} must be there again, got none")
        return
    if last is not None and not receipt.heads[site].is_same(last):
        found = receipt.heads[site]
        _require_growth(last, found, f"round {receipt.round}")
        raise Refusal(
            f"round {receipt.round}: ledger must grow by a charge's proof, got {found.size} "
            f"after {last.size} entries without one"
        )
    yield receipt.heads[site]


def _require_growth(last: HeadOf | None, head: HeadOf, where: str) -> None:
    if last is None:
        return
    if head.size < last.size:
        raise Refusal(f"{where}: ledger must not shrink, got {head.size} after {last.size} entries")
    if head.size == last.size and head.root != last.root:
        raise Refusal(f"{where}: ledger must have one root at {head.size} entries, got two")


def _require_plan(entry: Reserved, receipt: RoundReceipt, evidence: Evidence) -> None:
    """The ledger's own words against job and receipt."""
    job, charge = evidence.job.job, entry.charge
    privacy = job.privacy
    is_counting = receipt is evidence.counting
    event = evidence.result.privacy.events(job.training.local_steps, int(is_counting))[-1]
    said = {
        "job": entry.job_sha256 == job.sha256,
        "round": entry.round == receipt.round,
        "input": entry.input_sha256 == receipt.input_sha256,
        "purpose": entry.purpose == ("metrics" if is_counting else "update"),
        "steps": charge.steps == event.steps,
        "sampling rate": charge.sampling_rate == event.sampling_rate,
        # Each side calibrates the noise itself: equal but for how a machine rounds.
        "noise multiplier": math.isclose(
            charge.noise_multiplier, event.noise_multiplier, rel_tol=1e-6
        ),
        "unit": (entry.terms.unit, entry.terms.unit_cap) == (privacy.unit, privacy.unit_cap),
        "delta": entry.terms.delta == privacy.delta,
    }
    if wrong := [name for name, is_same in said.items() if not is_same]:
        raise Refusal(f"charge must be as planned, got another {' and '.join(wrong)}")


def _charges(site: str, evidence: Evidence) -> Iterator[tuple[RoundReceipt, SignedCharge]]:
    for signed in evidence.receipts:
        charge = signed.receipt.charges.get(site)
        if charge is not None:
            yield signed.receipt, charge


def _key_of(pem: bytes) -> str:
    key = pki.leaf_key(pem)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


def moment_of(stamp: str) -> dt.datetime:
    """When a stamp says that it was.

    Raises:
        Refusal: never, by any calendar.
    """
    try:
        return dt.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise Refusal(f"time must be one of the calendar, got {stamp}") from error
