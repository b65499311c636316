"""Whether a job's documents may promise anything, and what all of them have in common."""

from common import statement
from common.audit.certification import promises
from common.audit.evidence import Evidence
from common.documents.sheet import Alarm, Figure, Section, Sheet


def alarm(evidence: Evidence) -> Alarm | None:
    """What every document of a run without a promise says first."""
    if promises(evidence):
        return None
    if evidence.is_simulation or evidence.result.privacy.seeded:
        return Alarm(
            "SIMULATION: nothing is promised",
            statement.warning(evidence.result)
            or "Noise and sampling can be repeated by whoever has the seed. There is no "
            "certificate for such a run, and no figure of it protects anybody.",
        )
    return Alarm("Not private: nothing is promised", statement.warning(evidence.result) or "")


def page(
    evidence: Evidence,
    kind: str,
    sections: tuple[Section, ...],
    *,
    title: str = "",
    figures: tuple[Figure, ...] = (),
    is_tight: bool = False,
) -> Sheet:
    """A sheet with the facts that every document of a job names."""
    result = evidence.result
    return Sheet(
        kind=kind,
        title=title or result.name,
        facts=(
            f"job {result.job_sha256[:16]}",
            f"made {evidence.made_at.replace('T', ' ').removesuffix('Z')} UTC",
            evidence.software,
        ),
        figures=figures,
        sections=sections,
        made_at=evidence.made_at,
        foot=f"{result.name} · job {result.job_sha256[:16]} · {kind}",
        alarm=alarm(evidence),
        is_tight=is_tight,
    )
