"""What a run promises, in words that a hospital's privacy officer can hold against us.

The figures beside the words are computed here from the mechanism and the executed steps. The shape
follows NIST SP 800-226 (2025): unit, neighbours, parameters, accountant, trust, and what is left
out. Not covered: whether the promise is good enough; that is the reader's to say.
"""

import math
import re
from dataclasses import dataclass

from common.config import RECORD
from common.errors import InvalidInput
from common.figures import bound, equation, factor, plain, power, share
from common.job import Job, require_site
from common.privacy import accounting, group
from common.result import EntitiesResult, PrivacyStatement, Result, SiteResult

# The most notes of one patient in the synthetic wards, and nothing unusual in a real one.
PERSON_RECORDS = 12


@dataclass(frozen=True, slots=True)
class SitePromise:
    """A site's public size, what it spent, and what that gives a person with many records."""

    name: str
    population: int
    steps: int
    epsilon: float | None
    delta: float | None
    person_epsilon: float | None


def site_promises(result: Result, job: Job) -> tuple[SitePromise, ...]:
    """One for each site of the result.

    Raises:
        InvalidInput: the result is another job's.
    """
    require_same_job(result, job)
    return tuple(_site_promise(result, job, at) for at in range(len(result.sites)))


def require_same_job(result: Result, job: Job) -> None:
    """Check that the result is the job's.

    Raises:
        InvalidInput: it is another's.
    """
    if result.job_sha256 != job.sha256:
        raise InvalidInput(
            f"result.job_sha256 must be that of the job, {job.sha256[:16]}..., "
            f"got {result.job_sha256[:16]}..."
        )


def _site_promise(result: Result, job: Job, at: int) -> SitePromise:
    site = result.sites[at]
    require_site(job, site.name)
    person = None
    if site.epsilon is not None and site.delta is not None:
        person = _person_epsilon(result, site, site.epsilon, site.delta)
    return SitePromise(
        name=site.name,
        population=job.data.population[site.name],
        steps=site.steps,
        epsilon=site.epsilon,
        delta=site.delta,
        person_epsilon=person,
    )


def _person_epsilon(result: Result, site: SiteResult, epsilon: float, delta: float) -> float:
    """All records of one unit are one contribution; where units are records they are many."""
    if result.privacy.unit != RECORD:
        return epsilon
    steps, *counts = result.privacy.events(site.steps, site.counts)
    return group.epsilon(steps, delta, PERSON_RECORDS, beside=tuple(counts))


def person_at_all_sites(result: Result) -> float | None:
    """The epsilon of a person with one unit at every site."""
    if result.epsilon is None or result.privacy.delta is None:
        return None
    spent = [e for site in result.sites for e in result.privacy.events(site.steps, site.counts)]
    return accounting.epsilon(spent, result.privacy.delta)


def warning(result: Result) -> str | None:
    """Why a run gives no guarantee; None where it gives one."""
    if result.private:
        return None
    if result.privacy.mode == "none":
        return (
            "Noise and clipping were switched off. The adapter, and every update that a site sent, "
            "can reveal the records it was trained on."
        )
    return (
        "Noise or sampling came from a seed, so that the run can be repeated. Who knows the seed "
        "can take the noise off again. Each epsilon below is what the same run would have cost "
        "with fresh noise; here it promises nothing."
    )


def protected(unit: str) -> tuple[str, str]:
    """Whom an epsilon is about in a word, and what the unit means where that is not all of it.

    >>> protected("patient_id"), protected("record"), protected("account")
    (('patient', 'all records of one patient_id'), ('record', ''), ('account', 'all its records'))
    """
    if unit == RECORD:
        return unit, ""
    noun = re.sub("[_-](id|ids|no|nr|key|number)$", "", unit, flags=re.IGNORECASE)
    words = noun.replace("_", " ").replace("-", " ")
    return words, "all its records" if noun == unit else f"all records of one {unit}"


def meaning(epsilon: float, delta: float, unit: str) -> str:
    """What an epsilon says of one ``unit``, in one sentence."""
    whose = "any one record was" if unit == RECORD else f"all records of any one {unit} were"
    return (
        f"Whether or not {whose} in a site's data, whatever can be seen of the training "
        f"is at most {factor(epsilon)} times as likely (e to the power {_is(epsilon)}), "
        f"but for a chance of {equation('δ', power(delta))}."
    )


def bet(epsilon: float, delta: float, unit: str) -> str:
    """The same, as the success of the best possible guess from even odds.

    Kairouz et al. (2015), https://arxiv.org/abs/1311.0776: the error rates a and b of any test obey
    ``a + e^epsilon b >= 1 - delta`` both ways, so ``(a + b) / 2 >= (1 - delta) / (1 + e^epsilon)``.
    """
    wrong = (1 - delta) / (1 + math.exp(min(epsilon, 700)))
    right = math.ceil((1 - wrong) * 10_000) / 100
    most = f"at most {right:.2f}%" if right < 100 else "up to practically 100%"
    return (
        f"Put as a bet: somebody who knows everything else, and guesses from even odds whether a "
        f"certain {unit} was used, is right {most} of the time; a coin is right 50%."
    )


