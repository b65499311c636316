"""A job's evidence as one file: what an auditor needs to check every epsilon without a site.

Not covered: whether what is in it is true (common/audit/verify.py); the documents' content, which
is made from the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.job import SignedJob
from common.result import Result

if TYPE_CHECKING:
    from common.receipt import SignedReceipt


@dataclass(frozen=True)
class Evidence:
    """The parsed content of a bundle, without its documents.

    Attributes:
        job: the manifest that the operator signed.
        receipts: of every closed round, 1 first.
        certificates: each site's certificates (PEM), for every key that signed a charge of it: a
            leaf, then its intermediate, and so on.
        result: what the job claims.
        is_simulation: whether somebody can repeat the noise, so that nothing is promised.
        made_at: when the bundle was made, as 2026-11-28T01:00:00Z.
        software: the version that made it.
    """

    job: SignedJob
    receipts: tuple["SignedReceipt", ...]
    certificates: Mapping[str, bytes]
    result: Result
    is_simulation: bool
    made_at: str
    software: str
