import gc
import json
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from common import messages
from common.adapter import AdapterTable, TensorSpec, vector_sha256
from common.errors import JobRefused, UpdateRejected
from common.flower import content_from_bytes, content_to_bytes
from common.job import Job, SignedJob, sign_job
from common.messages import Receipt, Update
from common.phases import is_charge
from common.privacy.ledger import WITNESSED, Head

MakeJob = Callable[..., Job]
TABLE = AdapterTable((TensorSpec("b", (3, 2)), TensorSpec("c", (5,))), "aa")
VECTOR = np.linspace(-1, 2, 11, dtype=np.float32)
START = vector_sha256(np.zeros(11, dtype=np.float32))
HEAD = Head(7, "ab" * 32, "cd" * 72, "ef" * 91)


@pytest.fixture
def signed(job: MakeJob, operator: Any) -> SignedJob:  # noqa: ANN401 -- an Ed25519 key
    return sign_job(job(), operator)


def wire(content: RecordDict) -> RecordDict:
    return content_from_bytes(content_to_bytes(content))


def answer(job: Job, **changes: Any) -> RecordDict:  # noqa: ANN401
    made = Update(VECTOR, 2, START, steps=2, charged_steps=4, head=HEAD)
    content = messages.update(job, TABLE, made)
    content.config_records["round"].update(changes)
    return wire(content)


@pytest.mark.parametrize(("codec", "tolerance"), [("fp32", 0.0), ("bf16", 2**-8)])
def test_an_update_arrives_as_the_codec_rounds_it(
    job: MakeJob, codec: str, tolerance: float
) -> None:
    read = messages.read_update(answer(job(training={"codec": codec})), job(
        training={"codec": codec}), TABLE)  # fmt: skip
    assert np.all(np.abs(read.vector - VECTOR) <= np.abs(VECTOR) * tolerance)
    assert (read.round, read.input_sha256, read.steps, read.charged_steps) == (2, START, 2, 4)


