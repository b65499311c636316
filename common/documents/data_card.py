"""What is declared about a site's data: nothing here was counted from a record.

Not covered: whether the declarations are right; the site answers for them.
"""

from common.audit.certification import promises
from common.audit.evidence import Evidence
from common.audit.spending import Spending
from common.config import RECORD
from common.documents.sheet import Bullets, Sheet, Terms, section
from common.documents.standing import page
from common.figures import bound, power

MOST_LABELS = 200  # of a page; the JSON has all

_COUNTS_KEPT = (
    "The number of records, of units and of each label: a count is a function of the records, and "
    "would have to be charged as a release."
)
_COUNTS_GIVEN = (
    "The number of records, of units and of each label: a count is a function of the records. "
    "Those that the job asks for are of held-out records, noised, and charged as a release; what "
    "came of them is in result.json. No other count left the site."
)
_NOT_STATED = (
    "Time span, ages, sexes and other groups, quality and duplicates: for the same reason.",
    "Names of files and columns: the site maps its own columns, and the mapping stays there.",
)


def data_card(evidence: Evidence, spent: Spending) -> Sheet:
    """The card of one site for people."""
    declared = evidence.job.job.data
    labels = declared.labels[:MOST_LABELS]
    more = len(declared.labels) - len(labels)
    rest = f", and {more:,} more in job.json" if more else ""
    name = spent.promise.name
    about = Terms(
        (
            ("Site", name),
            ("Data set, as the job names it", declared.name),
            ("Task", evidence.result.task),
            ("Unit of privacy", _unit(evidence)),
            ("Declared population", f"{spent.promise.population:,} units (not counted)"),
            ("Weight in the mean", f"{evidence.job.job.weight(name):.4f}"),
            (f"Labels ({len(declared.labels):,}, public)", ", ".join(labels) + rest),
            ("Left the site", _left(evidence, spent)),
        )
    )
    return page(
        evidence,
        "data card",
        (
            section("Declared before any record was read", about),
            section("Not stated, and why", Bullets(_not_stated(evidence))),
        ),
        title=f"{name}: {declared.name}",
    )


def _left(evidence: Evidence, spent: Spending) -> str:
    what = "noised updates"
    if spent.counts:
        what += " and, once, noised counts of held-out records"
    if not promises(evidence):
        return f"no row of a ledger and no value beyond {what}"
    return (
        f"of what depends on its records, {what} alone: epsilon {bound(spent.promise.epsilon)} at "
        f"delta {power(spent.promise.delta)} for one {evidence.result.privacy.unit}"
    )


def _not_stated(evidence: Evidence) -> tuple[str, ...]:
    counts = _COUNTS_KEPT if evidence.result.metrics is None else _COUNTS_GIVEN
    return (counts, *_NOT_STATED)


def _unit(evidence: Evidence) -> str:
    privacy = evidence.result.privacy
    if privacy.unit == RECORD:
        return "one record"
    return f"all records that share a {privacy.unit}, at most {privacy.unit_cap} of them in a step"
