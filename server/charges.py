"""How many DP-SGD steps each site is charged, from what was durably recorded and nothing else.

A site's own account is the authority and its replies state it. What the server adds is the time
since: a round whose messages went out may have been trained and noised at a site whose reply never
came, so it counts until the site says otherwise. The figure may be too high, never too low.

Over the link it counts for good: what a site says later is no proof that others can check, and an
auditor counts every round that a site was asked for (common/audit/spent.py).

Not covered: steps of other jobs on the same data (the site's own account has them).
"""

from collections.abc import Iterable, Sequence

from server.checkpoint import Receipt


def charged_steps(
    receipts: Sequence[Receipt],
    dispatched: Iterable[tuple[int, str]],
    local_steps: int,
    *,
    for_good: bool = False,
) -> dict[str, int]:
    """Steps that each site named in ``dispatched`` or ``receipts`` is charged.

    Args:
        receipts: the replies recorded, in any order.
        dispatched: (round, site) of every message that went out, in any order.
        local_steps: the job's steps a round.
        for_good: whether a round that was asked for stays counted, whatever the site says later.

    >>> reply = Receipt("A", 1, "", steps=4, charged_steps=4, bytes_up=9, accepted=True)
    >>> charged_steps([reply], [(1, "A"), (2, "A"), (1, "B")], local_steps=4)
    {'A': 8, 'B': 4}
    """
    replies = {(receipt.round, receipt.site): receipt for receipt in receipts}
    of_site: dict[str, list[tuple[int, str]]] = {}
    for key in sorted({*dispatched, *replies}):
        of_site.setdefault(key[1], []).append(key)
    charges = {}
    for site, asked in sorted(of_site.items()):
        came = [replies.get(key) for key in asked]
        charge = _charge(came, local_steps)
        charges[site] = max(charge, local_steps * len(came)) if for_good else charge
    return charges


def _charge(replies: Sequence[Receipt | None], local_steps: int) -> int:
    """One site's charge; ``replies`` in order of rounds, None where none came."""
    executed, stated, since = 0, 0, 0
    for reply in replies:
        since += local_steps
        if reply is None:
            continue
        executed += reply.steps
        # A rejected reply's figure is believed only where it is the higher one.
        if reply.accepted or reply.charged_steps > stated + since:
            stated, since = max(stated, executed, reply.charged_steps), 0
    return stated + since
