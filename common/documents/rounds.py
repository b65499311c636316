"""The rounds' receipts in a readable form, and what was refused as far as the server may tell.

A receipt holds nothing but what the server sees in any case: who was asked, who answered, hashes.
Refusals are told without reasons, because a site's reason may be a function of its records.

Not covered: signatures (``fl-audit verify``).
"""

from collections.abc import Iterator

from common.audit.evidence import Evidence
from common.audit.spending import Spending
from common.documents.sheet import Block, Bullets, Code, Prose, Sheet, Table, section
from common.documents.standing import page
from common.receipt import RoundReceipt, SignedReceipt
from common.words import counted

MOST_ROWS = 500  # of a page; the bundle has all

_NO_RECEIPTS = (
    "There are none: a run without certificates makes no receipts, so that nothing here is proved "
    "by a signature."
)


def receipts_sheet(evidence: Evidence, sites: tuple[Spending, ...]) -> Sheet:
    """Every round, and where each site's ledger stood after the last."""
    if not evidence.receipts:
        return page(evidence, "round receipts", (section("Rounds", Prose(_NO_RECEIPTS)),))
    shown = evidence.receipts[:MOST_ROWS]
    rows = tuple(_row(signed, evidence) for signed in shown)
    heads = ("Round", "Closed at (UTC)", "Asked", "Used", "Rejected", "Charges", "Adapter out")
    left = len(evidence.receipts) - len(shown)
    more = Prose(f"{left:,} more in the bundle's rounds/.") if left else None
    rounds = Table(heads, rows, frozenset({2, 3, 4, 5}), (16, 44, 18, 18, 22, 22, 30))
    return page(
        evidence,
        "round receipts",
        (
            section(
                "Rounds",
                Prose(
                    "Each receipt is signed by the server, holds the hash of the one before, every "
                    "site's signed charge and the head of its ledger, and went to all sites with "
                    "the next round."
                ),
                rounds,
                more,
            ),
            section("Ledgers after the last round", _ledgers(evidence, sites)),
        ),
    )


def _number(evidence: Evidence, receipt: RoundReceipt) -> str:
    """Counts have the number after the last round that the job may have."""
    return "counts" if receipt is evidence.counting else f"{receipt.round:,}"


def _row(signed: SignedReceipt, evidence: Evidence) -> tuple[str, ...]:
    receipt = signed.receipt
    used = sum(reply.accepted for reply in receipt.replies)
    return (
        _number(evidence, receipt),
        receipt.closed_at.replace("T", " ").removesuffix("Z"),
        str(len(receipt.asked)),
        str(used),
        str(len(receipt.replies) - used),
        str(len(receipt.charges)),
        Code(receipt.output_sha256[:16]),
    )


def _ledgers(evidence: Evidence, sites: tuple[Spending, ...]) -> Block:
    heads = evidence.receipts[-1].receipt.heads
    rows = tuple(
        (
            spent.promise.name,
            f"{heads[spent.promise.name].size:,}" if spent.promise.name in heads else "none",
            f"{spent.shown:,}",
            Code(heads[spent.promise.name].root if spent.promise.name in heads else ""),
        )
        for spent in sites
    )
    return Table(
        ("Site", "Entries", "shown", "Root (sha256)"), rows, frozenset({1, 2}), (34, 20, 18, 98)
    )


def refusals_sheet(evidence: Evidence) -> Sheet:
    """Who was asked and gave no update, whose update was not used; no reasons."""
    found = tuple(_refusals(evidence))
    rows = found[:MOST_ROWS]
    left = len(found) - len(rows)
    what: Block = Prose("None: whoever was asked gave an update that was used.")
    if not evidence.receipts:
        what = Prose(_NO_RECEIPTS)
    elif rows:
        what = Table(("Round", "Site", "What the server saw"), rows, frozenset(), (20, 60, 90))
    return page(
        evidence,
        "refusals",
        (
            section(
                f"{counted(len(found), 'refusal')}" if found else "Refusals",
                what,
                Prose(f"{left:,} more in the bundle's rounds/.") if left else None,
            ),
            section(
                "What is not here",
                Bullets(
                    (
                        "Reasons of sites. One may depend on records, so that telling it would be "
                        "a release; it stays in the site's own log.",
                        "Jobs that a site refused by its own policy before it began.",
                    )
                ),
            ),
        ),
    )


def _refusals(evidence: Evidence) -> Iterator[tuple[str, ...]]:
    for signed in evidence.receipts:
        receipt = signed.receipt
        replies = {reply.site: reply for reply in receipt.replies}
        for site in receipt.asked:
            reply = replies.get(site)
            charged = "charged" if site in receipt.charges else "counted as charged"
            if reply is None:
                what = "counts" if receipt is evidence.counting else "update in time"
                yield _number(evidence, receipt), site, f"asked, no {what}; {charged}"
            elif not reply.accepted:
                yield _number(evidence, receipt), site, f"update not used; {charged}"
