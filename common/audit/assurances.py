"""What the documents say in words: who sees what, what is left out, what remains a risk.

The sentences follow NIST SP 800-226 (2025) and say no more than docs/design.md does. Not covered:
sentences with figures about the promise itself (common/statement.py).
"""

from collections.abc import Sequence

from common.audit.spending import Spending
from common.config import RECORD
from common.figures import bound, plain, power
from common.privacy.clipping import LATTICE
from common.privacy.group import MEANINGFUL_EPSILON
from common.result import Result
from common.statement import PERSON_RECORDS

_SERVER = "The server and its operator"
_HOLDER = "Whoever has the adapter"
# Party, what it sees, what it never sees.
_PARTIES = (
    (
        "The site itself",
        "its own records, its gradients before clipping and noise, its ledger",
        "records or updates of other sites; only their mean, as the next adapter",
    ),
    (
        _SERVER,
        "every site's noised update, each by itself; who took part, when and for how long; "
        "addresses and sizes; heads of ledgers",
        "records, gradients without noise, counts, losses or metrics of a site",
    ),
    (
        "The other sites",
        "the adapter after each round; who took part, with hashes of updates, charges and heads",
        "another site's update",
    ),
    (
        _HOLDER,
        "the final adapter, and all that one can ask of it",
        "anything that a site sent",
    ),
    (
        "Whoever watches the network",
        "addresses, sizes and times; the content is under TLS 1.3 with certificates at both ends",
        "any content",
    ),
)

_COUNTS = "noised counts of each site's held-out records, once, which are in every epsilon"


def parties(result: Result) -> tuple[tuple[str, str, str], ...]:
    """Who sees what of a run."""
    if result.metrics is None:
        return _PARTIES
    changed = {
        _SERVER: (_COUNTS, "records, gradients without noise, counts without noise"),
        _HOLDER: ("in its README, what the noised counts say", "any site's update"),
    }
    return tuple(
        (who, f"{sees}; {changed[who][0]}", changed[who][1]) if who in changed else (who, sees, no)
        for who, sees, no in _PARTIES
    )


# Against whom the promise holds, in one sentence.
ADVERSARY = (
    "The promise of a site holds against everybody outside that site, alone or together: the "
    "server, its operator, the other sites and whoever gets the adapter, whatever else they know. "
    "It does not hold against whoever controls the site's own computers: the model is local, each "
    "site adds all of its noise itself and trusts nobody to add it."
)

IMPLEMENTATION = {
    "randomness": (
        "A fresh key of the operating system for every step and purpose, expanded by AES-256-CTR; "
        "never a seed."
    ),
    "floating_point": (
        "Clipped gradients are rounded to whole numbers and added up exactly; the noise is a whole "
        "number, drawn to within 2⁻¹²⁸ of total variation, so that attacks on floating-point "
        "noise (Mironov 2012) have no hold. 2⁻⁶⁴ of delta a step is set aside for it."
    ),
    "lattice": (
        f"{LATTICE:,} lattice units to a clip norm. Removing a unit moves the sum by at most the "
        "clip norm and half the root of the number of trained parameters, in lattice units; the "
        "noise is scaled to that."
    ),
    "side_channels": "Timing and memory access are not hidden, and are outside the promise.",
}

_EXCLUSIONS = (
    "That a site took part, in which rounds, when and how long it took. The server sees it.",
    "Choices made by looking at earlier runs on the same records: learning rate, rank, clip norm.",
    "Training, copying or looking at the records outside this tool.",
    "How the records were collected, and whether they might be used for this.",
    "Other jobs on the same records: each spends anew, and the epsilons add up. The site's ledger "
    "counts them; this document does not show them.",
    "What the base model had learned before.",
    "What the model says about groups of people: privacy protects a unit, not a fact.",
    "Scores on the hold-out: they come from public records at the server",
)


