"""The cover: what lies in the bundle, and which rule somebody may want to read each file for.

It maps; it claims no compliance. Not covered: other rules; whether a rule applies.
"""

from collections.abc import Sequence

from common.audit.certification import promises, worst
from common.audit.evidence import Evidence
from common.audit.spending import Spending
from common.documents.certificate_sheet import whom
from common.documents.policies import JOB_ID
from common.documents.sheet import Block, Code, Figure, Link, Prose, Sheet, Table, Terms, section
from common.documents.standing import page
from common.figures import NOTHING, bound, power
from common.words import counted

# File and where it leads; HIPAA 45 CFR 164.312; GDPR Art. 35; EU AI Act Art. 12; SR 11-7.
_NONE = NOTHING
_CERTIFICATE, _ROSTER = "certificate (html, json, pdf)", "roster.json"
MAPPED = (
    (
        Link(_CERTIFICATE, "certificate.html"),
        _NONE,
        "35(7)(c), (d)",
        _NONE,
        "validation: soundness and limits",
    ),
    (
        Link("model-card.md", "model-card.md"),
        _NONE,
        "35(7)(a)",
        _NONE,
        "documentation: use and limits",
    ),
    ("sites/.../data-card", _NONE, "35(7)(a), (b)", _NONE, "development: data"),
    (
        Link("receipts.html, rounds/", "receipts.html"),
        "(b), (c)(1)",
        "35(7)(d)",
        "12(1), 12(2)(c)",
        "ongoing monitoring",
    ),
    (
        Link("policies.html", "policies.html"),
        "(a)(1), (d), (e)(1)",
        "35(7)(d)",
        _NONE,
        "governance and controls",
    ),
    (Link("refusals.html", "refusals.html"), "(b)", _NONE, "12(2)(a)", "ongoing monitoring"),
    (
        Link("sbom.cdx.json", "sbom.cdx.json"),
        _NONE,
        "35(7)(d)",
        _NONE,
        "inventory; vendor software",
    ),
    (
        Link("job.json, manifest.json, .sig", "../job.json"),
        "(c)(1), (d)",
        "35(7)(a)",
        "12(1)",
        "inventory",
    ),
    (Link(_ROSTER, "../roster.json"), "(a)(1), (d)", "35(7)(d)", _NONE, "governance and controls"),
    (Link("result.json", "../result.json"), _NONE, _NONE, "12(2)(b)", "outcomes analysis"),
)
_MOST_SITES = 8  # that a page has room for; the others' certificates lie in sites/

_ASKS = (
    (
        "HIPAA 45 CFR 164.312",
        "(a)(1) access, (b) audit controls, (c)(1) integrity, (d) authentication, (e)(1) "
        "transmission",
    ),
    (
        "GDPR Art. 35(7)",
        "(a) description, (b) necessity, (c) risks, (d) measures of an impact assessment",
    ),
    (
        "EU AI Act Art. 12",
        "(1) automatic logs, (2)(a) risks, (2)(b) monitoring after release, (2)(c) operation",
    ),
    ("SR 11-7", "model development, validation, monitoring, governance at banks (US)"),
)

_NO_CLAIM = (
    "A reference says that the file may be of use to whoever works on that point, and no more. "
    "Nothing here says that anybody complies with anything: that depends on the institution, its "
    "processes and its lawyers. None of these rules asks for an epsilon."
)


def cover_sheet(evidence: Evidence, sites: tuple[Spending, ...], certificate: str) -> Sheet:
    """The page; ``certificate`` is its id, empty where the run gets none."""
    heads = ("File", "HIPAA 164.312", "GDPR 35", "AI Act 12", "SR 11-7")
    result = evidence.result
    check = Terms(
        (
            ("Check all of it", Code("fl-audit verify evidence.zip --root root.pem")),
            ("Get the root from", "your own site's home, or the operator by another channel"),
            (JOB_ID, Code(result.job_sha256)),
            ("Adapter's file (sha256)", Code(result.adapter_sha256)),
            ("Its numbers (sha256)", Code(result.vector_sha256 or NOTHING)),
        )
    )
    return page(
        evidence,
        "evidence of a training job",
        (
            section("What this is", Prose(_about(evidence))),
            section("Sites", *_sites(evidence, sites)),
            section("How to check it without believing us", check),
            section(
                "What lies here, and what it may be read for",
                Table(heads, _mapped(evidence), frozenset(), (44, 27, 24, 25, 50)),
            ),
            section("No compliance is claimed", Prose(_NO_CLAIM), Terms(_ASKS)),
        ),
        figures=_figures(evidence, sites, certificate),
        is_tight=True,
    )


def _mapped(evidence: Evidence) -> tuple[tuple[str, ...], ...]:
    """The files that are here; one that is not leads nowhere."""
    away = set() if evidence.roster else {_ROSTER}
    away |= set() if promises(evidence) else {_CERTIFICATE}
    return tuple((f"{row[0]}: none here", *row[1:]) if row[0] in away else row for row in MAPPED)


def _about(evidence: Evidence) -> str:
    said = evidence.job.job.job.description
    words = (
        f"{len(evidence.result.sites)} sites fine-tuned one language model in "
        f"{evidence.result.last_round:,} rounds; their records stayed with them. This bundle holds "
        "what an auditor needs to check what that cost the people in the records."
    )
    return f"{said} {words}" if said else words


def _figures(
    evidence: Evidence, sites: tuple[Spending, ...], certificate: str
) -> tuple[Figure, ...]:
    if not promises(evidence):
        return ()
    most = worst(sites).promise
    return (
        Figure("epsilon, at most", f"ε {bound(most.epsilon)}", "cost"),
        whom(evidence.result.privacy.unit),
        Figure("certificate", certificate),
    )


def _sites(evidence: Evidence, sites: tuple[Spending, ...]) -> tuple[Block, ...]:
    """What each spent, the most first, with where its certificate is."""
    spent = sorted(sites, key=lambda one: -(one.promise.epsilon or 0.0))
    some, more = spent[:_MOST_SITES], len(spent) - _MOST_SITES
    table = _promised(some) if promises(evidence) else _unpromised(some)
    return (
        (table, Prose(f"And {counted(more, 'site')} that spent no more.")) if more > 0 else (table,)
    )


def _promised(spent: Sequence[Spending]) -> Table:
    rows = tuple(
        (
            one.promise.name,
            bound(one.promise.epsilon),
            power(one.promise.delta),
            f"{one.promise.steps:,}",
            Link("certificate", f"sites/{one.promise.name}/certificate.html"),
        )
        for one in spent
    )
    heads = ("Site", "ε, at most", "δ", "Steps", "Its own documents")
    return Table(heads, rows, frozenset({1, 2, 3}), (46, 24, 24, 24, 52))


def _unpromised(spent: Sequence[Spending]) -> Table:
    rows = tuple(
        (
            one.promise.name,
            f"{one.promise.steps:,}, no promise",
            Link("data card", f"sites/{one.promise.name}/data-card.html"),
        )
        for one in spent
    )
    return Table(("Site", "Steps", "Its own documents"), rows, frozenset(), (60, 58, 52))
