"""A home's account, opened with the cap over the life of its data.

Not covered: what the cap allows (client/lifetime.py), what the account holds (client/outbox.py).
"""

from client.anchor import Anchor
from client.config import SiteHome
from client.lifetime import Life, cap_of, require_unchanged
from client.outbox import Outbox
from common.privacy.lifetime import PldSchedule, cap_from_dict
from common.privacy.rdp_filter import RdpFilter


def open_account(home: SiteHome, *, is_reader: bool = False) -> Outbox:
    """The home's account; but for a reader, made with the cap of ``site.toml`` if there is none.

    Raises:
        InvalidInput: ``site.toml`` no longer says what the account was made with, or another key
            than this site's signed last.
        StorageFailed: it cannot be opened.
    """
    outbox = Outbox.of(home, is_reader=is_reader)
    require_unchanged(home.config.policy, recorded_cap(outbox), outbox.fixed_unit())
    return outbox


def read_life(home: SiteHome) -> Life:
    """How the life's budget stands, for commands: no account is made by being asked.

    Raises:
        InvalidInput, StorageFailed: as ``open_account``.
    """
    if not has_run(home):
        policy = home.config.policy
        return Life(cap_of(policy), fixed_unit=policy.required_unit or "")
    return life_of(open_account(home, is_reader=True))


def has_run(home: SiteHome) -> bool:
    """Whether the home has an account, or had one: a lost one is for its reader to report.

    An empty file without an anchor is one that another process is about to fill.
    """
    path = home.account_path
    has_entries = path.exists() and path.stat().st_size > 0
    return has_entries or Anchor(path).path.exists()


def life_of(outbox: Outbox) -> Life:
    """How the life's budget stands in an account."""
    cap, unit = recorded_cap(outbox), outbox.fixed_unit()
    return Life(cap, outbox.submissions(), outbox.charges(), unit)


def recorded_cap(outbox: Outbox) -> RdpFilter | PldSchedule:
    """The cap in a ledger's first entry."""
    return cap_from_dict(outbox.lifetime_cap())
