"""A job whose sites release counts of their own held-out records: charged, once, and true."""

from collections.abc import Callable
from typing import Any

from common.audit.recompute import check_outcome
from common.job import Job
from common.privacy import accounting

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]
ALLOWED: dict[str, Any] = {"policy": {"allowed_releases": ["update", "metrics"]}}
ASKED: dict[str, Any] = {
    "release": ["accuracy", "classes", "loss"],
    "hold_out": 0.25,
    "share": 0.1,
    "loss_edges": [0.5, 1.5],
}


def test_counts_are_charged_stated_and_recomputed(job: MakeJob, federation: MakeFederation) -> None:
    made = job(training={"rounds": 2}, metrics=ASKED)
    fed = federation(made, **ALLOWED)
    result = fed.run()
    stated = result.metrics
    assert stated is not None
    assert {one.site for one in stated.sites} == {"A", "B"}
    for site in result.sites:
        charges = fed.sites[site.name].outbox.charges()
        assert [c.purpose for c in charges] == ["update", "update", "metrics"]
        assert all(c.is_released and c.is_acknowledged for c in charges)
        events = [c.event for c in charges]
        assert events[-1] == made.metrics_event
        assert site.epsilon == accounting.epsilon(events, 1e-5)
        assert site.epsilon <= 6.0
        assert site.epsilon > result.rounds[-1].epsilon
    _, claims = check_outcome(fed.folder / "out")
    assert all(claim.passed for claim in claims), [c for c in claims if not c.passed]
    assert "metrics" in {claim.subject for claim in claims}
