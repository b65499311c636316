"""A server put back to an older state: the sites' ledgers and bytes are the oracle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from common.errors import JobStopped, Refusal
from common.flower import content_to_bytes
from common.job import Job
from common.phases import RELEASE
from server.backup import backup
from server.checkpoint import Checkpoints, RoundRecord
from server.enrolment import init_server
from server.restore import restore

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]


class Rounds(list[RoundRecord]):
    """Takes a backup when a round is closed, and loses the server when another is."""

    def __init__(self, home: Path, file: Path, *, backup_at: int, lost_at: int) -> None:
        super().__init__()
        self._home, self._file, self._backup_at, self._lost_at = home, file, backup_at, lost_at

    def append(self, record: RoundRecord) -> None:
        super().append(record)
        if record.round == self._backup_at:
            backup(self._home, self._file)
        if record.round == self._lost_at:
            raise JobStopped("the server must be lost here, got its last round")


def updates(replies: list[tuple[str, Message]]) -> dict[tuple[str, int], bytes]:
    """What each site sent for each round, in order."""
    sent: dict[tuple[str, int], bytes] = {}
    counts: dict[str, int] = {}
    for site, reply in replies:
        if reply.metadata.message_type == RELEASE:
            counts[site] = counts.get(site, 0) + 1
            sent[site, counts[site]] = content_to_bytes(reply.content)
    return sent


def closed(home: Path, job: Job) -> list[tuple[int, str]]:
    found = Checkpoints(f"sqlite:///{home / 'state.db'}").rounds(job.sha256)
    return [(record.round, record.output_sha256) for record in found]


@pytest.fixture
def lost(plain_federation: MakeFederation, tmp_path: Path) -> Callable[..., Any]:
    """A federation whose server died after ``lost_at`` and came back as of ``backup_at``."""

    def make(job: Job, *, backup_at: int, lost_at: int) -> tuple[Any, Path]:
        fed = plain_federation(job)
        before, file = fed.folder, tmp_path / "server.backup"
        init_server(before, hosts=[], address="127.0.0.1:8443")
        fed.rounds = Rounds(before, file, backup_at=backup_at, lost_at=lost_at)
        if lost_at <= job.training.rounds:
            with pytest.raises(JobStopped):
                fed.run()
        else:
            fed.run()
        fed.folder = tmp_path / "restored"
        restore(fed.folder, file)
        fed.rounds = []
        return fed, before

    return make


def test_after_an_older_state_nothing_is_charged_twice_or_lost_and_the_sites_heads_win(
    plain_job: MakeJob, lost: Callable[..., Any]
) -> None:
    made = plain_job(training={"rounds": 4})
    fed, before = lost(made, backup_at=1, lost_at=3)
    first, fed.replies = updates(fed.replies), []
    behind, heads = fed.checkpoints.head("A"), fed.sites["A"].outbox.head()
    assert behind.size < heads.size
    assert [number for number, _ in closed(fed.folder, made)] == [0, 1]

    result = fed.run()

    again = updates(fed.replies)
    for site in "AB":
        # Rounds 2 and 3 were answered before: the same bytes. Round 4 is new.
        assert [again[site, n] for n in (1, 2)] == [first[site, n] for n in (2, 3)]
        charges = fed.sites[site].outbox.charges()
        assert [(c.round, c.event.steps) for c in charges] == [(n, 2) for n in (1, 2, 3, 4)]
        fed.sites[site].outbox.verify()
        own, kept = fed.sites[site].outbox.head(), fed.checkpoints.head(site)
        assert (kept.size, kept.root) == (own.size, own.root)
    assert [(site.name, site.steps) for site in result.sites] == [("A", 8), ("B", 8)]
    assert closed(fed.folder, made)[:4] == closed(before, made)


@pytest.mark.slow
def test_a_job_that_ended_since_the_backup_fails_by_name_and_costs_nothing_more(
    plain_job: MakeJob, lost: Callable[..., Any]
) -> None:
    made = plain_job(training={"rounds": 2})
    fed, _ = lost(made, backup_at=1, lost_at=99)
    before = {site: fed.sites[site].outbox.charges() for site in "AB"}
    with pytest.raises(Refusal, match="open job, got a closed one"):
        fed.run()
    assert {site: fed.sites[site].outbox.charges() for site in "AB"} == before


@pytest.mark.slow
def test_a_job_that_the_backup_does_not_know_is_submitted_again_at_no_cost(
    plain_job: MakeJob, lost: Callable[..., Any]
) -> None:
    made = plain_job(training={"rounds": 3})
    fed, before = lost(made, backup_at=0, lost_at=2)
    (fed.folder / "state.db").unlink()  # as of a backup before the job was submitted
    first, fed.replies = updates(fed.replies), []
    fed.run()
    again = updates(fed.replies)
    for site in "AB":
        assert [again[site, n] for n in (1, 2)] == [first[site, n] for n in (1, 2)]
        assert [c.round for c in fed.sites[site].outbox.charges()] == [1, 2, 3]
    assert closed(fed.folder, made)[:3] == closed(before, made)
