"""The cover: what lies in the bundle, and which rule somebody may want to read each file for.

It maps; it claims no compliance. Not covered: other rules; whether a rule applies.
"""

from common.audit.certification import promises, worst
from common.audit.evidence import Evidence
from common.audit.spending import Spending
from common.documents.sheet import Bullets, Code, Figure, Prose, Sheet, Table, Terms, section
from common.documents.standing import page
from common.figures import NOTHING, bound, power

# File; what it is; HIPAA 45 CFR 164.312; GDPR Art. 35; EU AI Act Art. 12; SR 11-7.
_NONE = NOTHING
MAPPED = (
    (
        "certificate (.json, .html, .pdf)",
        _NONE,
        "35(7)(c), (d)",
        _NONE,
        "validation: soundness and limits",
    ),
    ("model-card.md", _NONE, "35(7)(a)", _NONE, "documentation: use and limits"),
    ("sites/.../data-card", _NONE, "35(7)(a), (b)", _NONE, "development: data"),
    ("receipts.html, rounds/", "(b), (c)(1)", "35(7)(d)", "12(1), 12(2)(c)", "ongoing monitoring"),
    ("policies.html", "(a)(1), (d), (e)(1)", "35(7)(d)", _NONE, "governance and controls"),
    ("refusals.html", "(b)", _NONE, "12(2)(a)", "ongoing monitoring"),
    ("sbom.cdx.json", _NONE, "35(7)(d)", _NONE, "inventory; vendor software"),
    ("job.json, manifest.json, .sig", "(c)(1), (d)", "35(7)(a)", "12(1)", "inventory"),
    ("roster.json", "(a)(1), (d)", "35(7)(d)", _NONE, "governance and controls"),
    ("result.json", _NONE, _NONE, "12(2)(b)", "outcomes analysis"),
)

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
    check = Terms(
        (
            ("Check all of it", Code("fl-audit verify evidence.zip --root root.pem")),
            ("Get the root from", "your own site's home, or the operator by another channel"),
            (
                "Job id (sha256 of the unsigned manifest, as fl-audit prints)",
                Code(evidence.result.job_sha256),
            ),
            ("Adapter's file (sha256)", Code(evidence.result.adapter_sha256)),
            ("Its numbers, as the kept round's receipt names them", _numbers(evidence)),
        )
    )
    return page(
        evidence,
        "evidence of a training job",
        (
            section("What this is", Prose(_about(evidence))),
            section("Sites", Bullets(tuple(_site(evidence, spent) for spent in sites))),
            section("How to check it without believing us", check),
            section(
                "What lies here, and what it may be read for",
                Table(heads, MAPPED, frozenset(), (44, 32, 28, 28, 38)),
            ),
            section("No compliance is claimed", Prose(_NO_CLAIM)),
            section("What the points are about", Terms(_ASKS)),
        ),
        figures=_figures(evidence, sites, certificate),
    )


def _numbers(evidence: Evidence) -> Code:
    return Code(evidence.result.vector_sha256 or NOTHING)


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
        Figure("protects one", evidence.result.privacy.unit, "lead"),
        Figure("certificate", certificate),
    )


def _site(evidence: Evidence, spent: Spending) -> str:
    name, steps = spent.promise.name, f"{spent.promise.steps:,} steps"
    if not promises(evidence):
        return f"{name}: {steps}, no promise"
    epsilon, delta = bound(spent.promise.epsilon), power(spent.promise.delta)
    return f"{name}: epsilon {epsilon} at delta {delta}, {steps}; sites/{name}/certificate.pdf"
