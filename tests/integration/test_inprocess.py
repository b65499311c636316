"""Whole jobs over real sites, one process: what leaves, what is charged, what is aggregated."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Error, Message, RecordDict
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from client.account import open_account
from common import messages
from common.adapter import load_adapter, read_vector, vector_sha256
from common.audit.recompute import check_outcome
from common.errors import JobRefused, Refusal
from common.flower import message_to_bytes
from common.job import Job
from common.phases import RELEASE, read_charged, read_ended
from common.privacy import accounting, clipping, noise, sampling
from common.privacy.accounting import GaussianSteps
from simulations.seeded import seeded_keys

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]
WITHOUT: dict[str, Any] = {"policy": {"allow_no_privacy": True}}


def test_a_job_ends_with_an_adapter_that_peft_loads_and_a_true_result(
    job: MakeJob, federation: MakeFederation
) -> None:
    made = job(training={"rounds": 2})
    fed = federation(made)
    result = fed.run()
    assert result.private
    assert [r.round for r in result.rounds] == [1, 2]
    assert [r.round for r in fed.rounds] == [0, 1, 2]
    _, claims = check_outcome(fed.folder / "out")
    assert all(claim.passed for claim in claims)
    round_, held = fed.checkpoints.latest(made.sha256)
    final = np.frombuffer(held, dtype="<f4")
    assert round_ == 2
    base = AutoModelForSequenceClassification.from_pretrained(made.model.base, num_labels=3)
    loaded = PeftModel.from_pretrained(base, str(fed.folder / "out" / "adapter")).eval()
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    adapter.write(final)
    inputs = adapter.tokenizer(["w1 w2", "w150 w77"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert torch.allclose(loaded(**inputs).logits, adapter.model.eval()(**inputs).logits)


@pytest.mark.usefixtures("unrehearsed")
def test_epsilon_in_the_result_is_that_of_the_sites_own_accounts(
    job: MakeJob, federation: MakeFederation
) -> None:
    made = job()
    fed = federation(made)
    result = fed.run()
    for stated in result.sites:
        charges = fed.sites[stated.name].outbox.charges()
        events = [
            GaussianSteps(c.event.sampling_rate, c.event.noise_multiplier, c.event.steps)
            for c in charges
        ]
        assert stated.steps == sum(event.steps for event in events) == 6
        assert stated.epsilon == accounting.epsilon(events, made.privacy.delta or 0)
        assert stated.epsilon is not None
        assert 0.99 * 6 < stated.epsilon <= 6
        assert all(c.is_released for c in charges)
        # The last round's receipt comes with the close.
        assert all(c.is_acknowledged for c in charges)
    rate, multiplier = made.privacy.sampling_rate, made.noise_multiplier
    assert [r.epsilon for r in result.rounds] == [
        accounting.epsilon([GaussianSteps(rate, multiplier, 2 * n)], 1e-5) for n in (1, 2, 3)
    ]


def test_the_aggregate_is_the_weighted_mean_of_what_the_sites_sent(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = plain_job(training={"rounds": 1})
    fed = plain_federation(made)
    fed.run()
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    sent = {
        site: messages.read_update(reply.content, made, adapter.table).vector
        for site, reply in fed.replies
        if reply.metadata.message_type == RELEASE
    }
    assert set(sent) == {"A", "B"}
    expected = adapter.initial.astype(np.float64) + (36 * sent["A"].astype(np.float64) + 52 * sent[
        "B"].astype(np.float64)) / 88  # fmt: skip
    held = np.frombuffer(fed.checkpoints.latest(made.sha256)[1], dtype="<f4")
    assert np.abs(held - expected).max() < 1e-6
    assert np.abs(expected - adapter.initial).max() > 1e-3


def begin_anew(one: Any) -> None:  # noqa: ANN401 -- a site of the root conftest's
    one.home.account_path.unlink()
    one.home.account_path.with_suffix(".anchor").unlink()
    one.outbox = open_account(one.home)


@pytest.mark.slow
def test_runs_without_privacy_repeat_bit_for_bit(
    job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any], tmp_path: Path
) -> None:
    made = job(privacy=no_privacy)
    ends = []
    for place in ("one", "two"):
        fed = federation(made, folder=place, **WITHOUT)
        for one in fed.sites.values():
            begin_anew(one)
        result = fed.run()
        assert not result.private
        assert {s.epsilon for s in result.sites} == {None}
        ends.append((fed.checkpoints.latest(made.sha256)[1], result.adapter_sha256))
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_training_without_privacy_learns(
    job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    made = job(
        privacy=no_privacy | {"sampling_rate": 0.5},
        training={"rounds": 12, "local_steps": 8, "learning_rate": 0.02, "optimizer": "adamw"},
    )
    fed = federation(made, **WITHOUT, keys=lambda name: seeded_keys(4, name))
    result = fed.run()
    assert result.final.accuracy > 0.5
    assert result.final.accuracy > (fed.rounds[0].accuracy or 0) + 0.1


@pytest.mark.slow
def test_seeded_noise_repeats_and_is_never_called_private(
    job: MakeJob, federation: MakeFederation, tmp_path: Path
) -> None:
    made = job(training={"rounds": 1})
    fed = federation(made, keys=lambda name: seeded_keys(4, name))
    result = fed.run(seeded=True)
    assert not result.private
    assert result.privacy.seeded
    assert json.loads((fed.folder / "out" / "result.json").read_text())["private"] is False


@pytest.mark.slow
def test_a_resumed_job_ends_as_one_that_was_never_cut(
    job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    made = job(privacy=no_privacy)
    fed = federation(made, **WITHOUT)

    def cut(name: str, reply: Message) -> Message:
        if reply.metadata.message_type == RELEASE and len(fed.rounds) == 2 and name == "B":
            raise KeyboardInterrupt  # in round 2, after A has answered
        return reply

    fed.tap = cut
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    before = {c.round: c.payload_sha256 for c in fed.sites["A"].outbox.charges()}
    assert set(before) == {1, 2}
    fed.tap = lambda _, reply: reply
    result = fed.run()
    after = {c.round: c.payload_sha256 for c in fed.sites["A"].outbox.charges()}
    assert {r: after[r] for r in before} == before
    assert {s.steps for s in result.sites} == {6}
    ended = fed.checkpoints.latest(made.sha256)[1]

    whole = federation(made, folder="whole", **WITHOUT)
    for one in whole.sites.values():
        begin_anew(one)
    whole.run()
    assert whole.checkpoints.latest(made.sha256)[1] == ended


CANARY = "zxqjv"


def test_no_text_of_a_record_leaves_a_site_or_reaches_a_log(
    job: MakeJob,
    federation: MakeFederation,
    rows: Any,  # noqa: ANN401 -- the root conftest's own
    logs: Any,  # noqa: ANN401 -- the root conftest's own
    capfd: Any,  # noqa: ANN401
) -> None:
    marked = [(f"{CANARY} {text}", label) for text, label in rows(30)]
    fed = federation(job(training={"rounds": 2}), rows=marked)
    fed.run()
    printed = capfd.readouterr()
    for name, reply in fed.replies:
        data = message_to_bytes(reply)
        assert CANARY.encode() not in data, name
        assert b"w137" not in data, name
    for text in (logs.text, printed.out, printed.err):
        assert CANARY not in text
    for one in fed.sites.values():
        assert CANARY.encode() not in one.home.account_path.read_bytes()
    for path in (fed.folder / "out").rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()


@pytest.mark.usefixtures("unrehearsed")
def test_replies_hold_public_constants_and_noise_and_nothing_else(
    job: MakeJob, federation: MakeFederation
) -> None:
    fed = federation(job(training={"rounds": 1}))
    fed.run()
    sizes = set()
    for _, reply in fed.replies:
        content = reply.content
        if reply.metadata.message_type == messages.TRAIN:
            assert set(content) == {"charge"}
            said = read_charged(content)
            assert said.reserved.charge.steps == 2
            assert (said.since, said.also, said.row.seq, said.head.size) == (None, (), 2, 4)
            continue
        if reply.metadata.message_type != RELEASE:
            is_close = reply.metadata.message_type == messages.CLOSE
            assert set(content) <= {"verdict", "head"} | ({"ending"} if is_close else set())
            if is_close:
                ending = read_ended(content)
                assert ending
                assert (ending.closed.steps, ending.closed.counts) == (2, 0)
                assert ending.closed.state == "finished"
            assert dict(content.config_records["verdict"]) == {"accepted": True, "reason": ""}
            continue
        assert set(content) == {"arrays", "head", "manifest", "round"}
        assert not content.metric_records
        body = dict(content.config_records["round"])
        assert (body["round"], body["steps"], body["charged_steps"]) == (1, 2, 2)
        sizes.add(len(message_to_bytes(reply)) - len(str(reply.metadata.created_at)))
    # As long at a site of 36 records as at one of 52, whatever was sampled.
    assert max(sizes) - min(sizes) <= 40


def tampered(change: Callable[[RecordDict], None]) -> Callable[[str, Message], Message]:
    """Site B's updates are changed on their way."""

    def tap(name: str, reply: Message) -> Message:
        if name == "B" and reply.metadata.message_type == RELEASE:
            change(reply.content)
        return reply

    return tap


