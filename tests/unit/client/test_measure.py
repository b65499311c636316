"""A site's one release of counts: charged first, of units that train nothing, the same again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict
from torch import Tensor, nn

from client.measure import judged
from client.site import Site
from common.adapter import Vector, vector_sha256
from common.errors import JobRefused, RoundRefused
from common.flower import content_to_bytes
from common.job import Job, SignedJob, sign_job
from common.messages import Order, read_verdict
from common.metric_messages import NO_COUNTS, read_counts
from common.phases import read_charged
from common.privacy.charge import HeadOf
from common.receipt import Confirmation
from common.tasks.batches import Batch

pytestmark = pytest.mark.usefixtures("unrehearsed")

MakeJob = Callable[..., Job]
MakeSite = Callable[..., Site]
ASKED: dict[str, Any] = {
    "release": ["accuracy", "classes", "loss"],
    "hold_out": 0.5,
    "share": 0.1,
    "loss_edges": [0.5, 1.5],
}
ALLOWED = {"allowed_releases": ["update", "metrics"]}


@pytest.fixture
def signed(job: MakeJob, operator: Ed25519PrivateKey) -> SignedJob:
    return sign_job(job(metrics=ASKED), operator)


def released(made: Site, signed: SignedJob, vector: Vector) -> RecordDict:
    """What leaves once the charge was shown and its head confirmed."""
    job = signed.job
    shown = read_charged(made.measure(order(signed), vector))
    assert shown.reserved.purpose == "metrics"
    return made.release(confirmation(job, shown.head))


def confirmation(job: Job, head: HeadOf) -> Confirmation:
    return Confirmation(
        job_sha256=job.sha256,
        round=job.metrics_round,
        site="A",
        head=head,
        at="2026-11-28T01:00:00Z",
    )


def order(signed: SignedJob, round_: int | None = None) -> Order:
    return Order(signed, signed.job.metrics_round if round_ is None else round_, None)


def test_counts_are_charged_before_a_record_is_looked_at_and_given_once(
    site: MakeSite, signed: SignedJob
) -> None:
    made: Site = site(policy=ALLOWED)
    trainer = made.consider(signed)
    job, seen = signed.job, []

    def watched(model: nn.Module, batch: Batch) -> Tensor:
        seen.append([c.purpose for c in made.outbox.charges()])
        return trainer.losses(model, batch)

    made._trainers = {job.sha256: replace(trainer, losses=watched)}
    start = trainer.adapter.initial
    first = released(made, signed, start)
    assert len(seen) == len(trainer.held)
    assert all(charged == ["metrics"] for charged in seen)
    assert content_to_bytes(released(made, signed, start)) == content_to_bytes(first)
    assert len(seen) == len(trainer.held)  # asked again, no record is looked at
    found = read_counts(first, job)
    assert found.input_sha256 == vector_sha256(start)
    with pytest.raises(RoundRefused, match="must start from the adapter it was reserved for"):
        made.measure(order(signed), start + np.float32(0.5))
    with pytest.raises(RoundRefused, match="after its rounds"):
        made.measure(order(signed, 1), start)
    assert len(made.outbox.charges()) == 1

    # The home opened anew has the same division and gives the same bytes.
    again: Site = site(policy=ALLOWED)
    held = again.consider(signed).held
    assert held == trainer.held
    assert content_to_bytes(released(again, signed, start)) == content_to_bytes(first)


def test_no_unit_both_trains_and_counts_and_the_counts_are_the_models(
    site: MakeSite, signed: SignedJob
) -> None:
    made: Site = site(policy=ALLOWED)
    trainer = made.consider(signed)
    held = [example for unit in trainer.held for _, example in unit]
    trains = [example for unit in trainer.units for example in unit]
    assert len(held) + len(trains) == 36
    assert held
    assert trains
    assert not {e.input_ids for e in held} & {e.input_ids for e in trains}
    job = signed.job
    found = read_counts(released(made, signed, trainer.adapter.initial), job).counts
    # The counts by hand, from what the model says of each record.
    verdicts = [judged(trainer, pair) for unit in trainer.held for pair in unit]
    right = sum(v.is_right for v in verdicts)
    by_hand = [right, len(verdicts) - right]
    for label in range(3):
        mine = [v.is_right for v in verdicts if v.label == label]
        by_hand += [sum(mine), len(mine) - sum(mine)]
    losses = [v.loss for v in verdicts]
    by_hand += [sum(x < 0.5 for x in losses), sum(0.5 <= x < 1.5 for x in losses),
                sum(x >= 1.5 for x in losses)]  # fmt: skip
    noise = found - np.array(by_hand)
    assert noise.any()
    assert np.abs(noise).max() < 7 * job.metrics_deviation


def test_what_goes_wrong_is_answered_once_in_fixed_words(site: MakeSite, signed: SignedJob) -> None:
    made: Site = site(policy=ALLOWED)
    trainer = made.consider(signed)

    def broken(*_: object) -> Tensor:
        raise ValueError("w12 w13 is somebody's record")

    made._trainers = {signed.job.sha256: replace(trainer, losses=broken)}
    said = released(made, signed, trainer.adapter.initial)
    verdict = read_verdict(said)
    assert verdict is not None
    assert (verdict.is_accepted, verdict.reason) == (False, NO_COUNTS)
    made._trainers = {signed.job.sha256: trainer}  # mended, it says the same
    again = released(made, signed, trainer.adapter.initial)
    assert content_to_bytes(again) == content_to_bytes(said)
    assert [c.purpose for c in made.outbox.charges()] == ["metrics"]


def test_nothing_leaves_before_the_charges_head_is_confirmed(
    site: MakeSite, signed: SignedJob
) -> None:
    made: Site = site(policy=ALLOWED)
    job, start = signed.job, made.consider(signed).adapter.initial
    shown = made.measure(order(signed), start)
    assert set(shown) == {"charge"}
    charge = read_charged(shown)
    other = charge.head.model_copy(update={"root": "ab" * 32})
    early = charge.head.model_copy(update={"size": charge.row.seq})
    for head in (other, early):
        with pytest.raises(RoundRefused, match="confirmed head must be this ledger's"):
            made.release(confirmation(job, head))
    assert set(made.release(confirmation(job, charge.head))) == {"counts", "head"}


def test_a_site_that_does_not_allow_counts_refuses_the_job(
    site: MakeSite, signed: SignedJob
) -> None:
    made: Site = site()
    with pytest.raises(JobRefused, match="release must be one of update at this site"):
        made.consider(signed)
    assert made.outbox.submissions() == []


def test_groups_need_a_column_at_the_site(
    site: MakeSite, job: MakeJob, operator: Ed25519PrivateKey
) -> None:
    asked = {**ASKED, "release": ["groups"], "groups": ["icu"], "loss_edges": []}
    made: Site = site(policy=ALLOWED)
    with pytest.raises(JobRefused, match="this site's data set has a group column mapped"):
        made.consider(sign_job(job(metrics=asked), operator))


def test_a_job_without_counts_gives_none(
    site: MakeSite, job: MakeJob, operator: Ed25519PrivateKey
) -> None:
    made: Site = site(policy=ALLOWED)
    plain = sign_job(job(), operator)
    trainer = made.consider(plain)
    assert trainer.held == ()
    assert len(trainer.units) == 36
    with pytest.raises(RoundRefused, match="metrics must be those of the job"):
        made.measure(Order(plain, plain.job.metrics_round, None), trainer.adapter.initial)
    assert made.outbox.charges() == []
