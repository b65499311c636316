"""Every page of a job's documents: made from its evidence, and anew by whoever checks them.

Not covered: the model card and the list of what is installed, which are the server's; signatures.
"""

from collections.abc import Mapping

from common.audit.certificate import Certificate
from common.audit.evidence import Evidence
from common.audit.spending import Spending
from common.documents.certificate_sheet import certificate_sheet
from common.documents.cover import cover_sheet
from common.documents.data_card import data_card
from common.documents.policies import policies_sheet
from common.documents.rounds import receipts_sheet, refusals_sheet
from common.documents.sheet import Sheet

COVER, CERTIFICATE = "index", "certificate"


def sheets(
    evidence: Evidence, sites: tuple[Spending, ...], certificates: Mapping[str, Certificate]
) -> dict[str, Sheet]:
    """Each page by its name in ``documents/``, without an ending.

    Args:
        evidence: the bundle's content.
        sites: what each site spent, as ``spendings`` says.
        certificates: by the name of the page; the whole job's is ``certificate``.
    """
    whole = certificates.get(CERTIFICATE)
    return {
        COVER: cover_sheet(evidence, sites, "" if whole is None else whole.id),
        "receipts": receipts_sheet(evidence, sites),
        "refusals": refusals_sheet(evidence),
        "policies": policies_sheet(evidence),
        **{f"sites/{s.promise.name}/data-card": data_card(evidence, s) for s in sites},
        **{name: certificate_sheet(made) for name, made in certificates.items()},
    }


def is_printed(name: str) -> bool:
    """Whether a page is PDF as well."""
    return name.rpartition("/")[2] in (COVER, CERTIFICATE)
