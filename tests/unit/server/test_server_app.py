import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.serverapp import Grid

from client.approval import decide
from common import messages
from common.adapter import load_adapter
from common.audit.recompute import check_outcome
from common.errors import InvalidInput, JobRefused, JobStopped, StorageFailed
from common.flower import new_context
from common.job import Job
from common.link.identity import node_id
from common.messages import CLOSE, OFFER, TRAIN, job_cap
from common.phases import RELEASE
from server.app import app, final_vector, message_cap, run_job
from server.checkpoint import RoundRecord
from server.participants import Participants
from simulations.grids import InProcessGrid

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]
MakeSite = Callable[..., Any]


def grid(fed: Any) -> InProcessGrid:  # noqa: ANN401 -- the root conftest's own
    return InProcessGrid(fed._apps())


class Away(InProcessGrid):
    """Sites that come and go: one is away for the first ``polls`` looks."""

    def __init__(self, inner: InProcessGrid, late: int, polls: int) -> None:
        super().__init__(inner._sites)
        self.late, self.polls = late, polls
        self.asked: list[tuple[str, int]] = []
        self.adapters: list[bytes] = []

    def get_node_ids(self) -> Iterable[int]:
        self.polls -= 1
        return [node for node in self._sites if node != self.late or self.polls < 0]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        batch = list(messages)
        self.asked += [(m.metadata.message_type, m.metadata.dst_node_id) for m in batch]
        orders = [m for m in batch if m.metadata.message_type == TRAIN]
        self.adapters += [m.content.array_records["arrays"]["adapter"].data for m in orders]
        yield from super().send_and_receive(batch, timeout=timeout)


def run(fed: Any, over: Grid) -> None:  # noqa: ANN401
    fed.checkpoints.add_job(fed.signed)
    run_job(fed.signed, over, fed.checkpoints, fed.folder / "out", grid_name="inprocess")


def test_a_site_that_comes_late_is_waited_for_and_offered_the_job_once(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1}))
    inner = grid(fed)
    first, late = inner.get_node_ids()
    over = Away(inner, late, polls=3)
    run(fed, over)
    assert [kind for kind, _ in over.asked].count(OFFER) == 2
    assert {node for kind, node in over.asked if kind == TRAIN} == {first, late}
    one, other = over.adapters
    assert one is other, "a round's orders hold one adapter, however many sites there are"


