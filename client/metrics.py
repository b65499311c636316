"""A site's figures for Prometheus: its link, its certificate, its ledger.

None is computed from records. Rounds, steps and epsilon follow from jobs that everybody agreed to,
and are charged before a record is read; the link's state the server sees too. What would tell of
records is missing on purpose: how long training took, what memory it had, how many records there
are, whether data were refused. A monitoring system carries figures away, and that is a release.

Not covered: what else of this machine its owner measures.
"""

import datetime as dt
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cryptography import x509
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from client.config import SiteHome
from client.identity import read_identity
from client.outbox import Outbox
from client.presence import Presence
from common.errors import InvalidInput, StorageFailed
from common.metrics import build_info, by_label, gauge

if TYPE_CHECKING:
    from client.spending import Spending


class SiteMetrics:
    """What a running site tells.

    Args:
        home: the site's.
        outbox: its account.

    Attributes:
        presence: how it last said that it stands.
    """

    def __init__(self, home: SiteHome, outbox: Outbox) -> None:
        self._home, self._outbox = home, outbox
        self.presence: Presence | None = None
        self._lock = threading.Lock()
        self._counted: tuple[str, Spending] | None = None  # a ledger's root, what it adds up to

    def __call__(self) -> Iterator[Metric]:
        """Every figure, as of now."""
        yield build_info()
        yield from self._link()
        yield from self._certificate()
        try:
            found = list(self._ledger())
        except (InvalidInput, StorageFailed):
            found = []
        help_ = "Whether the ledger is whole; nothing is trained while it is not."
        yield gauge("veiltune_site_ledger_whole", help_, bool(found))
        yield from found

    def _link(self) -> Iterator[Metric]:
        if (said := self.presence) is None:
            return
        yield gauge("veiltune_site_connected", "Whether the server is reached.", said.connected)
        name = "veiltune_site_link_change_timestamp_seconds"
        since = dt.datetime.fromisoformat(said.since).timestamp()
        yield gauge(name, "When that last changed.", since)

    def _certificate(self) -> Iterator[Metric]:
        try:
            leaf = x509.load_pem_x509_certificate(read_identity(self._home).certificate)
        except (InvalidInput, ValueError):
            return
        name = "veiltune_site_certificate_expiry_timestamp_seconds"
        yield gauge(
            name, "When this site's certificate expires.", leaf.not_valid_after_utc.timestamp()
        )

    def _ledger(self) -> Iterator[Metric]:
        head, spent = self._outbox.head(), self._spent()
        charges, states = self._outbox.charges(), dict[str, float]()
        for job in self._outbox.submissions():
            states[job.state] = states.get(job.state, 0) + 1
        yield gauge("veiltune_site_ledger_entries", "Entries of the ledger.", head.size)
        yield by_label("veiltune_site_jobs", "Jobs that were accepted.", "state", states)
        rounds = [charge for charge in charges if charge.purpose == "update"]
        yield CounterMetricFamily(
            "veiltune_site_charged_rounds", "Rounds charged.", value=len(rounds)
        )
        yield CounterMetricFamily(
            "veiltune_site_charged_steps",
            "Steps charged.",
            value=sum(charge.event.steps for charge in rounds),
        )
        yield CounterMetricFamily(
            "veiltune_site_uncovered_rounds",
            "Rounds without noise, which no epsilon covers.",
            value=spent.uncovered_rounds,
        )
        of = "over the life of the data, by the accountant of the cap"
        yield gauge("veiltune_site_epsilon_limit", f"The most epsilon {of}.", spent.max_epsilon)
        yield gauge("veiltune_site_epsilon_charged", f"Epsilon charged {of}.", spent.charged)
        yield gauge(
            "veiltune_site_epsilon_drawn", f"Charged, with what open jobs hold, {of}.", spent.drawn
        )
        yield gauge("veiltune_site_delta", "The delta of these epsilons.", spent.delta)

    def _spent(self) -> "Spending":
        """What the ledger adds up to, computed once for each of its heads."""
        from client.account import life_of  # the accountant takes a second to import
        from client.spending import over_life

        with self._lock:
            root = self._outbox.head().root
            if self._counted is None or self._counted[0] != root:
                self._counted = (root, over_life(life_of(self._outbox)))
            return self._counted[1]
