"""The privacy certificate for people: what it promises on its first page, then the rest.

Everything is taken from the certificate as it stands in JSON. Not covered: seals.
"""

from common.audit.certificate import Audit, Certificate, SiteSpent
from common.config import RECORD
from common.words import counted
from server.documents.assurances import ADVERSARY
from server.documents.sheet import (
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
from server.report.figures import NOTHING, bound, plain, power, share

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
            _sites(certificate),
            _several(certificate),
            _lifetimes(certificate),
            _mechanism(certificate),
            *_counts(certificate),
            _accountants(certificate),
            _trust(certificate),
            _implementation(certificate),
            section("Who may spend how much", Bullets(certificate.budget_policy.words)),
            _utility(certificate),
            _audits(certificate.audits),
            section("What remains a risk", Bullets(certificate.residual_risks)),
            section("Security", Bullets(certificate.security_controls)),
            _signatures(certificate),
        ),
        made_at=certificate.made_at,
        foot=f"{certificate.id} · {certificate.job.name} · job {certificate.job.sha256[:16]}",
    )


def figure(epsilon: float | None) -> str:
    """An epsilon of the certificate, rounded up; null is for no bound."""
    return "no bound" if epsilon is None else bound(epsilon)


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
        Figure("protects one", promise.unit, "lead"),
        Figure(whose, _names(certificate.sites)),
        Figure("rounds closed", f"{certificate.job.rounds_closed:,}"),
        Figure("steps at most", f"{certificate.mechanism.most_steps:,}"),
    )


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
    ]
    return section("Whom it covers", Terms(tuple(pair for pair in pairs if pair[1])))


_TASKS = {"seq-cls": "to classify texts", "token-cls": "to tag words"}


def _sites(certificate: Certificate) -> Section:
    unit = certificate.promise.unit
    person = certificate.sites[0].person_records
    heads = (
        "Site",
        "Declared population",
        "Steps charged",
        "of them signed",
        "ε",
        f"ε, {person} records",
        "δ",
    )
    rows = tuple(
        (
            site.name,
            f"{site.population:,}",
            f"{site.steps:,}",
            f"{site.steps_signed:,}",
            figure(site.epsilon),
            figure(site.person_epsilon),
            power(site.delta),
        )
        for site in certificate.sites
    )
    note = (
        "Steps that were charged, whether or not an update came of them; signed: by rows of the "
        "site's own ledger. The rest are rounds that it was asked for and did not answer, or that "
        f"were not closed, counted as charged. ε is about one {unit}; ε, {person} records is about "
        f"somebody with {person} records at that site"
        + (", who is more than one unit." if unit == RECORD else ", who is one unit here.")
    )
    numeric = frozenset(range(1, len(heads)))
    table = Table(heads, rows, numeric, (34, 26, 18, 18, 18, 26, 20))
    return section("What each site spent", table, Prose(note), on_new_page=True)


def _several(certificate: Certificate) -> Section:
    unit = certificate.promise.unit
    rows = tuple(
        (counted(row.sites, "site"), figure(row.epsilon), power(row.delta))
        for row in certificate.known_to_several_sites
    )
    words = (
        "A person spends at every site that has records of them. One "
        f"{unit} at each of the sites that spent most:"
    )
    table = Table(("Known to", "ε together", "δ"), rows, frozenset({1, 2}), (80, 45, 45))
    return section("Somebody known to several sites", Prose(words), table)


def _lifetimes(certificate: Certificate) -> Section:
    heads = (
        "Site",
        "This job",
        "Cap of its lifetime",
        "by the cap's count",
        "Ledger entries",
        "of them shown",
    )
    rows = tuple(_lifetime(site) for site in certificate.sites)
    words = (
        "A site's records may serve several jobs, and epsilon adds up over all of them. This is "
        "what the evidence shows of it: the job's own charges, the cap in the first entry of the "
        "site's ledger, and how many entries the ledger has in all. What the entries that are not "
        "shown say is in the ledger's export, which the site can have checked (fl-audit ledger)."
    )
    table = Table(heads, rows, frozenset({1, 3, 4, 5}), (26, 20, 58, 24, 22, 20))
    return section("Over the life of the data", Prose(words), table)


def _lifetime(site: SiteSpent) -> tuple[str, ...]:
    life = site.lifetime
    cap = "none that this evidence tells"
    if life.cap_epsilon is not None:
        cap = f"ε {plain(life.cap_epsilon)} at δ {power(life.cap_delta)}, {life.cap_accountant}"
    return (
        site.name,
        f"ε {figure(life.epsilon_shown)}",
        cap,
        NOTHING if life.cap_epsilon is None else figure(life.cap_figure),
        NOTHING if life.ledger_entries is None else f"{life.ledger_entries:,}",
        f"{life.entries_shown:,}",
    )


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
    unit, charged = certificate.promise.unit, sum(site.counts for site in certificate.sites)
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


def _accountants(certificate: Certificate) -> Section:
    software = tuple((a.name.upper(), a.software, a.role) for a in certificate.accountants)
    rows = tuple(
        (
            site.name,
            *(_exact(value) for value in (site.figures.pld, site.figures.prv, site.figures.rdp)),
            site.figures.doubt or "agree",
        )
        for site in certificate.sites
    )
    heads = ("Site", "ε by PLD", "ε by PRV", "ε by RDP", "Verdict")
    return section(
        "Three accountants",
        Table(("Accountant", "Software", "Role"), software, frozenset(), (24, 46, 100)),
        Table(heads, rows, frozenset({1, 2, 3}), (40, 28, 28, 28, 46)),
    )


def _exact(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


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
    return section("What the adapter is worth", Terms(tuple(pairs)), Prose(use.words))


def _audits(audits: tuple[Audit, ...]) -> Section:
    title = "Attacks that were tried"
    if not audits:
        return section(
            title,
            Prose(
                "No report of an audit was handed in with this evidence. fl-audit mechanism, "
                "canary and membership make such reports on public or synthetic records."
            ),
        )
    rows = tuple(
        (
            audit.name,
            f"{audit.lower_bound:.3f}",
            f"{audit.significance:g}",
            figure(audit.epsilon),
            audit.verdict,
        )
        for audit in audits
    )
    heads = ("Audit", "ε is at least", "but for a chance of", "ε claimed", "Verdict")
    note = (
        "A lower bound that stays under the claim is consistent with it and measures nothing: an "
        "attack that found little may have been weak."
    )
    table: Block = Table(heads, rows, frozenset({1, 2, 3}), (40, 28, 32, 24, 46))
    return section(title, table, Prose(note))


def _signatures(certificate: Certificate) -> Section:
    rows = tuple(
        (row.what, f"{row.by}, {row.algorithm}", row.where, Code(row.key))
        for row in certificate.signatures
    )
    words = (
        "This document is listed by its sha256 in the bundle's manifest.json, which the server's "
        f"key signs. Its id, {certificate.id}, follows from its content: certificate.json beside "
        "it holds the same, and fl-audit verify checks the whole bundle against the federation's "
        "root."
    )
    heads = ("Signed", "by", "in the bundle", "key or certificate (sha256)")
    return section("Signatures", Prose(words), Table(heads, rows, frozenset(), (42, 38, 36, 54)))