def spoil(content: RecordDict, **changes: Any) -> None:  # noqa: ANN401
    array = content.array_records["arrays"]["adapter"]
    fields = {"dtype": array.dtype, "shape": array.shape, "stype": array.stype, "data": array.data}
    content.array_records["arrays"]["adapter"] = Array(**fields | changes)


def repack(content: RecordDict, vector: Any) -> None:  # noqa: ANN401
    """A well-formed payload of other numbers, as a hostile site would build it."""
    import hashlib

    data = np.asarray(vector, dtype="<f4").tobytes()
    spoil(content, data=data)
    content.config_records["manifest"]["sha256"] = hashlib.sha256(data).hexdigest()


def numbers(content: RecordDict) -> Any:  # noqa: ANN401
    return np.frombuffer(content.array_records["arrays"]["adapter"].data, "<f4").copy()


HOSTILE: dict[str, tuple[Callable[[RecordDict], None], str]] = {
    "NaN": (lambda c: repack(c, np.where(numbers(c) > 0, np.nan, 0)), "must be finite"),
    "infinity": (lambda c: repack(c, numbers(c) / 0), "must be finite"),
    "giant norm": (lambda c: repack(c, numbers(c) * 0 + 1e30), "update norm must be at most"),
    "a little too long": (lambda c: repack(c, numbers(c) * 0 + 700), "update norm must be"),
    "short buffer": (lambda c: repack(c, numbers(c)[:-1]), "array must have"),
    "another shape": (lambda c: spoil(c, shape=(3, 5)), "array shape must be"),
    "another dtype": (lambda c: spoil(c, dtype="float64"), "array dtype must be"),
    "another hash": (
        lambda c: spoil(c, data=c.array_records["arrays"]["adapter"].data[::-1]),
        "payload sha256 must be",
    ),
    "another table": (
        lambda c: c.config_records["manifest"].update(
            {"table": str(c.config_records["manifest"]["table"]).replace("lora_B", "lora_A")}
        ),
        "tensor name must be",
    ),
    "another round": (
        lambda c: c.config_records["round"].update({"round": 99}),
        "must answer round {round}",
    ),
    "another input": (
        lambda c: c.config_records["round"].update({"input_sha256": "ab" * 32}),
        "must answer round {round} from",
    ),
    "fewer steps": (
        lambda c: c.config_records["round"].update({"steps": 1}),
        "update's steps must be 2",
    ),
    "a boundless charge": (
        lambda c: c.config_records["round"].update({"charged_steps": 2**60}),
        "charged_steps must be",
    ),
    "a metric": (
        lambda c: c.config_records["round"].update({"loss": 0.2}),
        "update's round must hold",
    ),
}


