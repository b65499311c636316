"""The documents of a job, made from its evidence and nothing else.

Not covered: signing them, which the bundle's manifest does; deciding whether a bundle may leave.
"""

from collections.abc import Sequence

from common.audit.certificate import Certificate, to_json
from common.audit.certificate_parts import Audit
from common.audit.certification import certificate_of, promises
from common.audit.data_card import data_card_json
from common.audit.evidence import Evidence
from common.audit.spending import Spending, spendings
from common.documents.pages import CERTIFICATE, is_printed, sheets
from common.documents.paper import pdf_of
from common.documents.screen import html_of
from server.documents.sbom import bill_of_materials
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
    made = _certificates(evidence, sites, audits) if promises(evidence) else {}
    files = {f"{name}.json": to_json(certificate) for name, certificate in made.items()}
    for name, sheet in sheets(evidence, sites, made).items():
        files[f"{name}.html"] = html_of(sheet)
        if is_printed(name):
            files[f"{name}.pdf"] = pdf_of(sheet)
    files["model-card.md"] = model_card(evidence.result, evidence.job.job).encode()
    files["sbom.cdx.json"] = bill_of_materials(evidence.made_at)
    for site in evidence.result.sites:
        files[f"sites/{site.name}/data-card.json"] = data_card_json(evidence, site)
    return dict(sorted(files.items()))


def _certificates(
    evidence: Evidence, sites: tuple[Spending, ...], audits: Sequence[Audit]
) -> dict[str, Certificate]:
    """The job's and each site's, by the name of the page."""
    names = {"": CERTIFICATE} | {
        spent.promise.name: f"sites/{spent.promise.name}/{CERTIFICATE}" for spent in sites
    }
    return {
        name: certificate_of(evidence, sites, audits, site=site) for site, name in names.items()
    }
