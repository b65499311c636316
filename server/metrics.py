"""A server's figures for Prometheus: its sites, its jobs, its certificates.

All of it is what ``fl-server jobs`` and ``show`` tell the operator. Totals are of the durable
state, so they go on after a restart, and go back when an older state is restored.

Not covered: accuracy and epsilon, which belong to a job and are in its outcome.
"""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from sqlalchemy.engine import Connection

from common.errors import InvalidInput, StorageFailed
from common.metrics import build_info, by_label, gauge
from server import tables
from server.checkpoint import STATES, Checkpoints
from server.link import LinkServer
from server.roster import Roster

_CERTIFICATES = ("root", "intermediate", "server")


class ServerMetrics:
    """What a running server tells."""

    def __init__(
        self, home: Path, link: LinkServer, roster: Roster, checkpoints: Checkpoints
    ) -> None:
        self._home, self._link = home, link
        self._roster, self._checkpoints = roster, checkpoints

    def __call__(self) -> Iterator[Metric]:
        """Every figure, as of now."""
        yield build_info()
        yield from self._sites()
        yield self._certificates()
        try:
            with self._checkpoints.reading() as connection:
                found = list(_state(connection))
        except StorageFailed:
            found = []
        help_ = "Whether the database can be read; no round closes while it cannot."
        yield gauge("veiltune_server_state_readable", help_, bool(found))
        yield from found

    def _sites(self) -> Iterator[Metric]:
        try:
            sites = self._roster.sites()
        except (InvalidInput, StorageFailed):
            return
        now, connected = dt.datetime.now(dt.UTC), self._link.connected()
        expiries = {
            site: max(standing).timestamp()
            for site, entries in sites.items()
            if (standing := [e.not_after for e in entries if e.stands(now)])
        }
        ups = {site: float(site in connected) for site in expiries}
        name = "veiltune_server_site_connected"
        yield by_label(name, "Whether a site that is admitted is connected.", "site", ups)
        name = "veiltune_server_site_certificate_expiry_timestamp_seconds"
        yield by_label(name, "When a site's latest certificate expires.", "site", expiries)

    def _certificates(self) -> Metric:
        found = {}
        for name in _CERTIFICATES:
            path = self._home / "pki" / f"{name}.pem"
            try:
                leaf = x509.load_pem_x509_certificate(path.read_bytes())
            except (OSError, ValueError):
                continue
            found[name] = leaf.not_valid_after_utc.timestamp()
        name = "veiltune_server_certificate_expiry_timestamp_seconds"
        return by_label(name, "When this server's certificates expire.", "certificate", found)


def _state(connection: Connection) -> Iterator[Metric]:
    jobs, rounds, receipts = tables.jobs.c, tables.rounds.c, tables.receipts.c
    counts: dict[str, float] = dict.fromkeys(STATES, 0.0)
    query = sa.select(jobs.state, sa.func.count()).group_by(jobs.state)
    counts |= {state: float(count) for state, count in connection.execute(query)}
    yield by_label("veiltune_server_jobs", "Jobs by state.", "state", counts)
    yield _running(connection)
    closed = sa.select(
        sa.func.count(), sa.func.sum(rounds.seconds), sa.func.sum(rounds.bytes_up)
    ).where(rounds.round > 0)
    ((count, seconds, size),) = connection.execute(closed)
    yield SummaryMetricFamily(
        "veiltune_server_round_duration_seconds",
        "Rounds that were closed, and the time from asking to closing.",
        count_value=count,
        sum_value=seconds or 0.0,
    )
    yield CounterMetricFamily(
        "veiltune_server_received_bytes", "Bytes of replies in closed rounds.", value=size or 0
    )
    family = CounterMetricFamily(
        "veiltune_server_updates", "Updates of closed rounds.", labels=["result"]
    )
    verdicts = {True: 0, False: 0}
    query = sa.select(receipts.accepted, sa.func.count()).group_by(receipts.accepted)
    verdicts |= {bool(accepted): number for accepted, number in connection.execute(query)}
    for accepted, number in verdicts.items():
        family.add_metric(["accepted" if accepted else "rejected"], number)
    yield family


def _running(connection: Connection) -> Metric:
    """Only of jobs under way: of all, there would be ever more."""
    jobs, rounds = tables.jobs.c, tables.rounds.c
    last = (
        sa.select(jobs.name, jobs.sha256, sa.func.max(rounds.round))
        .join(tables.rounds, rounds.job_sha256 == jobs.sha256, isouter=True)
        .where(jobs.state == "running")
        .group_by(jobs.name, jobs.sha256)
    )
    family = GaugeMetricFamily(
        "veiltune_server_job_round", "The last closed round of a job.", labels=["job", "id"]
    )
    for name, sha256, round_ in connection.execute(last):
        family.add_metric([name, sha256[:12]], round_ or 0)
    return family