@pytest.mark.slow
def test_hostile_updates_are_dropped_named_and_never_aggregated(
    plain_job: MakeJob,
    plain_federation: MakeFederation,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
) -> None:
    made = plain_job(training={"rounds": len(HOSTILE), "quorum": 1})
    fed, changes = plain_federation(made), iter([change for change, _ in HOSTILE.values()])
    fed.tap = tampered(lambda content: next(changes)(content))  # another attack each round
    result = fed.run()
    said = [(e["site"], e["reason"]) for e in logs.events if e["event"] == "update rejected"]
    for number, (attack, (site, reason)) in enumerate(zip(HOSTILE, said, strict=True), start=1):
        assert (site, HOSTILE[attack][1].format(round=number) in reason) == ("B", True), attack
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    kept = [
        messages.read_update(reply.content, made, adapter.table).vector
        for name, reply in fed.replies
        if name == "A" and reply.metadata.message_type == RELEASE
    ]
    asked = [
        np.frombuffer(m.content.array_records["arrays"]["adapter"].data, "<f4")
        for name, m in fed.requests
        if name == "A" and m.metadata.message_type == messages.TRAIN
    ]
    held = [*asked[1:], np.frombuffer(fed.checkpoints.latest(made.sha256)[1], dtype="<f4")]
    for before, update, after, attack in zip(asked, kept, held, HOSTILE, strict=True):
        assert np.abs(after - (before + update)).max() < 1e-6, attack
    receipts = fed.checkpoints.receipts(made.sha256)
    assert len(receipts) == 2 * len(HOSTILE)
    assert {(r.site, r.accepted) for r in receipts} == {("A", True), ("B", False)}
    # A rejected update left the site all the same: it stays charged.
    assert {s.name: s.steps for s in result.sites}["B"] == 2 * len(HOSTILE)