def test_an_update_holds_the_closed_schema_and_nothing_else(job: MakeJob) -> None:
    content = answer(job())
    assert set(content) == {"arrays", "head", "manifest", "round"}
    assert set(content.config_records["head"]) == {"size", "root", "signature", "public_key"}
    assert set(content.config_records["round"]) == {
        "round", "input_sha256", "steps", "charged_steps",
    }  # fmt: skip
    assert set(content.config_records["manifest"]) == {"codec", "table", "sha256"}
    assert not content.metric_records


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": 0.25}, "update's round must hold"),
        ({"steps": 3}, "steps must be 2, got 3"),
        ({"steps": -2}, "steps must be a count"),
        ({"steps": "2"}, "steps must be a count"),
        ({"round": 2.0}, "round must be a count"),
        ({"charged_steps": 2**60}, "charged_steps must be whole rounds of 2, at most 4"),
        ({"charged_steps": 6}, "at most 4, got 6"),
        ({"charged_steps": 3}, "whole rounds of 2"),
        ({"charged_steps": 0}, "whole rounds of 2"),
    ],
)
def test_figures_that_no_round_has_are_rejected(
    job: MakeJob, changes: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(UpdateRejected) as caught:
        messages.read_update(answer(job(), **changes), job(), TABLE)
    assert says in str(caught.value)


def without(content: RecordDict, key: str) -> RecordDict:
    return RecordDict({name: record for name, record in content.items() if name != key})


def test_a_record_too_many_or_too_few_is_rejected(job: MakeJob) -> None:
    content = answer(job())
    for wrong in (
        *(without(content, key) for key in ("arrays", "manifest", "round")),
        RecordDict({**content, "metrics": ConfigRecord({"loss": 0.3})}),
        RecordDict({**content, "arrays": ConfigRecord({"adapter": 1})}),
        RecordDict({**content, "round": ArrayRecord()}),
    ):
        with pytest.raises(UpdateRejected, match="must"):
            messages.read_update(wire(wrong), job(), TABLE)


def test_an_update_for_another_table_is_rejected(job: MakeJob) -> None:
    for other in (
        AdapterTable(TABLE.tensors, "bb"),
        AdapterTable((TensorSpec("b", (2, 3)), TensorSpec("c", (5,))), "aa"),
        AdapterTable((TensorSpec("b", (3, 2)), TensorSpec("c", (6,))), "aa"),
    ):
        with pytest.raises(UpdateRejected, match="must"):
            messages.read_update(answer(job()), job(), other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_sent(job: MakeJob, bad: float) -> None:
    vector = VECTOR.copy()
    vector[7] = bad
    with pytest.raises(UpdateRejected, match="must be finite"):
        messages.update(job(), TABLE, Update(vector, 1, START, 2, 2, HEAD))


def test_an_order_brings_job_round_adapter_and_receipt(signed: SignedJob) -> None:
    receipt = Receipt(2, "ef" * 32, is_accepted=False)
    content = wire(messages.order(signed, TABLE, VECTOR, 3, receipt))
    read = messages.read_order(content)
    assert (read.signed, read.round, read.receipt) == (signed, 3, receipt)
    assert messages.read_global(content, TABLE).tobytes() == VECTOR.tobytes()
    first = messages.read_order(wire(messages.order(signed, TABLE, VECTOR, 1, None)))
    assert first.receipt is None


@pytest.mark.parametrize("round_", [0, -1, 1.5, "1", None])
def test_an_order_without_a_round_is_rejected(signed: SignedJob, round_: object) -> None:
    content = messages.order(signed, TABLE, VECTOR, 1, None)
    content["round"] = ConfigRecord({} if round_ is None else {"round": round_})  # type: ignore[dict-item]
    with pytest.raises(UpdateRejected, match="round must be at least 1"):
        messages.read_order(wire(content))


@pytest.mark.parametrize(
    "receipt",
    [
        "", "null", "5", "[1, 2]", '["x", "y", true]', "[null, null, null]", '[{}, "a", true]',
        f'[1{"0" * 40}, "a", true]', '[true, "a", true]', '[1, 2, true]', '[1, "a", 1]',
        "[" * 190, '[-1, "a", true]', '[1.5, "a", true]',
    ],
)  # fmt: skip
def test_a_receipt_that_is_none_is_rejected_not_raised_on(signed: SignedJob, receipt: str) -> None:
    content = messages.order(signed, TABLE, VECTOR, 1, None)
    content.config_records["round"]["receipt"] = receipt
    with pytest.raises(UpdateRejected, match="receipt must be"):
        messages.read_order(wire(content))
    closing = messages.close("ab" * 32, "finished", None, None)
    closing.config_records["close"]["receipt"] = receipt
    with pytest.raises(UpdateRejected, match="receipt must be"):
        messages.read_close(wire(closing))


@given(st.text(max_size=80) | st.integers() | st.binary(max_size=40) | st.booleans())
def test_whatever_stands_for_a_receipt_only_a_rejection_comes_of_it(value: Any) -> None:  # noqa: ANN401
    body = ConfigRecord({"job_sha256": "a", "state": "b", "final_sha256": "c"})
    try:
        body["receipt"] = value
    except (TypeError, ValueError):
        return  # Flower does not carry it
    with pytest.raises(UpdateRejected):
        messages.read_close(RecordDict({"close": body}))


def test_a_message_without_a_manifest_is_refused() -> None:
    for content in (RecordDict(), RecordDict({"job": ConfigRecord({"manifest": "text"})})):
        with pytest.raises(JobRefused, match="must carry a signed manifest"):
            messages.read_offer(content)


def test_a_verdict_is_read_as_given_and_only_true_accepts() -> None:
    assert messages.read_verdict(wire(messages.verdict(accepted=True))) == messages.Verdict(True)
    refused = messages.read_verdict(wire(messages.verdict(accepted=False, reason="x" * 900)))
    assert refused == messages.Verdict(False, "x" * 500)
    odd = RecordDict({"verdict": ConfigRecord({"accepted": 1})})
    assert messages.read_verdict(odd) == messages.Verdict(False)
    assert messages.read_verdict(RecordDict()) is None


def test_a_closing_names_job_state_and_final_adapter() -> None:
    receipt = Receipt(3, "ef" * 32, is_accepted=True)
    read = messages.read_close(wire(messages.close("ab" * 32, "finished", VECTOR, receipt)))
    assert (read.job_sha256, read.state, read.receipt) == ("ab" * 32, "finished", receipt)
    assert read.final_sha256 == vector_sha256(VECTOR)
    whole = {"job_sha256": "ab" * 32, "state": "stopped", "final_sha256": ""}
    assert messages.read_close(RecordDict({"close": ConfigRecord(dict(whole))})).state == "stopped"
    wrongs: list[dict[str, Any]] = [
        {},
        {**whole, "job_sha256": "a" * 65},
        {**whole, "final_sha256": "x" * 64},
        {**whole, "final_sha256": 5},
        *({**whole, "state": state} for state in ("running", "refused", "", "\x1b[2J", 5)),
    ]
    for wrong in wrongs:
        with pytest.raises(UpdateRejected, match="close must name"):
            messages.read_close(RecordDict({"close": ConfigRecord(dict(wrong))}))


def test_no_message_of_a_job_is_larger_than_its_cap(signed: SignedJob) -> None:
    cap = messages.job_cap(signed.job, TABLE)
    receipt = Receipt(3, "ef" * 32, is_accepted=True)
    for content in (
        messages.offer(signed, HEAD),
        messages.order(signed, TABLE, VECTOR, 3, receipt, HEAD),
        messages.update(signed.job, TABLE, Update(VECTOR, 3, START, 2, 6, HEAD)),
        messages.close(signed.job.sha256, "finished", VECTOR, receipt),
    ):
        assert len(content_to_bytes(content)) + 4096 < cap


def test_a_ledgers_head_goes_both_ways(signed: SignedJob) -> None:
    sent = [
        (messages.update(signed.job, TABLE, Update(VECTOR, 3, START, 2, 6, HEAD)), messages.HEAD),
        (messages.verdict(accepted=True, head=HEAD), messages.HEAD),
        (messages.offer(signed, HEAD), WITNESSED),
        (messages.order(signed, TABLE, VECTOR, 3, None, HEAD), WITNESSED),
    ]
    for content, name in sent:
        assert messages.read_head(wire(content), name) == HEAD
    assert messages.read_head(wire(messages.offer(signed)), WITNESSED) is None
    assert messages.read_head(wire(messages.verdict(accepted=True)), messages.HEAD) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0}, {"size": -1}, {"size": 2**60}, {"size": "7"}, {"size": 7.0}, {"root": 5},
        {"root": "ab"}, {"signature": "a" * 401}, {"public_key": b"key"}, {"count": 12},
    ],
)  # fmt: skip
def test_a_head_is_four_fields_of_their_size(job: MakeJob, changes: dict[str, Any]) -> None:
    content = answer(job())
    content.config_records["head"].update(changes)
    with pytest.raises(UpdateRejected, match="head must be a ledger's head"):
        messages.read_update(content, job(), TABLE)


