"""The privacy certificate out of a job's evidence: of the whole job, or of one of its sites.

A server makes it to hand it out, and an auditor to compare: nothing in it is anybody's choice but
which audits were handed in. Words are those of the version that made it, which it names.

Not covered: runs that promise nothing, which get none.
"""

import math
from collections.abc import Sequence
from importlib.metadata import version

from common import statement
from common.audit import assurances
from common.audit.certificate import Certificate, identified
from common.audit.certificate_parts import Audit
from common.audit.evidence import ROSTER, Evidence
from common.audit.handed_in import require_audits
from common.audit.spending import Spending, figures, together
from common.certificates import fingerprint
from common.errors import InvalidInput
from common.privacy import accounting, crosscheck
from common.privacy.event import GaussianSteps
from common.privacy.selfcheck import CHECKS
from common.result import PrivacyStatement, Result
from common.signed import SignedRoster, read
from common.statement import PERSON_RECORDS
from common.words import counted, public_name

Parts = dict[str, object]


def promises(evidence: Evidence) -> bool:
    """Whether there is a promise to certify."""
    return evidence.result.private and not evidence.is_simulation


def certificate_of(
    evidence: Evidence, sites: Sequence[Spending], audits: Sequence[Audit], *, site: str = ""
) -> Certificate:
    """The certificate of the job or, with its name, of one ``site``.

    Args:
        evidence: of a run that promises something.
        sites: what each site of the result spent.
        audits: reports that were handed in.
        site: whose; empty for all.

    Raises:
        InvalidInput: the run promises nothing, or it has no such site.
        Refusal: an audit refutes it, or is of a claim or code that the evidence has not.
    """
    result = evidence.result
    if not promises(evidence):
        raise InvalidInput(f"job must promise something for a certificate, got {result.name}")
    chosen = [spent for spent in sites if site in ("", spent.promise.name)]
    if not chosen:
        raise InvalidInput(f"site must be one of the job's, got {site!r}")
    require_audits(audits, evidence)
    return identified(
        veiltune_certificate=1,
        scope="site" if site else "job",
        made_at=evidence.made_at,
        software=evidence.software,
        job=_job(evidence),
        promise=_promise(result, chosen),
        mechanism=_mechanism(result.privacy, chosen),
        counts=_counts(evidence),
        accountants=_accountants(result.privacy),
        sites=[_site(spent) for spent in chosen],
        known_to_several_sites=_together(result, sites),
        trust_model=[
            {"party": party, "sees": sees, "never_sees": never}
            for party, sees, never in assurances.parties(result)
        ],
        implementation={**assurances.IMPLEMENTATION, "self_checks": tuple(CHECKS)},
        exclusions=assurances.exclusions(result),
        budget_policy=_budget(evidence, chosen),
        utility=_utility(evidence),
        security_controls=assurances.SECURITY,
        audits=[audit.model_dump() for audit in audits],
        residual_risks=assurances.residual_risks(chosen, result.privacy.unit),
        signatures=_signatures(evidence, chosen),
    )


def number(figure: float | None) -> float | None:
    """A figure that JSON can hold; null is for no bound, and for an accountant that failed."""
    return figure if figure is not None and math.isfinite(figure) else None


def worst(sites: Sequence[Spending]) -> Spending:
    """The site that spent most."""
    return max(sites, key=lambda spent: spent.promise.epsilon or 0.0)


def _job(evidence: Evidence) -> Parts:
    job, result = evidence.job.job, evidence.result
    return {
        "name": result.name,
        "sha256": result.job_sha256,
        "operator": evidence.job.signer,
        "task": result.task,
        "description": job.job.description,
        "base": public_name(job.model.base),
        "base_sha256": job.model.sha256,
        "adapter_sha256": result.adapter_sha256,
        "vector_sha256": result.vector_sha256,
        "rounds_closed": result.last_round,
    }


def _promise(result: Result, sites: Sequence[Spending]) -> Parts:
    stated = result.privacy
    most = worst(sites).promise
    if most.epsilon is None or most.delta is None:
        raise InvalidInput(f"sites.{most.name}.epsilon must be given, got none")
    return {
        "definition": "(epsilon, delta)-differential privacy",
        "neighbours": stated.neighbours,
        "unit": stated.unit,
        "unit_means": dict(statement.mechanism(result))["Unit"],
        "unit_cap": stated.unit_cap,
        "epsilon": number(most.epsilon),
        "delta": most.delta,
        "shared_noise": None,
        "meaning": statement.meaning(most.epsilon, most.delta, stated.unit),
        "as_a_bet": statement.bet(most.epsilon, most.delta, stated.unit),
    }


def _mechanism(stated: PrivacyStatement, sites: Sequence[Spending]) -> Parts:
    clip_norm = stated.clip_norm or 0.0
    return {
        "name": "DP-SGD: Poisson-subsampled Gaussian",
        "clip_norm": clip_norm,
        "noise_multiplier": stated.noise_multiplier,
        "noise_deviation": stated.noise_multiplier * clip_norm,
        "sampling_scheme": stated.sampler,
        "sampling_rate": stated.sampling_rate,
        "steps_per_round": stated.local_steps,
        "most_steps": max(spent.promise.steps for spent in sites),
        "counts_noise_multiplier": stated.metrics_noise_multiplier,
    }


