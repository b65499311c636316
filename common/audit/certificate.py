"""The privacy certificate of a job, as JSON: what NIST SP 800-226 (2025) asks of a claim.

Its schema is ``common/audit/schemas/certificate.schema.json``. Every number in it can be computed
again from the signed rows beside it; null stands where there is no number, as for no bound at all.

Not covered: what it must say (common/audit/certification.py); signatures over it, which the
bundle's manifest carries; whether a report of an audit is true.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import rfc8785
from pydantic import ConfigDict, Field, StringConstraints, model_validator

from common.audit.recompute import TOLERANCE
from common.audit.report import AuditName, Verdict, verdict_of
from common.config import Name, Section, Sha256, TaskName, parse
from common.errors import InvalidInput
from common.privacy.entries import Stamp
from common.strict_json import parse_json

MAX_CERTIFICATE_BYTES = 16 * 1024 * 1024

ID_PATTERN = r"VT(-[0-9a-f]{4}){3}"
CertificateId = Annotated[str, StringConstraints(pattern=rf"^{ID_PATTERN}\z")]
Text = Annotated[str, StringConstraints(max_length=4000)]
Epsilon = Annotated[float, Field(ge=0)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Sentences = Annotated[tuple[Text, ...], Field(strict=False, max_length=10_100)]


class _Part(Section):
    """A number is a number here, not a string that looks like one."""

    model_config = ConfigDict(strict=True)


class JobNamed(_Part):
    """Which job: the manifest's sha256 names it; ``operator`` is the Ed25519 key that signed it."""

    name: Name
    sha256: Sha256
    operator: Sha256
    task: TaskName
    description: Text
    base: Text
    base_sha256: Sha256
    adapter_sha256: Sha256
    rounds_closed: Count


class SharedNoise(_Part):
    """A second epsilon, where sites share the noise: what holds if one link of it fails.

    ``epsilon`` is from the site's own noise alone; ``rests_on`` says what must hold for the first.
    """

    epsilon: Epsilon | None
    delta: Delta
    rests_on: Text


class Promise(_Part):
    """The claim itself, for the site that spent most; ``epsilon`` null: no bound."""

    definition: Literal["(epsilon, delta)-differential privacy"]
    neighbours: Literal["add-or-remove-one"]
    unit: Name
    unit_means: Text
    unit_cap: Annotated[int, Field(ge=1)] | None
    epsilon: Epsilon | None
    delta: Delta
    shared_noise: SharedNoise | None
    meaning: Text
    as_a_bet: Text


class Mechanism(_Part):
    """Enough to compute every epsilon again.

    ``noise_deviation``: of the noise on a step's sum, in units of the gradient, before rounding.
    ``counts_noise_multiplier``: of figures that sites release beside updates; null: none are.
    """

    name: Literal["DP-SGD: Poisson-subsampled Gaussian"]
    clip_norm: Annotated[float, Field(gt=0)]
    noise_multiplier: Annotated[float, Field(gt=0)]
    noise_deviation: Annotated[float, Field(gt=0)]
    sampling_scheme: Literal["poisson"]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps_per_round: Annotated[int, Field(ge=1)]
    most_steps: Count
    counts_noise_multiplier: Annotated[float, Field(gt=0)] | None


class CountsReleased(_Part):
    """A second mechanism, in every epsilon: counts of held-out records, once a site.

    Absent where a job has none.

    Attributes:
        hold_out: the share of a site's units that train nothing and are counted.
        share: the share of the job's epsilon and delta that the counts alone may cost.
        records_per_unit: the most records of a unit that count.
        sensitivity: what one unit can move all of a site's counts together, in L2.
        noise_multiplier: noise over sensitivity; ``noise_deviation``: on each count.
        epsilon: of the counts by themselves, at ``delta``.
    """

    name: Literal["Gaussian, rounded to whole numbers, on every count"]
    histograms: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    hold_out: Annotated[float, Field(gt=0, lt=1)]
    share: Annotated[float, Field(gt=0, lt=1)]
    records_per_unit: Annotated[int, Field(ge=1)]
    sensitivity: Annotated[float, Field(gt=0)]
    noise_multiplier: Annotated[float, Field(gt=0)]
    noise_deviation: Annotated[float, Field(gt=0)]
    epsilon: Epsilon | None
    delta: Delta


class Accountant(_Part):
    """One of three that computed every epsilon."""

    name: Literal["pld", "prv", "rdp"]
    software: Text
    role: Text