def person(promises: tuple[SitePromise, ...], unit: str) -> str:
    """What a person with many records is told; the worst site speaks for all."""
    if unit != RECORD:
        return (
            f"The unit is all that shares one {unit}: its records together are clipped as one, so "
            f"every figure here holds for a person under one {unit}, however many records that is."
        )
    worst = max(p.person_epsilon or 0.0 for p in promises)
    told = (
        "that is too weak to mean anything, so such a person has no meaningful guarantee"
        if worst > group.MEANINGFUL_EPSILON
        else "weaker than for a single record"
    )
    return (
        f"The unit is a record, not a person. Someone with {PERSON_RECORDS} records at one site is "
        f"covered at {_is(worst)} only: {told}."
    )


def several_sites(result: Result) -> str | None:
    """What a person known to every site is told."""
    total = person_at_all_sites(result)
    if total is None or len(result.sites) < 2:
        return None
    return (
        f"A person known to several sites spends at each: one {result.privacy.unit} at all "
        f"{len(result.sites)} of them costs {_is(total)} together."
    )


def counting(found: EntitiesResult) -> str:
    """By which rules entities are counted, and what strict ones would make of it."""
    cut = f"; {found.words_cut:,} of {found.words:,} words lie beyond the longest text"
    return (
        f"as seqeval counts by default, {share(found.strict_f1)} in its strict mode"
        f"{cut if found.words_cut else ''}"
    )


def not_covered(result: Result) -> tuple[str, ...]:
    """What no epsilon of this page speaks of."""
    always = (
        "That a site took part, in which rounds and when: the server sees it.",
        "Accuracy and F1 by round and by class: they come from a public hold-out at the server. "
        + (
            "Sites release no figures of their own."
            if result.metrics is None
            else "What sites counted themselves is in every epsilon."
        ),
        "Who reaches the model afterwards, and what they do with what it says of groups of people.",
    )
    if not result.private:
        return always
    return (
        *always,
        "Other jobs on the same records: each spends anew, and the epsilons add up. Each site "
        "enforces its own cap over the life of its records; how large it is, and by which "
        "accountant, is in the site's own ledger and not known here.",
        "Choices made by looking at earlier runs on the same records, such as the learning rate.",
        "The computers of the sites: who controls one sees its records; timing is not accounted.",
        "Proof that the sites ran the steps stated here: this page is not signed.",
    )


def _is(epsilon: float) -> str:
    return equation("ε", bound(epsilon))


def disjointness(job: Job) -> str:
    """What anybody knows of the hold-out's units: the operator's word, or nothing."""
    unit, reason = job.privacy.unit, job.evaluation.disjoint_because
    if reason is None:
        return (
            f"Nobody declared that the hold-out shares no {unit} with a site: if it does, its "
            "scores flatter the adapter."
        )
    return (
        f"That the hold-out shares no {unit} with a site is declared by the operator and checked "
        f"by nobody: “{reason}”"
    )


def mechanism(result: Result) -> tuple[tuple[str, str], ...]:
    """The mechanism's terms and values, enough to recompute every epsilon."""
    stated = result.privacy
    if stated.mode == "none":
        return (
            ("Mechanism", "none: plain SGD on Poisson samples"),
            ("Sampling rate", f"{plain(stated.sampling_rate)} a step"),
            ("Steps a round", str(stated.local_steps)),
        )
    return (
        ("Mechanism", "DP-SGD: Poisson-subsampled Gaussian, added at each site"),
        ("Unit", _unit(stated)),
        ("Sampling rate", f"{plain(stated.sampling_rate)} a step, public"),
        ("Clip norm", f"{plain(stated.clip_norm or 0)} a {stated.unit}"),
        ("Noise", "Gaussian, rounded to an integer lattice as every clipped gradient is"),
        ("Noise multiplier", f"{stated.noise_multiplier:.4f} times what one {stated.unit} can add"),
        *_counts(result),
        ("Steps a round", str(stated.local_steps)),
        ("Randomness", "seeded: repeatable" if stated.seeded else "operating system, never a seed"),
        ("Accountant", f"privacy loss distributions ({stated.accountant_version})"),
        ("Trust", _trust(result)),
    )


def _counts(result: Result) -> tuple[tuple[str, str], ...]:
    """The second mechanism, where there is one."""
    noise, stated = result.privacy.metrics_noise_multiplier, result.metrics
    if noise is None or stated is None:
        return ()
    words = (
        f"once, Gaussian rounded to whole numbers, {noise:.4f} times the {stated.sensitivity:.4g} "
        f"that one {result.privacy.unit} can move all histograms together, in L2"
    )
    return (("Counts", words),)


def _trust(result: Result) -> str:
    beside = "" if result.metrics is None else " and noised counts"
    return f"the server and other sites see noised updates{beside} only, never records"


def _unit(stated: PrivacyStatement) -> str:
    if stated.unit == RECORD:
        return "one record; neighbours differ by adding or removing one"
    return (
        f"all records of one {stated.unit}, of which a step sees at most {stated.unit_cap}; "
        "neighbours differ by adding or removing all of them"
    )
