"""The privacy certificate for people: what it promises on its first page, then the rest.

Everything is taken from the certificate as it stands in JSON. Not covered: seals.
"""

from common.audit.assurances import ADVERSARY
from common.audit.certificate import Certificate
from common.audit.certificate_parts import Audit, SiteSpent
from common.documents import certificate_tables as tables
from common.documents.certificate_tables import figure
from common.documents.sheet import (
    Block,
    Bullets,
    Code,
    Figure,
    Prose,
    Section,
    Sheet,
    Table,
    Terms,
    prose,
    section,
)
from common.figures import power, share
from common.statement import protected
from common.words import counted

_RISKS_FIRST = "Not covered by this promise"


def certificate_sheet(certificate: Certificate) -> Sheet:
    """The document; its first page says epsilon, unit, who, and what is not covered."""
    return Sheet(
        kind="differential privacy certificate",
        title=_title(certificate),
        facts=(
            f"Certificate {certificate.id}",
            f"made {certificate.made_at.replace('T', ' ').removesuffix('Z')} UTC",
            certificate.software,
            "fields after NIST SP 800-226 (2025)",
        ),
        figures=_figures(certificate),
        sections=(
            _promise(certificate),
            _who(certificate),
            section(_RISKS_FIRST, Bullets(certificate.exclusions)),
            tables.sites(certificate),
            tables.several(certificate),
            tables.lifetimes(certificate),
            _mechanism(certificate),
            *_counts(certificate),
            tables.accountants(certificate),
            _trust(certificate),
            _implementation(certificate),
            section("Who may spend how much", Bullets(certificate.budget_policy.words)),
            _utility(certificate),
            _audits(certificate.audits),
            section("What remains a risk", Bullets(certificate.residual_risks)),
            section("Security", Bullets(certificate.security_controls)),
            tables.signatures(certificate),
        ),
        made_at=certificate.made_at,
        foot=f"{certificate.id} · {certificate.job.name} · job {certificate.job.sha256[:16]}",
    )


def _title(certificate: Certificate) -> str:
    if certificate.scope == "job":
        return certificate.job.name
    return f"{certificate.sites[0].name} in {certificate.job.name}"


def _figures(certificate: Certificate) -> tuple[Figure, ...]:
    promise = certificate.promise
    whose = "site" if len(certificate.sites) == 1 else "sites"
    return (
        Figure("epsilon, at most", f"ε {figure(promise.epsilon)}", "cost"),
        Figure("delta", f"δ {power(promise.delta)}", "cost"),
        whom(promise.unit),
        Figure(whose, _names(certificate.sites)),
        Figure("rounds closed", f"{certificate.job.rounds_closed:,}"),
        Figure("steps at most", f"{certificate.mechanism.most_steps:,}"),
    )


def whom(unit: str) -> Figure:
    """The unit as a figure: one patient, say, and what that means."""
    noun, meaning = protected(unit)
    return Figure(f"protects one ({meaning})" if meaning else "protects one", noun, "lead")


def _names(sites: tuple[SiteSpent, ...]) -> str:
    return sites[0].name if len(sites) == 1 else str(len(sites))


def _promise(certificate: Certificate) -> Section:
    promise = certificate.promise
    shared = promise.shared_noise
    also = (
        ()
        if shared is None
        else (
            f"Noise is shared between sites. If that fails ({shared.rests_on}), what holds is "
            f"epsilon {figure(shared.epsilon)} at delta {power(shared.delta)}, by a site's own "
            "noise.",
        )
    )
    return section("What is promised", *prose((promise.meaning, promise.as_a_bet, *also)))


def _who(certificate: Certificate) -> Section:
    job, promise = certificate.job, certificate.promise
    sites = ", ".join(site.name for site in certificate.sites)
    pairs = [
        ("Unit of privacy", promise.unit_means),
        ("Site" if len(certificate.sites) == 1 else "Sites", sites),
        ("What was trained", f"LoRA adapter on {job.base}, {_TASKS[job.task]}"),
        ("Description", job.description),
        ("Against whom", ADVERSARY),
        ("Job (sha256)", Code(job.sha256)),
        ("Adapter's file (sha256)", Code(job.adapter_sha256)),
        ("Its numbers (sha256)", Code(job.vector_sha256 or "")),
    ]
    return section("Whom it covers", Terms(tuple(pair for pair in pairs if pair[1])))


_TASKS = {"seq-cls": "to classify texts", "token-cls": "to tag words"}


