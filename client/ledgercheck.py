"""``doctor``'s look at the ledger: the file, every entry and byte in it, and the file beside it.

Not covered: the head that the server witnessed, which it sends with a job.
"""

from collections.abc import Iterator

from client.account import has_run, recorded_cap
from client.anchor import Anchor
from client.config import SiteHome
from client.lifetime import require_unchanged
from client.outbox import Outbox
from client.peers import Peers
from common.diagnosis import Finding, fault, ok, unchecked, warning
from common.errors import AnchorBroken, InvalidInput, StorageFailed
from common.sqlite_file import is_being_written

LEDGER, ANCHOR, LIMITS, HEADS = "ledger", "anchor", "limits", "heads"


def findings(home: SiteHome) -> Iterator[Finding]:
    """Verify the ledger and compare it with its anchor and with ``site.toml``; nothing is written.

    Raises:
        StorageFailed: the home cannot be looked into.
    """
    if not has_run(home):
        yield ok(LEDGER, "none yet: it is made when the site first runs")
        yield ok(ANCHOR, "none yet, as the ledger")
        return
    if is_being_written(home.account_path):
        words, advice = "a write is under way or was cut off", "start the site, which completes it"
        for name in (LEDGER, ANCHOR, LIMITS, HEADS):
            yield unchecked(name, words, advice)
        return
    yield from _verified(home)


def _verified(home: SiteHome) -> Iterator[Finding]:
    restore = "put the latest account.db back from a backup, and delete nothing"
    try:
        outbox = Outbox.of(home, is_reader=True)
        entries = outbox.verify()
    except AnchorBroken as error:
        yield unchecked(LEDGER, "the file beside it remembers another", "mend the anchor first")
        yield fault(ANCHOR, str(error), restore)
    except InvalidInput as error:
        yield fault(LEDGER, str(error), "mend the key, or see what 'ledger rekey' says")
        yield unchecked(ANCHOR, "the ledger could not be verified", "mend the ledger first")
    except (StorageFailed, UnicodeDecodeError) as error:
        yield fault(LEDGER, str(error), restore)
        yield unchecked(ANCHOR, "the ledger could not be verified", "mend the ledger first")
    else:
        counted = "1 entry" if entries == 1 else f"{entries} entries"
        yield ok(LEDGER, f"whole: {counted}, all signed, and the bytes that they name")
        yield _anchored(home, entries)
        yield _limits(home, outbox)
        yield _heads(home, outbox)


def _anchored(home: SiteHome, entries: int) -> Finding:
    head = Anchor(home.account_path).read()
    if head is None:
        words = "account.anchor is missing: a ledger that was cut would not be noticed"
        return warning(ANCHOR, words, "put it back from a backup; the next entry writes it anew")
    return ok(ANCHOR, f"remembers {head.size} of the ledger's {entries}, and agrees")


def _heads(home: SiteHome, outbox: Outbox) -> Finding:
    alarms = Peers(outbox, home).alarms()
    if alarms:
        ask = "ask that site and the operator; 'fl-audit heads' shows the history"
        return fault(HEADS, "; ".join(alarm.words for alarm in alarms), ask)
    return ok(HEADS, "every peer's ledger went on as it was known")


def _limits(home: SiteHome, outbox: Outbox) -> Finding:
    try:
        require_unchanged(home.config.policy, recorded_cap(outbox), outbox.fixed_unit())
    except InvalidInput as error:
        return fault(LIMITS, str(error), "write them into site.toml as the ledger has them")
    return ok(LIMITS, "site.toml and the ledger name the same")
