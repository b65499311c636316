"""What is declared about a site's data, for programs: nothing in it was counted from a record.

Not covered: whether the declarations are right; the site answers for them. The page for people is
another (common/documents/data_card.py).
"""

import json

from common.audit.certification import number, promises
from common.audit.evidence import Evidence
from common.job import require_site
from common.result import SiteResult


def data_card_json(evidence: Evidence, site: SiteResult) -> bytes:
    """The card of one site of the result, the same bytes for the same evidence.

    Raises:
        InvalidInput: the job has no such site.
    """
    job, privacy = evidence.job.job, evidence.result.privacy
    require_site(job, site.name)
    is_promised = promises(evidence)
    card = {
        "veiltune_data_card": 1,
        "job_sha256": evidence.result.job_sha256,
        "is_simulation": evidence.is_simulation,
        "site": site.name,
        "data": job.data.name,
        "task": evidence.result.task,
        "unit": privacy.unit,
        "unit_cap": privacy.unit_cap,
        "declared_population": job.data.population[site.name],
        "labels": list(job.data.labels),
        "epsilon": number(site.epsilon) if is_promised else None,
        "delta": site.delta if is_promised else None,
    }
    return (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode()
