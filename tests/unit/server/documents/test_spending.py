"""What the rows bear out: evidence that was bent is refused before a document is written."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from common.audit.evidence import Evidence
from common.audit.spending import spendings
from common.config import parse
from common.errors import InvalidInput
from common.result import Result

Edit = Callable[[dict[str, Any]], None]


def edited(evidence: Evidence, edit: Edit) -> Evidence:
    data = evidence.result.model_dump(mode="json")
    edit(data)
    return replace(evidence, result=parse(Result, data, "test"))


def fewer_steps(data: dict[str, Any]) -> None:
    data["sites"][0]["steps"] -= 8


def more_steps(data: dict[str, Any]) -> None:
    data["sites"][0]["steps"] += 8


def less_epsilon(data: dict[str, Any]) -> None:
    data["sites"][0]["epsilon"] /= 2


def more_noise(data: dict[str, Any]) -> None:
    data["privacy"]["noise_multiplier"] *= 2


def another_job(data: dict[str, Any]) -> None:
    data["job_sha256"] = "12" * 32


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (fewer_steps, r"result.sites.riverside.steps must be at least 96 by the receipts, got 88"),
        (more_steps, r"result.sites.riverside.epsilon must be 3\.0.* by its charges, got 2\.9"),
        (less_epsilon, r"result.sites.riverside.epsilon must be 2\.9.* by its charges, got 1\.4"),
        (more_noise, r"charge of round 1 must be of the job's mechanism"),
        (another_job, r"result.job_sha256 must be that of the job"),
    ],
)
def test_a_claim_that_the_rows_do_not_bear_out_is_refused(
    edit: Edit, said: str, evidence: Evidence
) -> None:
    with pytest.raises(InvalidInput, match=said):
        spendings(edited(evidence, edit))


def test_a_dropped_charge_counts_as_charged_all_the_same(evidence: Evidence) -> None:
    """Who was asked and is silent is charged: the claim holds, fewer of its steps are signed."""
    first = evidence.receipts[0]
    charges = {s: c for s, c in first.receipt.charges.items() if s != "riverside"}
    silent = first.model_copy(
        update={"receipt": first.receipt.model_copy(update={"charges": charges})}
    )
    bent = replace(evidence, receipts=(silent, *evidence.receipts[1:]))
    before = {s.promise.name: s.signed for s in spendings(evidence)}
    after = {s.promise.name: s.signed for s in spendings(bent)}
    assert (before["riverside"], after["riverside"]) == (96, 88)
    assert after["st-anne"] == before["st-anne"] == 96


def test_a_silent_sites_rounds_may_not_be_left_out(evidence: Evidence) -> None:
    """Neither signed nor claimed, but asked for: that is eight steps too few."""
    first = evidence.receipts[0]
    charges = {s: c for s, c in first.receipt.charges.items() if s != "riverside"}
    silent = first.model_copy(
        update={"receipt": first.receipt.model_copy(update={"charges": charges})}
    )
    bent = replace(evidence, receipts=(silent, *evidence.receipts[1:]))
    with pytest.raises(InvalidInput, match=r"steps must be at least 96 by the receipts, got 88"):
        spendings(edited(bent, fewer_steps))