def _counts(evidence: Evidence) -> Parts | None:
    """The second mechanism, where the job has counts; at its share of delta."""
    job, result = evidence.job.job, evidence.result
    noise, stated = result.privacy.metrics_noise_multiplier, result.metrics
    delta = job.privacy.delta
    if job.metrics is None or noise is None or stated is None or delta is None:
        return None
    alone = job.metrics.share * delta
    return {
        "name": "Gaussian, rounded to whole numbers, on every count",
        "histograms": [one.name for one in stated.histograms],
        "hold_out": stated.hold_out,
        "share": job.metrics.share,
        "records_per_unit": stated.records_per_unit,
        "sensitivity": stated.sensitivity,
        "noise_multiplier": noise,
        "noise_deviation": stated.deviation,
        "epsilon": number(accounting.epsilon([GaussianSteps(1.0, noise, 1)], alone)),
        "delta": alone,
    }


def _accountants(stated: PrivacyStatement) -> list[Parts]:
    opacus = f"opacus {version('opacus')}"
    here = f"dp-accounting {version('dp-accounting')}"
    ran = stated.accountant_version
    reported = here if here == ran else f"{here}; the run's own was {ran}"
    return [
        {
            "name": "pld",
            "software": reported,
            "role": "reported: privacy loss distributions (Doroshenko et al. 2022), an upper bound",
        },
        {
            "name": "prv",
            "software": opacus,
            "role": f"checks it: another method in other hands (Gopi et al. 2021), at most "
            f"{crosscheck.PRV_ERROR} above",
        },
        {
            "name": "rdp",
            "software": opacus,
            "role": "bounds both from above (Mironov et al. 2019); at few steps by far",
        },
    ]


def _site(spent: Spending) -> Parts:
    promise, three = spent.promise, figures(spent)
    return {
        "name": promise.name,
        "population": promise.population,
        "steps": promise.steps,
        "steps_signed": min(spent.signed, promise.steps),
        "rounds_asked": spent.asked,
        "last_word_shown": spent.is_ended,
        "releases_of_counts": spent.counts,
        "epsilon": number(promise.epsilon),
        "delta": promise.delta,
        "figures": {
            "pld": number(three.pld),
            "prv": number(three.prv),
            "rdp": number(three.rdp),
            "doubt": three.doubt,
        },
        "person_records": PERSON_RECORDS,
        "person_epsilon": number(promise.person_epsilon),
        "lifetime": _lifetime(spent),
    }


def _lifetime(spent: Spending) -> Parts:
    cap = spent.cap
    return {
        "epsilon_shown": number(spent.promise.epsilon),
        "delta_shown": spent.promise.delta,
        "cap_epsilon": None if cap is None else cap.max_epsilon,
        "cap_delta": None if cap is None else cap.delta,
        "cap_accountant": None if cap is None else cap.name,
        "cap_figure": number(spent.cap_figure),
        "ledger_entries": spent.entries,
        "entries_shown": spent.shown,
    }


def _together(result: Result, sites: Sequence[Spending]) -> list[Parts]:
    return [
        {"sites": count, "epsilon": number(epsilon), "delta": result.privacy.delta}
        for count, epsilon in together(sites)
    ]


def _budget(evidence: Evidence, sites: Sequence[Spending]) -> Parts:
    privacy = evidence.job.job.privacy
    return {
        "job_epsilon": privacy.epsilon,
        "job_delta": privacy.delta,
        "words": (*assurances.BUDGET, *assurances.caps(sites)),
    }


def _utility(evidence: Evidence) -> Parts:
    job, result = evidence.job.job, evidence.result
    classes = [row for row in result.final.classes if row.support]
    low = min(classes, key=lambda row: (row.f1, row.label), default=None)
    return {
        "measure": result.measure,
        "score": result.final.score,
        "macro_f1": result.final.macro_f1,
        "worst_class": None if low is None else low.label,
        "worst_class_f1": None if low is None else low.f1,
        "data": f"{public_name(job.evaluation.data)} ({job.evaluation.split})",
        "disjoint_because": job.evaluation.disjoint_because,
        "disjointness": statement.disjointness(job),
        "words": assurances.utility(result),
    }


def _signatures(evidence: Evidence, sites: Sequence[Spending]) -> list[Parts]:
    found = [
        _signature("the job manifest", "the operator", "Ed25519", "job.json", evidence.job.signer)
    ]
    if evidence.roster:
        root = read(SignedRoster, evidence.roster).root
        who = ("the sites and their keys", "the federation's root")
        found.append(_signature(*who, "ECDSA P-256", ROSTER, root))
    leaves = sorted({fingerprint(s.chain.encode()) for s in evidence.receipts})
    rounds = counted(len(evidence.rounds), "round receipt")
    if evidence.counting:
        rounds += " and that of the counts"
    found += [
        _signature(rounds, "the server's certificate", "ECDSA P-256", "rounds/", leaf)
        for leaf in leaves
    ]
    for spent in sites:
        name = spent.promise.name
        what = f"charges and ledger heads of {name}"
        found += [
            _signature(what, f"site {name}", "ECDSA P-256", "rounds/", key) for key in spent.keys
        ]
        if name in evidence.certificates:
            leaf = fingerprint(evidence.certificates[name])
            where = f"sites/{name}/"
            by = "the federation's authority"
            found.append(_signature(f"certificate of {name}", by, "ECDSA P-256", where, leaf))
    return found


def _signature(what: str, by: str, algorithm: str, where: str, key: str) -> Parts:
    return {"what": what, "by": by, "algorithm": algorithm, "where": where, "key": key}