def exclusions(result: Result) -> tuple[str, ...]:
    """What the promise is not about."""
    more = "no site released any" if result.metrics is None else "what sites counted is in epsilon"
    return (*_EXCLUSIONS[:-1], f"{_EXCLUSIONS[-1]}; {more}.")


BUDGET = (
    "Epsilon and delta of the job stand in the manifest that its operator signed before any record "
    "was read; the noise is computed from them at each site, and no message can lower it.",
    "All steps of a round are charged, durably, before its training begins. A round that fails, is "
    "lost or is rejected stays charged.",
    "Each site has a cap for the whole life of its data, over all jobs. It stands in the first "
    "entry of the site's ledger, has no period after which it is filled up, and cannot be raised.",
    "Whether a person at the site must approve a job is that site's own rule, and stays there.",
)

SECURITY = (
    "TLS 1.3, with certificates of the federation's own authority at both ends; revocation is "
    "checked at every session and message.",
    "Keys of sites are made where they stay. Leaf certificates last 30 days; the root's key is "
    "kept off the server.",
    "No code travels: a job is data with a closed schema, and a site runs what is installed there.",
    "Base model and adapter are pinned by hash; weights are read from safetensors alone.",
    "Charges stand in a hash chain that the site signs; their heads are kept by the server and "
    "shown to all sites, so that a ledger that shrinks or forks is noticed.",
)


def utility(result: Result) -> str:
    """What the score is of."""
    counts = (
        "Results for groups of people are not known: no site released any."
        if result.metrics is None
        else "What sites counted on their own held-out records is in result.json and the report."
    )
    return (
        f"Measured at the server on a public hold-out, which costs no privacy. {counts} Noise "
        "tends to cost rare classes most."
    )


def caps(sites: Sequence[Spending]) -> tuple[str, ...]:
    """Each site's cap, as its ledger's first entry states it."""
    return tuple(_cap(spent) for spent in sites)


def _cap(spent: Spending) -> str:
    name, cap = spent.promise.name, spent.cap
    if cap is None:
        return f"{name}: this evidence tells no cap of its lifetime; the site's own ledger does."
    return (
        f"{name}: at most epsilon {plain(cap.max_epsilon)} at delta {power(cap.delta)} over the "
        f"life of its data, enforced by {cap.name}; by that count this job takes "
        f"{bound(spent.cap_figure)}."
    )


def residual_risks(sites: Sequence[Spending], unit: str) -> tuple[str, ...]:
    """What may still go wrong for somebody whose records were used."""
    risks = [
        "Epsilon is a bound, not zero: somebody who sees all that was released learns a little "
        "more about each unit than without it, and at a large epsilon it may be much.",
        *_strength(sites, unit),
        "A reader learns that a site took part, and perhaps from that alone whom it treats or "
        "serves.",
        "Whoever controls a site's computers, or carries records away beside the tool, needs no "
        "adapter. So does whoever steals a site's key take part in its name until it is revoked.",
        "A site that deceives can steer the model within the bound on an update's norm; privacy "
        "does not make a model right, fair or safe.",
        "The rows prove what a site was charged, not that its computers did what they were "
        "installed to do. Self-checks and audits look for such faults, and cannot exclude them.",
        "A text that many units share is not protected by a promise about one of them.",
    ]
    return tuple(risks)


def _strength(sites: Sequence[Spending], unit: str) -> list[str]:
    words = []
    most = max(sites, key=lambda spent: spent.promise.epsilon or 0.0).promise
    if most.epsilon is not None and most.epsilon > MEANINGFUL_EPSILON:
        words.append(
            f"Epsilon {bound(most.epsilon)} is too large to mean much: it does not exclude that a "
            f"single {unit} is found out."
        )
    person = max((spent.promise.person_epsilon or 0.0 for spent in sites), default=0.0)
    if unit == RECORD and person > (most.epsilon or 0.0):
        words.append(
            f"Somebody with several records is protected less: with {PERSON_RECORDS} at one site, "
            f"epsilon is {bound(person)}."
        )
    return words