class Figures(_Part):
    """One epsilon by three accountants; null: no bound, or the accountant failed."""

    pld: Epsilon | None
    prv: Epsilon | None
    rdp: Epsilon | None
    doubt: Text


class Lifetime(_Part):
    """The life of a site's data, as far as this evidence shows it.

    Attributes:
        epsilon_shown: of all charges in the evidence; those of other jobs are not in it.
        cap_epsilon: the cap in the ledger's first entry; null where the evidence has no such entry.
        cap_figure: what the charges shown cost by the cap's own accounting.
        ledger_entries: how many the site's last signed head counts; null without one.
        entries_shown: how many of them this evidence opens.
    """

    epsilon_shown: Epsilon | None
    delta_shown: Delta
    cap_epsilon: Annotated[float, Field(gt=0)] | None
    cap_delta: Delta | None
    cap_accountant: Text | None
    cap_figure: Epsilon | None
    ledger_entries: Count | None
    entries_shown: Count


class SiteSpent(_Part):
    """What one site spent.

    Attributes:
        population: declared in the job, never counted.
        steps: charged to it; ``steps_signed`` of them by rows that it signed, the rest for rounds
            that it was asked for and never answered, or that were not closed.
        releases_of_counts: that are charged to it, 0 or 1; ``epsilon`` is with them.
        person_epsilon: of somebody with ``person_records`` records at this site.
    """

    name: Name
    population: Annotated[int, Field(ge=1)]
    steps: Count
    steps_signed: Count
    rounds_asked: Count
    releases_of_counts: Count
    epsilon: Epsilon | None
    delta: Delta
    figures: Figures
    person_records: Annotated[int, Field(ge=1)]
    person_epsilon: Epsilon | None
    lifetime: Lifetime


class Together(_Part):
    """One person known to several sites: the ``sites`` that spent most, at the same delta."""

    sites: Annotated[int, Field(ge=1)]
    epsilon: Epsilon | None
    delta: Delta


class Party(_Part):
    """Who sees what."""

    party: Text
    sees: Text
    never_sees: Text


class Implementation(_Part):
    """How the mechanism is made on real computers."""

    randomness: Text
    floating_point: Text
    lattice: Text
    side_channels: Text
    self_checks: Annotated[tuple[Text, ...], Field(strict=False, max_length=100)]


class BudgetPolicy(_Part):
    """Who may spend how much."""

    job_epsilon: Annotated[float, Field(gt=0)]
    job_delta: Delta
    words: Sentences


class Utility(_Part):
    """What the privacy bought, on a public hold-out.

    ``disjoint_because`` is the operator's reason that no unit of a site is in it, or null where the
    operator declared none; nobody checked it, and ``disjointness`` says so.
    """

    measure: Text
    score: Annotated[float, Field(ge=0, le=1)] | None
    macro_f1: Annotated[float, Field(ge=0, le=1)] | None
    worst_class: Text | None
    worst_class_f1: Annotated[float, Field(ge=0, le=1)] | None
    data: Text
    disjoint_because: Text | None = None
    disjointness: Text = ""
    words: Text


class Audit(_Part):
    """A report that was handed in: an attack's lower bound beside the claim, never a measurement.

    ``epsilon`` is the one that the report compared itself with, of all steps of the job;
    ``significance`` is shared by all ``runs`` on the claim.
    """

    name: AuditName
    site: Name
    code_sha256: Sha256
    runs: Annotated[int, Field(ge=1)]
    lower_bound: Epsilon
    significance: Annotated[float, Field(gt=0, lt=1)]
    epsilon: Epsilon
    verdict: Verdict

    @model_validator(mode="after")
    def _verdict_follows(self) -> Self:
        if self.verdict != verdict_of(self.lower_bound, self.epsilon):
            raise ValueError(f"verdict must follow from the bound, got {self.verdict!r}")
        return self


class Signature(_Part):
    """Something that a key signed, and where it is in the bundle; ``key`` is a sha256 or a key."""

    what: Text
    by: Text
    algorithm: Text
    where: Text
    key: Text