def test_a_finished_job_is_run_again_without_asking_any_site_to_train(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = plain_job(training={"rounds": 1})
    fed = plain_federation(made)
    first = fed.run()
    requests = len(fed.requests)
    again = fed.run()
    assert again.adapter_sha256 == first.adapter_sha256
    assert TRAIN not in {m.metadata.message_type for _, m in fed.requests[requests:]}
    assert {s.steps for s in again.sites} == {2}


@pytest.mark.parametrize("kind", [pytest.param(OFFER, marks=pytest.mark.slow), TRAIN])
def test_a_fault_that_passes_at_one_site_ends_no_job(
    kind: str, plain_job: MakeJob, plain_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.participants.ASK_AGAIN_S", 0.2)
    monkeypatch.setattr("server.round.ASK_AGAIN_S", 0.2)
    fed = plain_federation(plain_job(training={"rounds": 1}))
    said = [
        lambda asked: Message(Error(0, "broke"), reply_to=asked),
        lambda asked: Message(
            messages.verdict(accepted=False, reason=messages.IN_TROUBLE), reply_to=asked
        ),
    ]

    def trouble(name: str, reply: Message) -> Message:
        if name == "B" and said and reply.metadata.message_type == kind:
            return said.pop()(fed.requests[-1][1])
        return reply

    fed.tap = trouble
    assert {site.name: site.steps for site in fed.run().sites} == {"A": 2, "B": 2}
    asked = [name for name, m in fed.requests if m.metadata.message_type == kind]
    assert asked == ["A", "B", "B", "B"]


@pytest.mark.slow
def test_a_job_begins_without_a_site_where_nobody_decides_and_takes_it_in_once_they_do(
    plain_job: MakeJob,
    plain_federation: MakeFederation,
    site: MakeSite,
    monkeypatch: pytest.MonkeyPatch,
    logs: Any,  # noqa: ANN401
) -> None:
    monkeypatch.setattr("server.participants.ASK_A_PERSON_AGAIN_S", 0.2)
    made = plain_job(training={"rounds": 3, "quorum": 1, "deadline_s": 1.5})
    fed = plain_federation(made)
    fed.sites["B"] = site("B", policy={"approval": "person", "allow_no_privacy": True})
    decided: list[bool] = []

    def tap(name: str, reply: Message) -> Message:
        if reply.metadata.message_type == RELEASE and not decided:
            assert name == "A"
            decided.append(True)
            decide(fed.sites["B"].home, "wards", "approve", "Dr Ada")
            time.sleep(0.3)  # until the pause is over
        return reply

    fed.tap = tap
    assert {one.name: one.steps for one in fed.run().sites} == {"A": 6, "B": 4}
    kinds = [(name, m.metadata.message_type) for name, m in fed.requests]
    assert kinds.count(("B", OFFER)) >= 2
    assert logs.text.count("job waits for a person at this site") == 1


def test_a_person_who_says_no_ends_the_wait(
    plain_job: MakeJob,
    plain_federation: MakeFederation,
    site: MakeSite,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.participants.ASK_A_PERSON_AGAIN_S", 0.2)
    fed = plain_federation(plain_job(training={"rounds": 1}))
    fed.sites["B"] = site("B", policy={"approval": "person", "allow_no_privacy": True})

    def tap(name: str, reply: Message) -> Message:
        if name == "B" and messages.not_yet(reply):
            decide(fed.sites["B"].home, "wards", "refuse", "Dr Ada")
        return reply

    fed.tap = tap
    with pytest.raises(JobRefused, match="B: job must be approved by a person at this site, got"):
        fed.run()


class Hung(Away):
    """One site never answers an offer; how long each was waited for."""

    def __init__(self, inner: InProcessGrid, hung: int) -> None:
        super().__init__(inner, hung, polls=0)
        self.waited: list[float | None] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        batch = list(messages)
        if batch and batch[0].metadata.message_type == OFFER:
            self.waited.append(timeout)
            self.asked += [(OFFER, m.metadata.dst_node_id) for m in batch]
            batch = [m for m in batch if m.metadata.dst_node_id != self.late]
            yield from InProcessGrid.send_and_receive(self, batch)
        else:
            yield from super().send_and_receive(batch, timeout=timeout)


@pytest.mark.parametrize(("deadline_s", "waited_s"), [(0.5, 0.5), (3600.0, 60.0)])
def test_an_offer_is_waited_for_a_minute_at_most(
    deadline_s: float, waited_s: float, plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    training = {"rounds": 3, "quorum": 1, "deadline_s": deadline_s}
    fed = plain_federation(plain_job(training=training))
    inner = grid(fed)
    first, hung = inner.get_node_ids()
    over = Hung(inner, hung)
    sites = Participants(fed.signed, over, fed.checkpoints)
    for _ in range(3):  # rounds, each within the deadline of the one before
        assert {node_id(site) for site in sites.present()} == {first}
    assert over.waited == [waited_s]


class Stoppable(InProcessGrid):
    """As a job's grid that an operator stops."""

    is_stopped = False

    def get_node_ids(self) -> Iterable[int]:
        if self.is_stopped:
            raise JobStopped("job must be running, got a stop")
        return super().get_node_ids()


def test_a_stop_after_the_last_round_leaves_a_finished_job(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1}))
    over = Stoppable(grid(fed)._sites)

    def stop_at(record: RoundRecord) -> None:
        over.is_stopped = record.round == last

    fed.checkpoints.add_job(fed.signed)
    last, out = 0, fed.folder / "out"
    with pytest.raises(JobStopped):
        run_job(fed.signed, over, fed.checkpoints, out, observe=stop_at)
    last, over.is_stopped = 1, False
    assert run_job(fed.signed, over, fed.checkpoints, out, observe=stop_at).rounds[-1].round == 1
    assert over.is_stopped
    assert (out / "result.json").exists()


class Nobody(InProcessGrid):
    """No site is connected."""

    def get_node_ids(self) -> Iterable[int]:
        return []


def test_a_server_killed_after_the_last_round_writes_the_outcome_without_any_site(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1}))
    first = fed.run()
    shutil.rmtree(fed.folder / "out")
    run(fed, Nobody(grid(fed)._sites))
    result, claims = check_outcome(fed.folder / "out")
    assert result.adapter_sha256 == first.adapter_sha256
    assert all(claim.passed for claim in claims)


def test_sites_learn_the_end_of_a_job_that_was_resumed_after_its_last_round(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1}))
    fed.run()
    fed.requests.clear()
    fed.run()
    assert [(name, m.metadata.message_type) for name, m in fed.requests] == [
        ("A", CLOSE),
        ("B", CLOSE),
    ]


