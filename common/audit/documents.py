"""A bundle's documents against its evidence.

Certificates and data cards as JSON are made anew from the evidence and compared whole; so are all
pages in HTML, of certificates from the JSON beside them. The model card and the list of what is
installed are as true as the server that signed them.

Not covered: PDF (common/audit/printed.py); which names a document may have (common/audit/
evidence.py).
"""

from collections.abc import Mapping

from common.audit.certificate import Certificate, read_certificate, require_agreement
from common.audit.certification import certificate_of, promises
from common.audit.data_card import data_card_json
from common.audit.evidence import Evidence
from common.audit.spending import spendings
from common.documents.pages import is_printed, sheets
from common.documents.screen import html_of
from common.documents.sheet import Sheet
from common.errors import InvalidInput, Refusal
from common.words import counted

_CERTIFICATE = "certificate"  # what the promise's documents are called, in whatever form


def check_documents(documents: Mapping[str, bytes], evidence: Evidence) -> str:
    """Certificates, data cards and pages say what follows from the evidence.

    Args:
        documents: by their names below ``documents/``.
        evidence: what they are about.

    Returns:
        What was compared, in words, and what was not.

    Raises:
        Refusal: a certificate of a run without a promise, or a page of one without its JSON.
        InvalidInput: a certificate, a data card or a page says something else.
    """
    certificates = sorted(name for name in documents if _is_certificate(name))
    if certificates and not promises(evidence):
        raise Refusal(f"a run without a promise must have no certificate, got {certificates[0]}")
    stated = [name for name in certificates if name.endswith(".json")]
    for name in certificates:
        if f"{name.rpartition('.')[0]}.json" not in stated:
            raise Refusal(f"a page of a certificate must have its JSON beside it, got {name} alone")
    made = _compare(stated, documents, evidence)
    cards, pages = _compared_cards(documents, evidence), _compared_pages(documents, evidence, made)
    return (
        f"{counted(len(documents), 'document')}: {counted(len(stated), 'certificate')} and "
        f"{counted(cards, 'data card')} (JSON) and {counted(pages, 'page')} (HTML) made anew from "
        "the evidence, the same"
    )


def _compare(
    stated: list[str], documents: Mapping[str, bytes], evidence: Evidence
) -> dict[str, Certificate]:
    """Each certificate by the name of its page, compared with what is due."""
    sites, made = (spendings(evidence) if stated else ()), dict[str, Certificate]()
    for name in stated:
        found = read_certificate(documents[name])
        due = certificate_of(evidence, sites, found.audits, site=_site_of(name))
        require_agreement(found, due)
        made[name.removesuffix(".json")] = found
    return made


def _compared_pages(
    documents: Mapping[str, bytes], evidence: Evidence, made: Mapping[str, Certificate]
) -> int:
    """How many pages there are, each as the evidence has it."""
    pages = sorted(name for name in documents if name.endswith(".html"))
    due = sheets(evidence, spendings(evidence), made) if pages else {}
    for name in pages:
        sheet = due.get(name.removesuffix(".html"))
        if sheet is None or html_of(sheet) != documents[name]:
            raise InvalidInput(
                f"{name} must be as the evidence has it, got another page (made by "
                f"{evidence.software:.100})"
            )
    return len(pages)


def printed_sheets(documents: Mapping[str, bytes], evidence: Evidence) -> dict[str, Sheet]:
    """What is drawn on paper, by its name, of the certificates that are here.

    Raises:
        InvalidInput: a certificate that cannot be read, or a result that the rows do not bear out.
    """
    made = {
        name.removesuffix(".json"): read_certificate(data)
        for name, data in documents.items()
        if _is_certificate(name) and name.endswith(".json")
    }
    due = sheets(evidence, spendings(evidence), made)
    return {name: sheet for name, sheet in due.items() if is_printed(name)}


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
