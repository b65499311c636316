import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import RecordDict
from numpy.typing import NDArray

from client.outbox import Outbox
from common import messages
from common.adapter import Vector, load_adapter, vector_sha256
from common.errors import JobRefused, RoundRefused, SelfCheckFailed, StorageFailed
from common.flower import content_from_bytes, content_to_bytes
from common.job import Job, SignedJob, sign_job
from common.link.codecs import CODECS
from common.link.payload import rounded
from common.messages import WRONG_BASE, Closing, Order, Receipt, read_update
from common.phases import read_charged
from common.privacy import noise, sampling
from common.privacy.stream import Stream, public_keys
from common.receipt import Confirmation

pytestmark = pytest.mark.usefixtures("unrehearsed")

if TYPE_CHECKING:
    from client.site import Site

MakeJob = Callable[..., Job]
MakeSite = Callable[..., "Site"]
Sign = Callable[[Job], SignedJob]
PUBLIC_WORDS = "not participating"


@pytest.fixture
def sign(operator: Any) -> Sign:  # noqa: ANN401 -- an Ed25519 key
    return lambda made: sign_job(made, operator)


def start(made: Job) -> Vector:
    return load_adapter(made, Path(made.model.base), "cpu").initial.copy()


def ask(one: "Site", signed: SignedJob, round_: int = 1, vector: Vector | None = None) -> bytes:
    given = start(signed.job) if vector is None else vector
    return content_to_bytes(released(one, one.answer(Order(signed, round_, None), given)))


def released(one: "Site", charge: RecordDict) -> RecordDict:
    """What leaves once a charge was confirmed, without certificates."""
    shown = read_charged(charge)
    entry = shown.reserved
    said = Confirmation(
        job_sha256=entry.job_sha256,
        round=entry.round,
        site=one.home.site,
        head=shown.head,
        at="2026-03-04T05:06:07Z",
    )
    return one.release(said)


def nudged(vector: Vector, norm: float) -> Vector:
    moved: Vector = (vector + norm / np.sqrt(vector.size)).astype(np.float32)
    return moved


