"""Patience: the best round is kept, what was executed stays charged, a kill changes neither."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from common import messages
from common.adapter import vector_sha256
from common.audit.recompute import check_outcome
from common.job import Job
from common.phases import RELEASE
from common.privacy.accounting import GaussianSteps, epsilon
from common.stopping import best_round, is_over, kept_round
from server.app import final_vector
from server.checkpoint import Checkpoints, RoundRecord
from server.evaluate import HoldOut

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]

# Accuracy of the untrained start and after each round; the best trained one is round 2.
SCORES = (0.9, 0.25, 0.5, 0.375, 0.5, 0.75)


def rows(scores: Sequence[float]) -> list[RoundRecord]:
    return [RoundRecord(n, score, 0.1, 0, 0.1, "", "") for n, score in enumerate(scores)]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 4))
def test_a_job_is_over_after_so_many_rounds_without_a_better_one(
    scores: list[int], patience: int
) -> None:
    # A second reading: count rounds since the last improvement, one round after the other.
    best, since, over = -1, 0, False
    for score in scores[1:]:
        best, since = (score, 0) if score > best else (best, since + 1)
        over = over or since >= patience
    closed = rows([s / 4 for s in scores])
    stops = [is_over(_job(patience), closed[:n]) for n in range(1, len(closed) + 1)]
    assert any(stops) == over


def _job(patience: int | None) -> Any:  # noqa: ANN401
    class Training:
        rounds = 10_000

    Training.patience = patience  # type: ignore[attr-defined]

    class Made:
        training = Training

    return Made


def test_the_first_of_the_best_is_kept_and_the_untrained_start_never() -> None:
    closed = rows(SCORES[:5])
    assert best_round(closed) == 2
    assert kept_round(_job(2), closed) == 2
    assert kept_round(_job(None), closed) == 4
    assert best_round(closed[:1]) is None
    by_entities = [replace(row, accuracy=None, entity_f1=row.accuracy) for row in closed]
    assert best_round(by_entities) == 2


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold-out gives each new adapter the next of ``SCORES``; one seen before has its own."""
    evaluate, seen = HoldOut.evaluate, dict[str, float]()

    def planned(self: HoldOut, vector: Any) -> Any:  # noqa: ANN401
        place = vector_sha256(vector)
        seen.setdefault(place, SCORES[min(len(seen), len(SCORES) - 1)])
        return replace(evaluate(self, vector), accuracy=seen[place])

    monkeypatch.setattr(HoldOut, "evaluate", planned)


@pytest.mark.slow
@pytest.mark.usefixtures("scored")
def test_a_job_ends_early_with_the_best_rounds_adapter_and_charges_all_that_was_executed(
    make_job: MakeJob, federation: MakeFederation
) -> None:
    made = make_job(training={"rounds": 9, "patience": 2})
    fed = federation(made)
    result = fed.run()
    assert [row.round for row in result.rounds] == [1, 2, 3, 4]
    assert (result.kept_round, result.final.accuracy) == (2, 0.5)

    # The adapter is round 2's, which the sites were told as well; the charge is of four rounds.
    kept = final_vector(made, fed.checkpoints)
    assert kept is not None
    assert vector_sha256(kept) == fed.rounds[2].output_sha256 != fed.rounds[4].output_sha256
    closing = [m for _, m in fed.requests if m.metadata.message_type == messages.CLOSE]
    assert {messages.read_close(m.content).final_sha256 for m in closing} == {vector_sha256(kept)}
    executed = GaussianSteps(made.privacy.sampling_rate, made.noise_multiplier, 4 * 2)
    assert {s.steps for s in result.sites} == {8}
    for site in fed.sites.values():
        assert sum(c.event.steps for c in site.outbox.charges(made.sha256)) == 8
        assert {job.state for job in site.outbox.jobs()} == {"finished"}
    assert result.epsilon == pytest.approx(epsilon([executed], made.privacy.delta or 0))
    _, claims = check_outcome(fed.folder / "out")
    assert all(claim.passed for claim in claims)


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("at", [2, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 4))])
def test_a_server_that_dies_decides_afterwards_as_it_would_have_done(
    at: int, make_job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    made = make_job(training={"rounds": 9, "patience": 2}, privacy=no_privacy)
    fed = federation(made, policy={"allow_no_privacy": True})

    def cut(name: str, reply: Message) -> Message:
        if reply.metadata.message_type == RELEASE and len(fed.rounds) == at and name == "B":
            raise KeyboardInterrupt
        return reply

    fed.tap = cut
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    assert final_vector(made, fed.checkpoints) is None
    fed.tap = lambda _, reply: reply
    result = fed.run()
    assert ([row.round for row in result.rounds], result.kept_round) == ([1, 2, 3, 4], 2)
    again = fed.run()  # it was over: nothing is trained, and the same is written
    assert again.adapter_sha256 == result.adapter_sha256
    assert fed.checkpoints.rounds(made.sha256)[-1].round == 4


@pytest.mark.usefixtures("scored")
def test_without_patience_the_last_round_counts(
    make_job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    made = make_job(training={"rounds": 4}, privacy=no_privacy)
    fed = federation(made, policy={"allow_no_privacy": True})
    result = fed.run()
    assert (result.kept_round, result.final.accuracy) == (None, SCORES[4])
    assert fed.checkpoints.best(made.sha256) is None


def test_a_database_of_before_gets_the_column_that_came_later(tmp_path: Any) -> None:  # noqa: ANN401
    import sqlite3

    path = tmp_path / "state.db"
    Checkpoints(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE rounds DROP COLUMN entity_f1")
        database.execute("DROP TABLE best_adapters")
    database.close()
    opened = Checkpoints(f"sqlite:///{path}")
    assert opened.rounds("ab" * 32) == []
    assert opened.best("ab" * 32) is None