def _mechanism(certificate: Certificate) -> Section:
    stated, promise = certificate.mechanism, certificate.promise
    return section(
        "Mechanism and parameters",
        Terms(
            (
                ("Mechanism", f"{stated.name}, added at each site"),
                ("Neighbouring data", "differ by one unit, added or removed"),
                ("Contribution bound", _contribution(certificate)),
                ("Noise multiplier", f"{stated.noise_multiplier:.6g}"),
                ("Noise on a step's sum", f"standard deviation {stated.noise_deviation:.6g}"),
                (
                    "Sampling",
                    f"Poisson, each {promise.unit} with {stated.sampling_rate:.6g} a step",
                ),
                ("Steps a round", f"{stated.steps_per_round:,}"),
                ("Steps in all", f"at most {stated.most_steps:,} at a site"),
            )
        ),
    )


def _counts(certificate: Certificate) -> tuple[Section, ...]:
    """The second mechanism; nothing where no counts left a site."""
    stated = certificate.counts
    if stated is None:
        return ()
    unit, charged = (
        certificate.promise.unit,
        sum(site.releases_of_counts for site in certificate.sites),
    )
    alone = f"ε {figure(stated.epsilon)} at δ {power(stated.delta)}"
    terms = Terms(
        (
            ("Mechanism", stated.name),
            ("Counted", ", ".join(stated.histograms)),
            ("Of", f"{stated.hold_out:.0%} of a site's units, which trained nothing"),
            ("Contribution bound", f"{counted(stated.records_per_unit, 'record')} of a {unit}"),
            ("Sensitivity", f"{stated.sensitivity:.6g} in L2, all histograms together"),
            ("Noise multiplier", f"{stated.noise_multiplier:.6g}"),
            ("Noise on a count", f"standard deviation {stated.noise_deviation:.6g}"),
            ("By themselves", f"{alone}: {stated.share:.0%} of the job's"),
            ("Charged to", counted(charged, "site")),
        )
    )
    words = "Sent once, after the last round. Every ε of a site so charged includes them."
    return (section("Counts of the sites' own records", terms, Prose(words)),)


def _contribution(certificate: Certificate) -> str:
    promise = certificate.promise
    words = f"L2 norm {certificate.mechanism.clip_norm:.6g} a step and {promise.unit}"
    if promise.unit_cap is None:
        return words
    return (
        f"{words}, whose at most {counted(promise.unit_cap, 'record')} of a step are summed first"
    )


def _trust(certificate: Certificate) -> Section:
    rows = tuple((row.party, row.sees, row.never_sees) for row in certificate.trust_model)
    heads = ("Who", "sees", "never sees")
    return section("Who sees what", Table(heads, rows, frozenset(), (38, 72, 60)))


def _implementation(certificate: Certificate) -> Section:
    made = certificate.implementation
    checks = (
        f"{counted(len(made.self_checks), 'check')} walk training's own path on public records "
        "before a site's first release of the job, and refuse to train when one fails: "
        f"{', '.join(made.self_checks)}."
    )
    return section(
        "How it is made",
        Terms(
            (
                ("Randomness", made.randomness),
                ("Floating point", made.floating_point),
                ("Lattice", made.lattice),
                ("Side channels", made.side_channels),
                ("Self-checks", checks),
            )
        ),
    )


def _utility(certificate: Certificate) -> Section:
    use = certificate.utility
    pairs = [(use.measure.capitalize(), share(use.score)), ("Macro-F1", share(use.macro_f1))]
    if use.worst_class is not None:
        pairs.append(("Worst class", f"{use.worst_class}: F1 {share(use.worst_class_f1)}"))
    pairs.append(("Hold-out", use.data))
    if use.disjointness:
        pairs.append(("Units in both", use.disjointness))
    return section("What the adapter is worth", Terms(tuple(pairs)), Prose(use.words))


def _audits(audits: tuple[Audit, ...]) -> Section:
    title = "Attacks that were tried"
    if not audits:
        return section(
            title,
            Prose(
                "No report of an audit was handed in with this evidence. fl-audit mechanism and "
                "canary make such reports on public or synthetic records."
            ),
        )
    rows = tuple(
        (
            f"{audit.name} at {audit.site}",
            f"ε {audit.lower_bound:.3f}",
            f"{audit.significance:g} over {counted(audit.runs, 'run')}",
            f"ε {figure(audit.epsilon)}",
            audit.verdict,
        )
        for audit in audits
    )
    heads = ("Audit", "Refuted below", "but for a chance of", "Claim audited", "Verdict")
    note = (
        "Both figures are the ε of all steps of the plan, whatever part of them a site was "
        "charged: they are compared with each other, and with no other ε of this document. A claim "
        "below the first would have been refuted. A claim above it is consistent with what was "
        "seen, and nothing was measured: an attack that found little may have been weak."
    )
    table: Block = Table(heads, rows, frozenset({1, 2, 3}), (40, 28, 32, 24, 46))
    return section(title, table, Prose(note))