def test_an_update_without_a_head_is_rejected(job: MakeJob) -> None:
    content = answer(job())
    del content["head"]
    with pytest.raises(UpdateRejected, match="update must hold arrays, head"):
        messages.read_update(content, job(), TABLE)


def test_a_manifest_is_what_was_signed(signed: SignedJob) -> None:
    read = messages.read_offer(wire(messages.offer(signed)))
    assert read.to_bytes() == signed.to_bytes()
    assert json.loads(signed.to_bytes())["signature"] == signed.signature


def test_content_that_was_read_is_gone_with_its_last_holder(signed: SignedJob) -> None:
    """Not when Python next looks for cycles: a server would hold every adapter until then."""
    update = messages.update(signed.job, TABLE, Update(VECTOR, 3, START, 2, 6, HEAD))
    reads: list[tuple[RecordDict, Callable[[RecordDict], object]]] = [
        (update, lambda content: messages.read_update(content, signed.job, TABLE)),
        (messages.order(signed, TABLE, VECTOR, 3, None, HEAD), messages.read_order),
        (
            messages.order(signed, TABLE, VECTOR, 3, None, HEAD),
            lambda content: messages.read_global(content, TABLE),
        ),
        (update, messages.read_verdict),
        (update, is_charge),
        (messages.close(signed.job.sha256, "finished", VECTOR, None), messages.read_close),
    ]
    gc.disable()
    try:
        for sent, read in reads:
            content = wire(sent)
            held = weakref.ref(content)
            read(content)
            del content
            assert held() is None, read
    finally:
        gc.enable()
