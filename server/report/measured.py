"""What the sites' own held-out records say: shares with intervals, the worst site beside all.

Not covered: how the intervals come about (common/estimates.py).
"""

from common.config import RECORD
from common.documents.markup import Markup, breakable, element, table
from common.figures import NOTHING, plain, share
from common.measured import EstimateResult, MetricsResult, ShareResult
from common.result import Result
from common.words import counted

_MANY = 20  # rows of one histogram, beyond which they fold away
_NAMES = {
    "accuracy": "All held-out records",
    "classes": "By class",
    "groups": "By group",
    "entities": "By kind of entity",
}


def interval(found: ShareResult) -> str:
    """An estimate and its interval.

    >>> interval(ShareResult(value=0.5, low=0.25, high=0.75))
    '0.500 (0.250 to 0.750)'
    """
    if found.value is None:
        return NOTHING
    return f"{share(found.value)} ({share(found.low)} to {share(found.high)})"


def how(result: Result, stated: MetricsResult) -> str:
    """How the counts came about, for a reader who has to trust them."""
    unit = result.privacy.unit
    noise = plain(stated.deviation)
    capped = "" if unit == RECORD else f", at most {stated.records_per_unit} records of each,"
    silent = ""
    if stated.silent:
        silent = (
            f" {counted(len(stated.silent), 'site')} that was asked gave none and is charged: "
            f"{', '.join(stated.silent)}."
        )
    return (
        f"Each site kept {stated.hold_out:.0%} of its {unit}s out of training{capped} and sent "
        f"counts of them once, each with noise of standard deviation {noise}. Every epsilon of a "
        f"site on this page includes them.{silent}"
    )


def reading() -> str:
    """How to read an interval."""
    return (
        "In brackets: 95% intervals, for the noise and for the chance by which people were held "
        "out, each for itself. The worst site's holds for all sites at once; it is the worst of "
        "those whose counts say something. A dash: noise drowns the counts. They are added up "
        "before anything below zero is cut off."
    )


def measured(result: Result) -> Markup | None:
    """The section; nothing where no counts left a site."""
    stated = result.metrics
    if stated is None:
        return None
    return element(
        "section",
        element("h2", "On the sites' own held-out records"),
        element("p", how(result, stated), class_="prose"),
        *[_shares(stated, name) for name in _NAMES],
        _losses(stated),
        element("p", reading(), class_="soft small"),
    )


def _shares(stated: MetricsResult, name: str) -> Markup | None:
    rows = [one for one in stated.estimates if one.histogram == name]
    if not rows:
        return None
    heads = [element("th", _NAMES[name])]
    heads += [element("th", "Measure"), element("th", "All sites", class_="num")]
    heads += [element("th", "Worst site"), element("th", "There", class_="num")]
    made = table(heads, [_row(one) for one in rows])
    if len(rows) <= _MANY:
        return made
    return element("details", element("summary", f"{_NAMES[name]}: {len(rows)} rows"), made)


def _row(one: EstimateResult) -> Markup:
    return element(
        "tr",
        element("th", breakable(one.row), scope="row"),
        element("td", one.measure),
        element("td", interval(one.together), class_="num"),
        element("td", breakable(one.worst_site) if one.worst_site else NOTHING),
        element("td", interval(one.worst), class_="num"),
    )


def losses(stated: MetricsResult) -> list[tuple[str, int]]:
    """The loss bins and all sites' counts in them; nothing where there are none."""
    offset = 0
    for histogram in stated.histograms:
        if histogram.name == "loss" and stated.together:
            return list(zip(histogram.rows, stated.together[offset:], strict=False))
        offset += histogram.as_histogram.size
    return []


def _losses(stated: MetricsResult) -> Markup | None:
    found = losses(stated)
    if not found:
        return None
    margin = f"Records, within {plain(stated.half_width)}"
    heads = [element("th", "Loss"), element("th", margin, class_="num")]
    rows = [
        element("tr", element("th", name, scope="row"), element("td", f"{n:,}", class_="num"))
        for name, n in found
    ]
    return table(heads, rows)