def test_a_site_whose_updates_are_cut_is_asked_no_more_also_by_a_server_that_was_restarted(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    asked = {"rule": "norm-bound", "norm_bound": 50.0, "quarantine_after": 2}
    made = plain_job(training={"rounds": 4, "quorum": 1}, aggregation=asked)
    fed = plain_federation(made)
    fed.tap = tampered(lambda c: repack(c, 100 * numbers(c) / np.linalg.norm(numbers(c))))
    held: list[Any] = []

    def killed(record: Any) -> None:  # noqa: ANN401 -- a round's record
        held.append(record)
        if record.round == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fed.run(observe=killed)
    fed.run()
    taken = [(r.round, r.site, r.was_cut) for r in fed.checkpoints.receipts(made.sha256)]
    assert taken == [
        (1, "A", None),
        (1, "B", True),
        (2, "A", None),
        (2, "B", True),
        (3, "A", None),
        (4, "A", None),
    ]
    assert all(r.accepted for r in fed.checkpoints.receipts(made.sha256))
    trained = [n for n, m in fed.requests if m.metadata.message_type == messages.TRAIN]
    assert trained.count("B") == 2


def test_a_round_without_a_quorum_of_usable_updates_ends_the_job(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"quorum": 2}))
    fed.tap = tampered(lambda c: repack(c, numbers(c) * np.nan))
    with pytest.raises(Refusal, match=r"round 1 must have 2 usable updates, got 1 \(B: .*finite"):
        fed.run()


def test_a_site_that_answers_with_an_error_is_left_out(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1, "quorum": 1}))

    def fail(name: str, reply: Message) -> Message:
        if name == "B" and reply.metadata.message_type == RELEASE:
            request = next(m for n, m in reversed(fed.requests) if n == "B")
            return Message(Error(0, "not participating"), reply_to=request)
        return reply

    fed.tap = fail
    result = fed.run()
    assert {s.name: s.steps for s in result.sites} == {"A": 2, "B": 2}  # it may have trained
    assert [r.site for r in fed.checkpoints.receipts(result.job_sha256)] == ["A"]


def test_a_site_with_bad_data_refuses_in_two_words_and_the_others_go_on(
    plain_job: MakeJob,
    plain_federation: MakeFederation,
    logs: Any,  # noqa: ANN401
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1, "quorum": 1}))
    (fed.sites["B"].home.folder / "notes.csv").write_text("text,ward\nx,y\n")
    result = fed.run()
    assert {s.name: s.steps for s in result.sites} == {"A": 2, "B": 0}
    (event,) = [e for e in logs.events if e["event"] == "job refused"]
    assert (event["site"], event["reason"]) == ("B", "not participating")


def test_too_few_accepting_sites_end_the_job_before_any_round(
    job: MakeJob, federation: MakeFederation
) -> None:
    fed = federation(job(), policy={"max_epsilon": 1.0})
    with pytest.raises(
        JobRefused, match=r"must be accepted by 2 sites, got at most [01].*site's 1"
    ):
        fed.run()
    assert fed.checkpoints.dispatched(fed.signed.job.sha256) == []
    assert all(one.outbox.charges() == [] for one in fed.sites.values())


def half_noise(patch: pytest.MonkeyPatch) -> None:
    sound = noise.lattice_noise
    patch.setattr(noise, "lattice_noise", lambda size, s, stream: sound(size, s / 2, stream))


def no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        clipping,
        "clip_and_sum",
        lambda rows, c: (rows * (clipping.LATTICE / c)).round().long().sum(dim=0),
    )


def shuffled_batches(patch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    patch.setattr(
        sampling,
        "poisson_sample",
        lambda units, rate, _: rng.permutation(units)[: round(units * rate)],
    )


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (half_noise, "noise: variance"),
        pytest.param(no_clip, "sensitivity: one record must", marks=pytest.mark.slow),
        pytest.param(shuffled_batches, "sampler: spread of batch sizes", marks=pytest.mark.slow),
    ],
)
def test_a_planted_bug_makes_the_whole_run_refuse(
    job: MakeJob,
    federation: MakeFederation,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    says: str,
) -> None:
    fed = federation(job())
    plant(monkeypatch)
    with pytest.raises(JobRefused, match=says):
        fed.run()
    assert all(one.outbox.charges() == [] for one in fed.sites.values())


def test_the_untrained_start_is_round_0_and_every_round_starts_where_the_last_ended(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = plain_job()
    fed = plain_federation(made)
    fed.run()
    rounds = fed.checkpoints.rounds(made.sha256)
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    assert rounds[0].output_sha256 == vector_sha256(adapter.initial)
    for earlier, later in pairwise(rounds):
        assert later.input_sha256 == earlier.output_sha256
    adapter.write(adapter.initial)
    assert vector_sha256(read_vector(adapter.model)) == rounds[0].output_sha256
