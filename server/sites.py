"""Which sites there are, as an operator sees them: admitted or not, until when, connected or not.

Not covered: what a site spent (server/views.py); who is invited (server/invitations.py).
"""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from server.roster import Issued

_SHOWN_DIGITS = 16  # of a fingerprint, as people compare it


def listing(
    sites: Mapping[str, Sequence[Issued]],
    connected: Collection[str] | None,
    *,
    now: dt.datetime | None = None,
) -> list[dict[str, Any]]:
    """One line of ``fl-server sites`` for each site, by name.

    Args:
        sites: every site with its certificates, as the roster has them.
        connected: the sites with a session; None where no server runs to ask.
        now: the moment to look at.
    """
    moment = now or dt.datetime.now(dt.UTC)
    return [
        _line(site, _latest(entries, moment), connected, moment)
        for site, entries in sorted(sites.items())
        if entries
    ]


def words(line: Mapping[str, Any]) -> str:
    """What ``listing`` says of a site, for people."""
    link = {True: "connected", False: "not connected", None: "no server runs"}[line["connected"]]
    told = [f"{line['state']}, certificate until {line['certificate_until'][:10]}"]
    if line["revoked_at"]:
        told = [f"revoked on {line['revoked_at'][:10]}"]
    return ", ".join([*told, link, f"key {line['key_sha256'][:_SHOWN_DIGITS]}"])


def _latest(entries: Sequence[Issued], moment: dt.datetime) -> Issued:
    """The certificate that says most: one that stands before any other, then the last to end."""
    return max(entries, key=lambda entry: (entry.stands(moment), entry.not_after))


def _line(
    site: str, entry: Issued, connected: Collection[str] | None, moment: dt.datetime
) -> dict[str, Any]:
    return {
        "site": site,
        "state": _state(entry, moment),
        "key_sha256": entry.key_sha256,
        "certificate_until": _stamp(entry.not_after),
        "revoked_at": None if entry.revoked is None else _stamp(entry.revoked),
        "connected": None if connected is None else site in connected,
    }


def _state(entry: Issued, moment: dt.datetime) -> str:
    if entry.revoked is not None:
        return "revoked"
    if entry.retired is not None:
        return "of a root that was dropped"
    return "admitted" if entry.stands(moment) else "expired"


def _stamp(moment: dt.datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