class Certificate(_Part):
    """A whole certificate: of the job with all its sites, or of one site (``scope``)."""

    veiltune_certificate: Literal[1]
    id: CertificateId
    scope: Literal["job", "site"]
    made_at: Stamp
    software: Text
    job: JobNamed
    promise: Promise
    mechanism: Mechanism
    counts: CountsReleased | None = None
    accountants: Annotated[tuple[Accountant, ...], Field(strict=False, min_length=1)]
    sites: Annotated[tuple[SiteSpent, ...], Field(strict=False, min_length=1)]
    known_to_several_sites: Annotated[tuple[Together, ...], Field(strict=False)]
    trust_model: Annotated[tuple[Party, ...], Field(strict=False, min_length=1)]
    implementation: Implementation
    exclusions: Sentences
    budget_policy: BudgetPolicy
    utility: Utility
    security_controls: Sentences
    audits: Annotated[tuple[Audit, ...], Field(strict=False, max_length=1000)]
    residual_risks: Sentences
    signatures: Annotated[tuple[Signature, ...], Field(strict=False)]


def identified(**parts: object) -> Certificate:
    """A certificate of ``parts`` under the id that follows from them.

    Raises:
        InvalidInput: a part is missing, unknown or not what the schema says.
    """
    draft = parse(Certificate, {**parts, "id": "VT-0000-0000-0000"}, "certificate")
    return draft.model_copy(update={"id": id_of(draft)})


def id_of(certificate: Certificate) -> str:
    """A short hash of everything but the id: the first 48 bits of a sha256."""
    content = _content(certificate)
    del content["id"]
    digest = hashlib.sha256(rfc8785.dumps(content)).hexdigest()
    return "-".join(("VT", digest[:4], digest[4:8], digest[8:12]))


def to_json(certificate: Certificate) -> bytes:
    """The file's bytes."""
    content = _content(certificate)
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _content(certificate: Certificate) -> dict[str, Any]:
    """What is written; what earlier versions did not know is left out where it says nothing."""
    unsaid: dict[str, Any] = {} if certificate.counts else {"counts": True}
    if not certificate.utility.disjointness:
        unsaid["utility"] = {"disjoint_because", "disjointness"}
    return certificate.model_dump(mode="json", exclude=unsaid)


def read_certificate(data: bytes) -> Certificate:
    """Parse what ``to_json`` wrote.

    Raises:
        InvalidInput: too large, no certificate, or an id that is not its own.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise InvalidInput(
            f"certificate must be at most {MAX_CERTIFICATE_BYTES} bytes, got {len(data)}"
        )
    try:
        found = parse(Certificate, parse_json(data), "certificate")
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"certificate must keep to its schema, got: {error}") from error
    if found.id != id_of(found):
        raise InvalidInput(f"certificate.id must be {id_of(found)} by its content, got {found.id}")
    return found


def require_agreement(found: Certificate, due: Certificate) -> None:
    """Check that a certificate is the one that is due, in every figure and word.

    Left out are versions of accountants at whoever made it, and the id, which follows from those.
    Numbers may differ as those of one library's builds do.

    Raises:
        InvalidInput: it says something else.
    """
    if wrong := next(_differences("", _comparable(found), _comparable(due)), None):
        where, said, wanted = wrong
        raise InvalidInput(
            f"certificate{where} must be {wanted!r:.200} by the evidence, got {said!r:.200} "
            f"(made by {found.software:.100})"
        )


def _comparable(certificate: Certificate) -> dict[str, Any]:
    content = certificate.model_dump(mode="json", exclude={"id"})
    for accountant in content["accountants"]:
        del accountant["software"]
    return content


def _differences(where: str, found: object, due: object) -> Iterator[tuple[str, object, object]]:
    """Where two trees of JSON differ, what is there, and what is due."""
    if isinstance(found, dict) and isinstance(due, dict):
        for key in due:
            yield from _differences(f"{where}.{key}", found[key], due[key])
    elif isinstance(found, list) and isinstance(due, list) and len(found) == len(due):
        for at, (one, other) in enumerate(zip(found, due, strict=True)):
            yield from _differences(f"{where}.{at}", one, other)
    elif isinstance(found, float) and isinstance(due, float):
        if not math.isclose(found, due, rel_tol=TOLERANCE):
            yield where, found, due
    elif found != due:
        yield where, found, due


def schema() -> str:
    """The JSON schema, as ``schemas/certificate.schema.json`` holds it."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Certificate.model_json_schema(),
    }
    # ECMA-262, the dialect of JSON schema, has no \z; its $ is the very end already.
    return json.dumps(document, indent=2).replace("\\\\z", "$") + "\n"
