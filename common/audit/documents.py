"""A bundle's documents against its evidence.

A certificate as JSON is made anew from the evidence and compared whole. Everything else is for
people to read, HTML and PDF of certificates too, and as true as the server that signed it.

Not covered: which names a document may have (common/audit/evidence.py).
"""

from collections.abc import Mapping

from common.audit.certificate import read_certificate, require_agreement
from common.audit.certification import certificate_of
from common.audit.evidence import Evidence
from common.audit.spending import spendings
from common.errors import Refusal
from common.words import counted

_CERTIFICATE = "certificate"  # what the promise's documents are called, in whatever form


def check_documents(documents: Mapping[str, bytes], evidence: Evidence) -> str:
    """Certificates say what follows from the evidence; there are none where nothing is promised.

    Args:
        documents: by their names below ``documents/``.
        evidence: what they are about.

    Returns:
        What was compared, in words, and what was not.

    Raises:
        Refusal: a certificate of a run without a promise, or a page of one without its JSON.
        InvalidInput: a certificate says something else.
    """
    certificates = sorted(name for name in documents if _is_certificate(name))
    if certificates and (evidence.is_simulation or not evidence.result.private):
        raise Refusal(f"a run without a promise must have no certificate, got {certificates[0]}")
    count = counted(len(documents), "document")
    if not certificates:
        return f"{count}, none of them a certificate: pages for people, not compared"
    stated = [name for name in certificates if name.endswith(".json")]
    for name in certificates:
        if f"{name.rpartition('.')[0]}.json" not in stated:
            raise Refusal(f"a page of a certificate must have its JSON beside it, got {name} alone")
    _compare(stated, documents, evidence)
    return (
        f"{count}: {counted(len(stated), 'certificate')} (JSON) made anew from the evidence, the "
        "same; the rest, HTML and PDF of certificates too, are pages for people and not compared"
    )


def _compare(stated: list[str], documents: Mapping[str, bytes], evidence: Evidence) -> None:
    sites = spendings(evidence)
    for name in stated:
        found = read_certificate(documents[name])
        due = certificate_of(evidence, sites, found.audits, site=_site_of(name))
        require_agreement(found, due)


def _is_certificate(name: str) -> bool:
    return name.rpartition("/")[2].startswith(f"{_CERTIFICATE}.")


def _site_of(name: str) -> str:
    """Whose certificate it is by its name; empty for the whole job's."""
    folder, _, _ = name.rpartition("/")
    return folder.removeprefix("sites/")