def test_a_round_is_answered_within_the_closed_schema(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    one, signed = site(), sign(job())
    content = released(one, one.answer(Order(signed, 1, None), start(job())))
    read = read_update(content, job(), one.consider(signed).adapter.table)
    assert (read.round, read.steps, read.charged_steps) == (1, 2, 2)
    assert read.input_sha256 == vector_sha256(start(job()))
    assert np.abs(read.vector).min() > 0


def test_what_four_bits_round_off_is_sent_in_the_next_round(
    plain_job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    """Without privacy training repeats, so that what was rounded is known beside what was sent."""
    made = plain_job(training={"codec": "int4", "rounds": 2})
    one, signed, base = site(policy={"allow_no_privacy": True}), sign(made), start(made)
    trainer = one.consider(signed)
    first, second = (
        read_update(content_from_bytes(ask(one, signed, n)), made, trainer.adapter.table).vector
        for n in (1, 2)
    )
    left = trainer.train_round(base, 1) - first
    change = trainer.train_round(base, 2)
    assert np.array_equal(second, rounded(change + left, trainer.adapter.table, CODECS["int4"]))
    assert not np.array_equal(second, rounded(change, trainer.adapter.table, CODECS["int4"]))


@pytest.mark.slow
def test_the_same_round_gives_the_same_bytes_and_one_charge_even_in_a_new_process(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    one, signed = site(), sign(job())
    first = ask(one, signed)
    assert ask(one, signed) == first
    restarted = site()
    assert ask(restarted, signed) == first
    (charge,) = restarted.outbox.charges()
    assert charge.event.steps == 2
    assert charge.event.noise_multiplier == job().noise_multiplier
    assert charge.event.sampling_rate == 0.25
    assert charge.payload_sha256 == hashlib.sha256(first).hexdigest()


def test_records_that_change_during_a_job_are_said_once_and_only_here(
    job: MakeJob,
    site: MakeSite,
    sign: Sign,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
) -> None:
    one, signed = site(), sign(job())
    path = one.home.path(one.home.data_set(signed.job.data.name).path)
    ask(one, signed)
    assert "records changed" not in logs.text
    before = path.read_bytes()
    path.write_bytes(before + before.splitlines(keepends=True)[-1])
    answers = [ask(one, signed, 2), ask(one, signed, 3)]
    assert logs.text.count("records changed during a job") == 1
    assert all(b"changed" not in answer for answer in answers)
    assert [charge.event.steps for charge in one.outbox.charges()] == [2, 2, 2]
    at = path.stat().st_mtime_ns - 5_000_000_000
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(at, at))  # of the same size
    one.answer(Order(signed, 3, None), start(signed.job))  # stored before: nothing was trained
    assert logs.text.count("records changed during a job") == 1


def test_a_second_input_for_a_round_is_refused_without_a_charge(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    one, signed = site(), sign(job())
    ask(one, signed)
    with pytest.raises(RoundRefused, match="must start from the adapter it was reserved for"):
        ask(one, signed, 1, nudged(start(job()), 0.1))
    assert len(one.outbox.charges()) == 1


def test_an_adapter_that_jumped_is_refused_before_any_charge(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    made = job(training={"max_update_norm": 2.0})
    one, signed, base = site(), sign(made), start(made)
    with pytest.raises(RoundRefused, match="must be within 0 of the one this site knows"):
        ask(one, signed, 1, nudged(base, 0.01))
    with pytest.raises(RoundRefused, match="within 2 of the one this site knows"):
        ask(one, signed, 2, nudged(base, 2.1))
    assert one.outbox.charges() == []
    ask(one, signed, 2, nudged(base, 1.9))
    with pytest.raises(RoundRefused, match="within 2 of"):
        ask(one, signed, 3, nudged(base, 4.1))
    ask(one, signed, 3, nudged(base, 3.8))


def test_rounds_past_the_jobs_last_or_before_the_latest_are_refused(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    one, signed = site(), sign(job())
    with pytest.raises(RoundRefused, match="round must be at most 3, got 4"):
        ask(one, signed, 4)
    ask(one, signed, 2)
    with pytest.raises(RoundRefused, match=r"within 0 of|after 2"):
        ask(one, signed, 1, nudged(start(job()), 0.1))
    with pytest.raises(RoundRefused, match="round must be after 2"):
        ask(one, signed, 1)
    assert sum(c.event.steps for c in one.outbox.charges()) == 2


@pytest.mark.slow
def test_a_round_without_an_update_is_answered_once_in_words_without_a_number(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    """A learning rate that overflows: how many numbers did would be a count of the records."""
    draws: list[tuple[str, int, int]] = []

    def keys(purpose: str, round_: int, step: int) -> bytes:
        draws.append((purpose, round_, step))
        return os.urandom(32)

    one = site(keys=keys)
    wild = {"learning_rate": 1e4, "weight_decay": 1, "local_steps": 10}
    signed = sign(job(training=wild))
    answers = [ask(one, signed)]
    trained = [draw for draw in draws if draw[1] == 1]
    answers += [ask(one, signed) for _ in range(3)]
    said = messages.read_verdict(content_from_bytes(answers[0]))
    assert said == messages.Verdict(is_accepted=False, reason="update could not be made")
    assert answers == answers[:1] * 4
    assert [draw for draw in draws if draw[1] == 1] == trained
    assert len(trained) == 2 * 10  # sampling and noise of ten steps
    assert [c.event.steps for c in one.outbox.charges()] == [10]


@pytest.mark.parametrize(
    "error",
    [
        OSError,
        MemoryError,
        *(
            pytest.param(error, marks=pytest.mark.slow)
            for error in (IndexError, KeyError, TypeError, AssertionError, RecursionError)
        ),
    ],
)
def test_whatever_a_round_ends_in_is_one_answer_that_asking_again_does_not_change(
    job: MakeJob,
    site: MakeSite,
    sign: Sign,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """An error that some records alone raise: how often it does would count them."""
    one, signed, tries = site(), sign(job()), []
    one.consider(signed)

    def broken(*_: object) -> object:
        tries.append(1)
        raise error("w1 canary")

    monkeypatch.setattr(sampling, "poisson_sample", broken)
    answers = {ask(one, signed) for _ in range(3)}
    assert len(tries) == 1
    said = messages.read_verdict(content_from_bytes(answers.pop()))
    assert said == messages.Verdict(is_accepted=False, reason="update could not be made")
    assert not answers
    assert [c.is_released for c in one.outbox.charges()] == [True]
    assert error.__name__ in logs.text
    assert "canary" not in logs.text


def test_an_account_in_doubt_is_no_answer(
    job: MakeJob, site: MakeSite, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, signed = site(), sign(job())
    one.consider(signed)
    with monkeypatch.context() as patch:

        def broken() -> object:
            raise StorageFailed("account must be written, got: disk full")

        patch.setattr(one.outbox, "head", broken)
        with pytest.raises(StorageFailed):
            ask(one, signed)
    assert [c.is_released for c in one.outbox.charges()] == [False]
    ask(one, signed)
    assert [c.is_released for c in one.outbox.charges()] == [True]


def test_a_tokenizer_that_stumbles_over_a_record_is_a_refusal_without_its_words(
    job: MakeJob,
    site: MakeSite,
    sign: Sign,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from common.tasks import seq_cls
    from common.tasks.batches import Example

    one, signed = site(), sign(job())
    adapter = load_adapter(job(), Path(job().model.base), "cpu")
    nothing: dict[str, object] = {}
    stumbling = lambda *_, **__: nothing["w1 canary"]  # noqa: E731
    monkeypatch.setattr(type(adapter.tokenizer), "__call__", stumbling)
    with pytest.raises(JobRefused, match=PUBLIC_WORDS):
        one.consider(signed)
    monkeypatch.undo()
    beyond = [Example((5, 4711), 0, 16)] * 30
    task = one.consider.__globals__["task_of"](job())
    monkeypatch.setitem(
        one.consider.__globals__, "task_of", lambda _: replace(task, encode=lambda *_: beyond)
    )
    with pytest.raises(JobRefused, match=PUBLIC_WORDS):
        one.consider(signed)
    assert "one of the 357 embeddings" in logs.text
    assert "canary" not in logs.text
    assert seq_cls.encode is task.encode
    assert one.outbox.jobs() == []


@pytest.mark.slow
def test_a_closed_job_trains_no_more(job: MakeJob, site: MakeSite, sign: Sign) -> None:
    one, signed = site(), sign(job())
    ask(one, signed)
    one.end(Closing(job().sha256, "finished", "ab" * 32, None))
    for round_ in (1, 2):
        with pytest.raises(RoundRefused, match="must belong to an open job"):
            ask(one, signed, round_)
    assert len(one.outbox.charges()) == 1
    assert one.outbox.jobs()[0].state == "finished"


def test_a_receipt_is_noted_with_the_next_order(job: MakeJob, site: MakeSite, sign: Sign) -> None:
    one, signed = site(), sign(job())
    sent = hashlib.sha256(ask(one, signed)).hexdigest()
    one.answer(Order(signed, 2, Receipt(1, sent, is_accepted=True)), start(job()))
    assert [c.is_acknowledged for c in one.outbox.charges()] == [True, False]


ROWS = [("w1 canary", "cardiology"), ("w150 w151", "surgery")]


@pytest.mark.parametrize(
    ("content", "logged"),
    [
        ("text,ward\nw1 canary,surgery\n", "label"),
        ("text,label\n", "at least one record"),
        ("text,label\nw1 canary,secretward\n", "notes.csv:2: label must be one of"),
        ("text,label\nw1,surgery\n\0canary,surgery\n", "notes.csv:3"),
        (None, "must be a readable file"),
    ],
)
def test_trouble_with_the_data_is_told_to_the_site_and_not_to_the_server(
    job: MakeJob,
    site: MakeSite,
    sign: Sign,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
    content: str | None,
    logged: str,
) -> None:
    one = site(rows=ROWS)
    path = one.home.folder / "notes.csv"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(JobRefused) as caught:
        one.consider(sign(job()))
    assert str(caught.value) == PUBLIC_WORDS
    assert logged in logs.text
    assert "canary" not in logs.text
    assert "secretward" not in logs.text
    assert one.outbox.jobs() == []


def test_another_base_is_refused_before_data_is_opened(
    job: MakeJob, site: MakeSite, sign: Sign, tmp_path: Path
) -> None:
    one = site()
    (one.home.folder / "notes.csv").unlink()
    words = []
    for model in (
        {"sha256": "ab" * 32},
        {"base": str(tmp_path / "none")},
        {"base": str(one.home.folder)},
        {"base": "owner/name", "revision": "ab" * 20},
    ):
        with pytest.raises(JobRefused) as refusal:
            one.consider(sign(job(model=model)))
        words.append(str(refusal.value))
    assert words == [WRONG_BASE] * 4, "whatever is on this site's disk, the operator reads the same"


def test_a_job_beyond_policy_is_refused_before_data_is_opened(
    job: MakeJob, site: MakeSite, sign: Sign, no_privacy: dict[str, Any]
) -> None:
    one = site(policy={"max_epsilon": 5.0})
    data = one.home.folder / "notes.csv"
    data.unlink()
    os.mkfifo(data)  # whoever opens it waits for ever
    with pytest.raises(JobRefused, match="at most this site's 5"):
        one.consider(sign(job()))
    with pytest.raises(JobRefused, match="allow_no_privacy"):
        one.consider(sign(job(privacy=no_privacy)))


def test_jobs_add_up_over_the_life_of_a_sites_data(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    one = site(policy={"max_epsilon": 8.0, "max_delta": 1e-5})
    first, second = sign(job()), sign(job(job={"name": "again"}))
    for round_ in (1, 2):
        ask(one, first, round_)
    with pytest.raises(JobRefused, match="epsilon over the life of this site's data"):
        one.consider(second)
    with pytest.raises(JobRefused, match="epsilon over the life"):
        site(policy={"max_epsilon": 8.0, "max_delta": 1e-5}).consider(second)
    ask(one, first, 3)  # what was accepted goes on


def test_jobs_under_way_together_never_pass_the_cap(
    job: MakeJob, site: MakeSite, sign: Sign
) -> None:
    from client.outbox import spent

    one = site(policy={"max_epsilon": 8.0, "max_delta": 1e-5})
    first, second = sign(job()), sign(job(job={"name": "again"}))
    one.consider(first)  # nothing is charged yet, but an open job holds its whole plan
    for round_ in (1, 2, 3):
        with pytest.raises(JobRefused, match="epsilon over the life"):
            ask(one, second, round_)
        ask(one, first, round_)
    assert 5.9 < spent(one.outbox.charges(), 1e-5) <= 8.0


@pytest.mark.usefixtures("self_checks")
def test_a_mechanism_that_fails_its_checks_trains_nothing(
    job: MakeJob, site: MakeSite, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = noise.lattice_noise
    monkeypatch.setattr(noise, "lattice_noise", lambda size, s, stream: sound(size, s / 2, stream))
    one = site()
    with pytest.raises(SelfCheckFailed, match="noise: variance"):
        ask(one, sign(job()))
    assert one.outbox.charges() == []
    assert one.outbox.jobs() == []


def test_a_full_disk_hands_nothing_out(
    job: MakeJob, site: MakeSite, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, signed = site(), sign(job())
    one.consider(signed)
    drawn: list[object] = []
    sound = sampling.poisson_sample
    monkeypatch.setattr(
        sampling,
        "poisson_sample",
        lambda *known: drawn.append(1) or sound(*known),  # type: ignore[func-returns-value]
    )
    account = one.home.account_path
    shutil.copy(account, account.with_suffix(".kept"))
    account.unlink()
    account.mkdir()  # nothing can be written there
    with pytest.raises(StorageFailed, match="account must be written"):
        ask(one, signed)
    assert not drawn


def test_the_charge_is_durable_before_a_record_is_touched(
    job: MakeJob, site: MakeSite, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, signed = site(), sign(job())
    one.consider(signed)
    found: list[int] = []
    sound = sampling.poisson_sample

    def watched(units: int, rate: float, stream: Stream) -> NDArray[np.int64]:
        # As another process would see it.
        found.append(sum(c.event.steps for c in Outbox.of(one.home).charges()))
        return sound(units, rate, stream)

    monkeypatch.setattr(sampling, "poisson_sample", watched)
    ask(one, signed)
    assert found == [2, 2]


def test_a_crash_after_training_draws_fresh_noise_for_the_same_charge(
    job: MakeJob, site: MakeSite, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, signed = site(), sign(job())
    seen: list[bytes] = []

    def crash(_: object, payload: bytes) -> bytes:
        seen.append(payload)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one.outbox, "store", crash)
        with pytest.raises(KeyboardInterrupt):
            ask(one, signed)
    again = ask(site(), signed)
    assert again != seen[0]  # which never left
    assert sum(c.event.steps for c in one.outbox.charges()) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("self_checks")
def test_a_batch_of_jobs_keeps_one_model_ready(job: MakeJob, site: MakeSite, sign: Sign) -> None:
    one = site()
    first, second = sign(job()), sign(job(job={"name": "again"}))
    sent = ask(one, first)
    ask(one, second)
    assert ask(one, first) == sent
    assert one.cap(job().sha256) == messages.job_cap(job(), one.consider(first).adapter.table)
    assert one.cap("ab" * 32) is None


@pytest.mark.usefixtures("self_checks")
def test_a_site_whose_randomness_a_seed_repeats_refuses_to_train(
    job: MakeJob, site: MakeSite, sign: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.privacy.mechanism.fresh_key", public_keys("a predictable site"))
    one = site()
    with pytest.raises(SelfCheckFailed, match="keys: those of sampling must be new each time"):
        one.consider(sign(job()))
    assert one.outbox.charges() == []
