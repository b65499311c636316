"""A job whose sites release counts of their own held-out records: charged, once, and true."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.peers import Peers
from common import pki
from common.audit.heads_cli import read_heads
from common.audit.recompute import check_outcome
from common.flower import content_from_bytes, content_to_bytes
from common.job import Job
from common.metric_messages import METRICS
from common.phases import RELEASE
from common.privacy import accounting
from common.privacy.charge import check_charge
from common.receipt import ServerKey, verify_signed
from server import views
from server.counts import answers

pytestmark = pytest.mark.usefixtures("unrehearsed")

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]
ALLOWED: dict[str, Any] = {"policy": {"allowed_releases": ["update", "metrics"]}}
ASKED: dict[str, Any] = {
    "release": ["accuracy", "classes", "loss"],
    "hold_out": 0.25,
    "share": 0.1,
    "loss_edges": [0.5, 1.5],
}


class Killed(Exception):
    """The server's process ends here."""


def is_counts(reply: Message) -> bool:
    return "counts" in reply.content.config_records


@pytest.mark.slow
def test_counts_are_charged_stated_and_recomputed_over_a_server_that_was_killed(
    job: MakeJob, federation: MakeFederation
) -> None:
    made = job(training={"rounds": 1}, metrics=ASKED)
    fed = federation(made, **ALLOWED)
    given = []

    def killed(site: str, reply: Message) -> Message:
        if is_counts(reply) and site == "B":
            given.append(content_to_bytes(reply.content))
            if len(given) == 1:
                raise Killed
        return reply

    fed.tap = killed
    with pytest.raises(Killed):
        fed.run()
    # Asked is charged, whatever came.
    asked = answers(fed.checkpoints, made.sha256)
    assert {site: one.is_answered for site, one in asked.items()} == {"A": True, "B": False}
    result = fed.run()
    assert given[0] == given[1]
    assert sum(m.metadata.message_type == METRICS for _, m in fed.requests) == 3
    # Each answer to an order is a charge; only the confirmation of its head brings counts.
    released = [m for _, m in fed.requests if m.metadata.message_type == RELEASE]
    assert sum(m.metadata.group_id == "metrics" for m in released) == 3
    stated = result.metrics
    assert stated is not None
    assert {one.site for one in stated.sites} == {"A", "B"}
    for site in result.sites:
        charges = fed.sites[site.name].outbox.charges()
        assert [c.purpose for c in charges] == ["update", "metrics"]
        assert all(c.is_released and c.is_acknowledged for c in charges)
        events = [c.event for c in charges]
        assert events[-1] == made.metrics_event
        assert site.epsilon == accounting.epsilon(events, 1e-5)
        assert result.rounds[-1].epsilon < site.epsilon <= 6.0
    _, claims = check_outcome(fed.folder / "out")
    assert all(claim.passed for claim in claims), [c for c in claims if not c.passed]
    assert "metrics" in {claim.subject for claim in claims}
    shown = views.detail(fed.checkpoints.job("wards"), fed.checkpoints, Path())
    assert shown["metrics"] == stated.model_dump(mode="json")
    assert [site["counts"] for site in shown["spent"]] == [1, 1]
    for name in ("report.html", "adapter/README.md"):
        page = (fed.folder / "out" / name).read_text()
        assert "On the sites" in page
        assert "own held-out records" in page


@pytest.mark.slow
def test_an_answer_beyond_the_schema_is_dropped_and_stays_charged(
    job: MakeJob, federation: MakeFederation
) -> None:
    made = job(training={"rounds": 1}, metrics=ASKED)
    fed = federation(made, **ALLOWED)

    def telling(site: str, reply: Message) -> Message:
        if not is_counts(reply) or site != "A":
            return reply
        body = ConfigRecord({**reply.content.config_records["counts"], "n": 9})
        reply.content = RecordDict({**reply.content, "counts": body})
        return reply

    fed.tap = telling
    result = fed.run()
    assert result.metrics is not None
    assert result.metrics.silent == ("A",)
    assert [one.site for one in result.metrics.sites] == ["B"]
    assert [site.counts for site in result.sites] == [1, 1]
    assert result.sites[0].epsilon == result.sites[1].epsilon
    assert answers(fed.checkpoints, made.sha256)["A"].reason.startswith("counts must hold")
    (charge,) = [c for c in fed.sites["A"].outbox.charges() if c.purpose == "metrics"]
    assert charge.is_released
    assert not charge.is_acknowledged  # the receipt is for other bytes than it sent


def test_counts_without_a_confirmed_charge_are_not_taken(
    job: MakeJob, federation: MakeFederation
) -> None:
    made = job(training={"rounds": 1}, metrics=ASKED)
    fed = federation(made, **ALLOWED)

    def hasty(site: str, reply: Message) -> Message:
        """A site that sends its counts in its charge's place."""
        if site == "A" and fed.requests[-1][1].metadata.message_type == METRICS:
            outbox = fed.sites["A"].outbox
            reply.content = content_from_bytes(outbox.released(made.sha256, made.metrics_round))
        return reply

    fed.tap = hasty
    result = fed.run()
    assert result.metrics is not None
    assert result.metrics.silent == ("A",)
    assert answers(fed.checkpoints, made.sha256)["A"].reason.startswith("counts must follow")
    assert [site.counts for site in result.sites] == [1, 1]


@pytest.mark.slow
def test_a_server_that_signs_binds_the_counts_charges_to_the_last_round(
    job: MakeJob, federation: MakeFederation
) -> None:
    """Sites that trust its root take the receipt, and a server started anew asks nobody again."""
    made = job(training={"rounds": 1}, metrics=ASKED)
    fed = federation(made, **ALLOWED)
    root = pki.create_root("counts")
    issued = pki.issue_server(pki.create_intermediate(root), ["127.0.0.1"])
    fed.server_key = lambda: ServerKey(issued.certificate, issued.key)
    for site in fed.sites.values():
        (site.home.folder / "pki").mkdir(exist_ok=True)
        (site.home.folder / "pki/root.pem").write_bytes(root.certificate)
    result = fed.run()
    last, counts = fed.checkpoints.round_receipts(made.sha256)
    verify_signed(counts, root.certificate)
    receipt = counts.receipt
    assert (receipt.round, receipt.before) == (made.metrics_round, last.sha256)
    assert receipt.input_sha256 == receipt.output_sha256 == result.vector_sha256
    assert receipt.asked == ("A", "B")
    for site, charge in receipt.charges.items():
        entry = check_charge(charge, {charge.head.public_key}.__contains__)
        assert (entry.purpose, entry.charge.noise_multiplier) == (
            "metrics",
            made.metrics_event.noise_multiplier if made.metrics_event else 0,
        )
        assert charge.since is not None
        assert charge.since.is_same(last.receipt.heads[site])
        kept = fed.sites[site].outbox.charges()[-1]
        (reply,) = [reply for reply in receipt.replies if reply.site == site]
        assert reply.payload_sha256 == kept.payload_sha256
        home = fed.sites[site].home
        assert Peers(fed.sites[site].outbox, home).alarms() == []
        others, _ = read_heads(home.folder, "B" if site == "A" else "A")
        assert [row.state for row in others] == ["first", "consistent"]
    before = len(fed.requests)
    assert fed.run().metrics == result.metrics
    again = [m.metadata.message_type for _, m in fed.requests[before:]]
    assert METRICS not in again
