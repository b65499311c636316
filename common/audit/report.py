"""An empirical audit's result as a document that a gate can read.

An audit never finds an epsilon: it finds the claim refuted, or consistent with what was seen. The
bound in here is the least epsilon that the claim would have to state.

Not covered: who ran the audit; a report is as true as the machine that it was made on.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from common.config import Flag, Name, Number, Section, Sha256, Whole, parse
from common.errors import InvalidInput, Refusal
from common.files import write_file
from common.strict_json import read_json

MAX_REPORT_BYTES = 64 * 1024
AuditName = Literal["mechanism", "canary"]
Verdict = Literal["consistent with the claim", "refuted"]
CONSISTENT: Verdict = "consistent with the claim"
REFUTED: Verdict = "refuted"
# What an audit ran on: only what anybody may read may go anywhere.
Records = Literal["public", "private"]


class AuditReport(Section):
    """What an audit found.

    Attributes:
        veiltune_audit_report: 1, the version of this form.
        name: which audit.
        job_sha256: the job whose mechanism was audited.
        code_sha256: the code that ran, as ``common/code.py`` hashes it.
        site: whose declared population counted.
        epsilon: what the job claims for all its steps, recomputed from its parameters.
        delta: of the claim.
        lower_bound: the least epsilon of the whole job that is not refuted.
        significance: how often a true claim is refuted, over all ``runs`` together.
        runs: audits of this claim, this one included, among which significance is shared.
        verdict: refuted where ``lower_bound`` exceeds ``epsilon``.
        records: whether results are functions of private records, and stay where they are.
        preregistration_sha256: of the document that fixed the guesses; empty where none has to.
        found: the audit's own figures.
    """

    veiltune_audit_report: Literal[1] = 1
    name: AuditName
    job_sha256: Sha256
    code_sha256: Sha256
    site: Name
    epsilon: Number = Field(ge=0)
    delta: Number = Field(gt=0, lt=1)
    lower_bound: Number = Field(ge=0)
    significance: Number = Field(gt=0, lt=1)
    runs: Whole = Field(ge=1, le=100_000)
    verdict: Verdict
    records: Records
    preregistration_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?\z")
    found: dict[str, Number | Flag] = Field(default_factory=dict, max_length=64)

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if self.verdict != verdict_of(self.lower_bound, self.epsilon):
            raise ValueError(
                f"verdict must be {verdict_of(self.lower_bound, self.epsilon)!r} at a bound of "
                f"{self.lower_bound:g} and a claim of {self.epsilon:g}, got {self.verdict!r}"
            )
        return self

    def to_bytes(self) -> bytes:
        """JSON, indented for people."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    def require_public(self) -> None:
        """Refuse to hand on what is a function of private records.

        Raises:
            Refusal: it is.
        """
        if self.records != "public":
            raise Refusal(
                "audit report must be on public records to leave its site, got one on private ones"
            )


def verdict_of(lower_bound: float, epsilon: float) -> Verdict:
    """What a bound says of a claim."""
    return REFUTED if lower_bound > epsilon else CONSISTENT


def read_report(path: Path) -> AuditReport:
    """Read a report of at most 64 KiB.

    Raises:
        InvalidInput: missing, too large, not of this form, or a verdict that its bound denies.
    """
    found = read_json(path, max_bytes=MAX_REPORT_BYTES)
    if not isinstance(found, dict):
        raise InvalidInput(f"{path.name} must be a JSON object, got {type(found).__name__}")
    return parse(AuditReport, found, path.name)


def write_report(path: Path, report: AuditReport) -> None:
    """Put a report where it was asked for, and never over another: every run counts.

    Raises:
        InvalidInput: there is a file already.
    """
    write_file(path, report.to_bytes(), overwrite=False)
