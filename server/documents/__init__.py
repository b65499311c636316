"""The documents of a job, made from its evidence and nothing else.

Not covered: signing them, which the bundle's manifest does; deciding whether a bundle may leave.
"""

from collections.abc import Sequence

from common.audit.certificate import Audit, to_json
from common.audit.certification import certificate_of, promises
from common.audit.data_card import data_card_json
from common.audit.evidence import Evidence
from common.audit.spending import Spending, spendings
from server.documents.certificate_sheet import certificate_sheet
from server.documents.cover import cover_sheet
from server.documents.data_card import data_card
from server.documents.paper import pdf_of
from server.documents.policies import policies_sheet
from server.documents.rounds import receipts_sheet, refusals_sheet
from server.documents.sbom import bill_of_materials
from server.documents.screen import html_of
from server.documents.sheet import Sheet
from server.model_card import model_card

__all__ = ["write_documents"]


def write_documents(evidence: Evidence, audits: Sequence[Audit] = ()) -> dict[str, bytes]:
    """Every document of the job, by its name in the bundle's ``documents/``.

    The same evidence gives the same bytes under the same installed software. A run that promises
    nothing gets no certificate, and every page of its documents says so.

    Args:
        evidence: the bundle's content.
        audits: reports that were handed in; on the certificate as they are.

    Raises:
        InvalidInput: the result claims what the evidence does not bear out.
        AccountingInDoubt: an accountant gave no number where the lifetime's cap needs one.
    """
    sites = spendings(evidence)
    certificates = _certificates(evidence, sites, audits) if promises(evidence) else {}
    name = next(iter(certificates.values()), ("", b""))[0]
    files = {path: data for path, (_, data) in certificates.items()}
    files |= _both("index", cover_sheet(evidence, sites, name))
    files["model-card.md"] = model_card(evidence.result, evidence.job.job).encode()
    files["receipts.html"] = html_of(receipts_sheet(evidence, sites))
    files["refusals.html"] = html_of(refusals_sheet(evidence))
    files["policies.html"] = html_of(policies_sheet(evidence))
    files["sbom.cdx.json"] = bill_of_materials(evidence.made_at)
    for site, spent in zip(evidence.result.sites, sites, strict=True):
        folder = f"sites/{site.name}"
        files[f"{folder}/data-card.html"] = html_of(data_card(evidence, spent))
        files[f"{folder}/data-card.json"] = data_card_json(evidence, site)
    return dict(sorted(files.items()))


def _certificates(
    evidence: Evidence, sites: tuple[Spending, ...], audits: Sequence[Audit]
) -> dict[str, tuple[str, bytes]]:
    """Each file with its certificate's id; the whole job's come first."""
    files = dict[str, tuple[str, bytes]]()
    for site in ("", *(spent.promise.name for spent in sites)):
        made = certificate_of(evidence, sites, audits, site=site)
        path = f"sites/{site}/certificate" if site else "certificate"
        written = {f"{path}.json": to_json(made), **_both(path, certificate_sheet(made))}
        files |= {name: (made.id, data) for name, data in written.items()}
    return files


def _both(path: str, sheet: Sheet) -> dict[str, bytes]:
    return {f"{path}.html": html_of(sheet), f"{path}.pdf": pdf_of(sheet)}
