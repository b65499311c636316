"""``doctor``'s look at the link: the way to the server, whether it admits this site, its clock.

Not covered: a session itself: none is opened.
"""

import math
from collections.abc import Iterator, Sequence

from client.admission import ask
from client.config import SiteHome
from client.identity import Identity
from client.obstacles import ADMISSION, NAME, PORT, STEPS
from client.probe import Pair, examine
from client.session import LinkConfig
from common import reach
from common.address import split_address
from common.diagnosis import Finding, fault, ok, unchecked, warning
from common.errors import InvalidInput, LinkDown, UpdateRejected

CLOCK = "clock and server"
LINES = (*STEPS, CLOCK)

_REVOKED = "must not be revoked"  # as server/roster.py says it
_SKEW_S, _MUCH_SKEW_S = 30.0, 300.0  # a certificate is valid from 5 minutes before it was issued


def not_walked(why: str, advice: str) -> Iterator[Finding]:
    """The lines of a link that is not looked at."""
    for line in LINES:
        yield unchecked(line, why, advice)


def findings(home: SiteHome, identity: Identity, *, timeout_s: float = 5.0) -> Iterator[Finding]:
    """Walk to the server, ask it, and tell each step.

    Raises:
        InvalidInput: ``server`` of ``site.toml`` is no address, or the root cannot be used.
    """
    pair, own = _pair(identity)
    told = examine(home.config.server, identity.root, pair, timeout_s=timeout_s)
    last = told[-1]
    if last.mark == "fault" and last.check in (NAME, PORT) and _is_cut_off(home.config.server):
        yield from not_walked("this machine has no network", "connect it to the network")
        return
    yield from told if last.check != ADMISSION or last.mark == "fault" else told[:-1]
    if last.mark == "fault":
        yield from _rest(told, f"the {last.check} comes first", f"mend the {last.check} first")
    elif pair is None:
        yield from _rest(
            told, f"it would not be taken: {own}", "mend this site's certificate first"
        )
    else:
        yield from _asked(home, identity, timeout_s)


def _pair(identity: Identity) -> tuple[Pair | None, str]:
    """What the site can show today, or why it can show nothing."""
    try:
        identity.check()
    except InvalidInput as error:
        return None, str(error)
    return Pair(identity.certificate, identity.key), ""


def _is_cut_off(server: str) -> bool:
    """Whether no server at all could be reached, rather than this one."""
    host, port = split_address(server)
    if not reach.is_offline():
        return False
    try:
        found = reach.addresses(host, port)
    except OSError:
        return True
    return not any(reach.has_route(family, address) for address, family in found.items())


def _rest(told: Sequence[Finding], why: str, advice: str) -> Iterator[Finding]:
    named = {finding.check for finding in told}
    for line in LINES:
        if line not in named:
            yield unchecked(line, why, advice)


def _asked(home: SiteHome, identity: Identity, timeout_s: float) -> Iterator[Finding]:
    server = home.config.server
    config = LinkConfig(server, identity.root, identity.certificate, identity.key, home.site)
    try:
        found = ask(config, timeout_s=timeout_s)
    except (LinkDown, UpdateRejected) as error:
        yield fault(ADMISSION, str(error), "see the server's log, or ask the operator to")
        yield unchecked(CLOCK, "the server did not answer", f"mend the {ADMISSION} first")
        return
    if found.refusal:
        words = f"{server} turns this site away: {found.refusal}"
        yield fault(ADMISSION, words, _advice(found.refusal))
    else:
        yield ok(ADMISSION, f"{server} admits site {home.site}")
    yield _clock(found.ahead_s, found.within_s)


def _advice(refusal: str) -> str:
    """A key is given up only where it is lost for good."""
    if _REVOKED in refusal:
        return (
            "ask the operator why; a revoked key does not come back, so move pki/site.key away and "
            "join by a new token"
        )
    return "ask the operator why, and for a new token to join by; leave pki/site.key where it is"


def _clock(ahead_s: float | None, within_s: float) -> Finding:
    if ahead_s is None:
        return unchecked(CLOCK, "the server does not say its time", "ask for a newer server")
    least = max(0.0, abs(ahead_s) - within_s)
    way = "behind" if ahead_s > 0 else "ahead of"
    words = f"this machine's clock is {abs(ahead_s):.0f} s {way} the server's"
    advice = "set the clock (timedatectl status), and ask the operator to look at theirs"
    if least > _MUCH_SKEW_S:
        return fault(CLOCK, f"{words}: certificates may count as not yet valid", advice)
    if least > _SKEW_S:
        return warning(CLOCK, words, advice)
    return ok(CLOCK, f"within {math.ceil(abs(ahead_s) + within_s)} s of the server's")
