"""Whether a peer's ledger goes on from what this site knows of it, by a round's receipt.

An alarm stays, so what a loss or a delay on the way may bring about raises none. A server that was
put back to an older state names heads that it still knows, and closes rounds again; receipts come
again, or after those of a later job; and after jobs that this site took no part in, a peer may have
more heads than a charge has room for proofs (``has_room``). What these do not explain is an alarm.

Not covered: a server that signs a wrong time, or that it closed a round again, to hide a shorter
head: what the peer adds to it later is still to be proven; a peer that fills its charge with
proofs, or has its head named before its first charge of a job: its head reads ``unproven``; a
confirmation that the peer never got, of a head which a server that was put back has forgotten: it
is left out, and raises an alarm.
"""

import sqlite3

from common import heads
from common.heads import HeadRow, State
from common.privacy.charge import SignedCharge
from common.receipt import RoundReceipt, has_room


def judge(
    db: sqlite3.Connection, site: str, receipt: RoundReceipt, *, sites: int, is_anew: bool
) -> State | None:
    """How a peer's head goes on from those in the account; ``None`` for one that was seen.

    Args:
        db: the account, with the tables of ``common/heads.py``.
        site: a peer whose head the receipt names; a charge of it there was checked.
        receipt: a round's.
        sites: how many the job has.
        is_anew: whether a receipt of that round or a later one was taken before, so that this one
            is of a server that was put back; it may have forgotten longer heads.
    """
    head, known = receipt.heads[site], heads.latest(db, site)
    before = heads.last_shown(db, receipt.job_sha256, site)
    if before is not None and head.size < before and not is_anew:
        return "SHRUNK"  # whatever came between: in a server's receipts no head gets shorter
    same_size = heads.roots_of(db, site, head.size)
    if head.root in same_size:
        return None
    if known is None:
        return "first"
    if same_size:
        return "FORKED"
    charge = receipt.charges.get(site)
    said = charge if charge is not None and charge.head.is_same(head) else None
    if head.size < known.size:
        # The peer's own word, after a longer head: entries are gone. Without its word the server
        # may have forgotten some, and an earlier receipt is late.
        return "SHRUNK" if said and receipt.closed_at > known.at else "unproven"
    return _growth(db, known, said, sites, is_first=before is None, is_anew=is_anew)


def _growth(
    db: sqlite3.Connection,
    known: HeadRow,
    charge: SignedCharge | None,
    sites: int,
    *,
    is_first: bool,
    is_anew: bool,
) -> State:
    """How a head goes on that is longer than any known, by the proofs of its charge.

    In its first charge of a job, and where the server has forgotten some, a peer proves from every
    head of its own that was confirmed (client/heads.py). So one that is left out where there was
    room is no longer in its ledger: the longest known, and the longest that was proven where the
    proofs reach back beyond it, since the former may be the server's word alone.
    """
    links = charge.links if charge else ()
    starts = {(link.since.size, link.since.root) for link in links}
    for size, root in starts:
        roots = heads.roots_of(db, known.site, size)
        if roots and root not in roots:
            return "FORKED"
    had_room = charge is not None and has_room(charge, sites)
    lowest = min((size for size, _ in starts), default=0)
    proven = heads.longest(db, known.site, 1, without=(*heads.BAD, "unproven"))
    expected = [known, *(row for row in proven if row.size > lowest)]
    is_left_out = any((row.size, row.root) not in starts for row in expected)
    if had_room and is_left_out:
        return "FORKED"
    if (known.size, known.root) in starts:
        return "consistent"
    return "unproven" if is_first or (is_anew and charge is not None and not had_room) else "FORKED"