def test_the_final_vector_is_there_after_the_last_round_only(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = plain_job(training={"rounds": 1})
    fed = plain_federation(made)
    assert final_vector(made, fed.checkpoints) is None
    fed.run()
    final = final_vector(made, fed.checkpoints)
    adapter = load_adapter(made, Path(made.model.base), "cpu")
    assert final is not None
    assert final.shape == adapter.initial.shape
    assert np.abs(final - adapter.initial).max() > 0
    assert message_cap(made) == job_cap(made, adapter.table)


def entry(fed: Any) -> dict[str, str]:  # noqa: ANN401
    """The run's configuration under Flower's own runtime."""
    return {
        "job": fed.signed.to_bytes().decode(),
        "signer": fed.signed.signer,
        "database": f"sqlite:///{fed.folder / 'state.db'}",
        "out": str(fed.folder / "out"),
        "grid": "inprocess",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"signer": "00" * 32}, "job signer must be one of the 1 allowed"),
        ({"job": ("0.3", "0.4")}, "edited after signing"),
        ({"signer": None}, "signer must be the operator's public key in run_config, got none"),
    ],
)
def test_flowers_own_entry_runs_the_operators_jobs_alone(
    change: dict[str, Any], says: str, make_job: MakeJob, federation: MakeFederation
) -> None:
    fed = federation(make_job())
    config = entry(fed)
    for key, value in change.items():
        changed = config[key].replace(*value) if isinstance(value, tuple) else value
        config = {k: v for k, v in config.items() if k != key} | ({key: changed} if changed else {})
    with pytest.raises((JobRefused, InvalidInput), match=says):
        app(grid(fed), new_context(1, run_config=config))
    assert fed.requests == []
    assert not (fed.folder / "state.db").exists()


@pytest.mark.slow
def test_flowers_own_entry_runs_the_same_job(make_job: MakeJob, federation: MakeFederation) -> None:
    made = make_job(training={"rounds": 1})
    fed = federation(made)
    app(grid(fed), new_context(1, run_config=entry(fed)))
    result, claims = check_outcome(fed.folder / "out")
    assert result.job_sha256 == made.sha256
    assert all(claim.passed for claim in claims)


def test_a_base_that_is_not_the_jobs_ends_it_before_any_offer(
    make_job: MakeJob, federation: MakeFederation
) -> None:
    fed = federation(make_job(model={"sha256": "ab" * 32}))
    with pytest.raises(JobRefused, match=r"model\.sha256 must be that of the base here"):
        fed.run()
    assert fed.requests == []


@pytest.mark.parametrize(
    ("text", "says"),
    [("text,label\nw1,nowhere\n", "label must be one of"), ("text,label\n", "at least one record")],
)
def test_a_hold_out_that_does_not_fit_ends_the_job_before_any_offer(
    make_job: MakeJob, federation: MakeFederation, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "dev.csv").write_text(text)
    fed = federation(make_job(evaluation={"data": str(tmp_path / "dev.csv")}))
    with pytest.raises(InvalidInput, match=says):
        fed.run()
    assert fed.requests == []


def test_an_outcome_that_cannot_be_written_keeps_the_rounds(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    made = plain_job(training={"rounds": 1})
    fed = plain_federation(made)
    (fed.folder / "out").write_text("a file where the folder should be")
    with pytest.raises(StorageFailed, match="outcome must be written"):
        fed.run()
    assert fed.checkpoints.latest(made.sha256)[0] == 1
    (fed.folder / "out").unlink()
    assert fed.run().rounds[-1].round == 1


def test_who_is_asked_is_durable_before_they_are(
    plain_job: MakeJob, plain_federation: MakeFederation
) -> None:
    fed = plain_federation(plain_job(training={"rounds": 1}))

    def crash(name: str, reply: Message) -> Message:
        if reply.metadata.message_type == RELEASE:
            raise KeyboardInterrupt
        return reply

    fed.tap = crash
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    assert fed.checkpoints.dispatched(fed.signed.job.sha256) == [(1, "A"), (1, "B")]


@pytest.mark.slow
def test_the_outcome_folder_holds_what_it_says(
    make_job: MakeJob, federation: MakeFederation
) -> None:
    fed = federation(make_job(training={"rounds": 1}))
    fed.run()
    out = fed.folder / "out"
    stated = json.loads((out / "result.json").read_text())
    assert stated["grid"] == "inprocess"
    assert (out / "report.html").stat().st_size > 5000
    assert {p.name for p in (out / "adapter").iterdir()} >= {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
    }  # fmt: skip
