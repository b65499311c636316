"""A bundle's documents against its evidence.

Certificates and data cards as JSON are made anew from the evidence and compared whole. Everything
else is for people to read, HTML and PDF of certificates too, and as true as the server that signed
it; so is the list of what is installed there.

Not covered: which names a document may have (common/audit/evidence.py).
"""

from collections.abc import Mapping

from common.audit.certificate import read_certificate, require_agreement
from common.audit.certification import certificate_of, promises
from common.audit.data_card import data_card_json
from common.audit.evidence import Evidence
from common.audit.spending import spendings
from common.errors import InvalidInput, Refusal
from common.words import counted

_CERTIFICATE = "certificate"  # what the promise's documents are called, in whatever form


def check_documents(documents: Mapping[str, bytes], evidence: Evidence) -> str:
    """Certificates and data cards say what follows from the evidence.

    Args:
        documents: by their names below ``documents/``.
        evidence: what they are about.

    Returns:
        What was compared, in words, and what was not.

    Raises:
        Refusal: a certificate of a run without a promise, or a page of one without its JSON.
        InvalidInput: a certificate or a data card says something else.
    """
    certificates = sorted(name for name in documents if _is_certificate(name))
    if certificates and not promises(evidence):
        raise Refusal(f"a run without a promise must have no certificate, got {certificates[0]}")
    stated = [name for name in certificates if name.endswith(".json")]
    for name in certificates:
        if f"{name.rpartition('.')[0]}.json" not in stated:
            raise Refusal(f"a page of a certificate must have its JSON beside it, got {name} alone")
    _compare(stated, documents, evidence)
    cards = _compared_cards(documents, evidence)
    return (
        f"{counted(len(documents), 'document')}: {counted(len(stated), 'certificate')} and "
        f"{counted(cards, 'data card')} (JSON) made anew from the evidence, the same; the rest, "
        "HTML and PDF of certificates too, is for people and not compared"
    )


def _compare(stated: list[str], documents: Mapping[str, bytes], evidence: Evidence) -> None:
    sites = spendings(evidence) if stated else ()
    for name in stated:
        found = read_certificate(documents[name])
        due = certificate_of(evidence, sites, found.audits, site=_site_of(name))
        require_agreement(found, due)


def _compared_cards(documents: Mapping[str, bytes], evidence: Evidence) -> int:
    """How many data cards there are, each as the evidence has it."""
    due = {f"sites/{site.name}/data-card.json": site for site in evidence.result.sites}
    cards = [name for name in documents if name.endswith("/data-card.json")]
    for name in cards:
        if name not in due or documents[name] != data_card_json(evidence, due[name]):
            raise InvalidInput(f"{name} must be as the evidence has it, got something else")
    return len(cards)


def _is_certificate(name: str) -> bool:
    return name.rpartition("/")[2].startswith(f"{_CERTIFICATE}.")


def _site_of(name: str) -> str:
    """Whose certificate it is by its name; empty for the whole job's."""
    folder, _, _ = name.rpartition("/")
    return folder.removeprefix("sites/")
