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
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import Field, StringConstraints

from common.audit.certificate_parts import (
    Accountant,
    Audit,
    BudgetPolicy,
    CountsReleased,
    Implementation,
    JobNamed,
    Mechanism,
    Part,
    Party,
    Promise,
    Sentences,
    Signature,
    SiteSpent,
    Software,
    Together,
    Utility,
)
from common.audit.recompute import TOLERANCE
from common.config import parse
from common.errors import InvalidInput
from common.privacy.entries import Stamp
from common.strict_json import parse_json

MAX_CERTIFICATE_BYTES = 16 * 1024 * 1024

ID_PATTERN = r"VT(-[0-9a-f]{4}){3}"
CertificateId = Annotated[str, StringConstraints(pattern=rf"^{ID_PATTERN}\z")]


class Certificate(Part):
    """A whole certificate: of the job with all its sites, or of one site (``scope``)."""

    veiltune_certificate: Literal[1]
    id: CertificateId
    scope: Literal["job", "site"]
    made_at: Stamp
    software: Software
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
    if certificate.job.vector_sha256 is None:
        unsaid["job"] = {"vector_sha256"}
    if all(site.last_word_shown is None for site in certificate.sites):
        unsaid["sites"] = {"__all__": {"last_word_shown"}}
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
