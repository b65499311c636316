"""A server put back from a backup: it is behind its sites, and what they hold wins."""

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from common.job import Job
from common.phases import RELEASE

if TYPE_CHECKING:
    from flwr.app import Message

    from tests.conftest import MakeFederation


@pytest.mark.slow  # test_restore.py does the like by the commands' own functions
@pytest.mark.parametrize("private", [True, False], ids=["private", "no-privacy"])
def test_rounds_that_a_backup_forgot_come_again_as_the_same_bytes_at_no_charge(
    job: Callable[..., Job],
    federation: "MakeFederation",
    no_privacy: dict[str, Any],
    private: bool,
) -> None:
    made = job(
        **({} if private else {"privacy": no_privacy}), training={"rounds": 4, "local_steps": 1}
    )
    fed = federation(made, policy={"allow_no_privacy": True})
    state, backup = fed.folder / "state.db", fed.folder / "backup.db"

    def lose(name: str, reply: "Message") -> "Message":
        if reply.metadata.message_type == RELEASE and name == "B":
            if len(fed.rounds) == 2:  # round 1 is closed
                shutil.copy(state, backup)
            if len(fed.rounds) == 4:  # round 3 is closed, and A has answered the last
                raise KeyboardInterrupt
        return reply

    fed.tap = lose
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    before = {c.round: c.payload_sha256 for c in fed.sites["A"].outbox.charges()}
    used = {r.round: r.payload_sha256 for r in fed.checkpoints.receipts(made.sha256)}
    assert set(before) == {1, 2, 3, 4}
    ended = fed.checkpoints.latest(made.sha256)
    assert ended is not None
    shutil.copy(backup, state)
    assert [r.round for r in fed.checkpoints.rounds(made.sha256)] == [0, 1]

    fed.tap = lambda _, reply: reply
    fed.rounds.clear()
    result = fed.run()
    assert {c.round: c.payload_sha256 for c in fed.sites["A"].outbox.charges()} == before
    again = {r.round: r.payload_sha256 for r in fed.checkpoints.receipts(made.sha256)}
    assert {round_: again[round_] for round_ in used} == used
    assert {site.steps for site in result.sites} == {4}
    for one in fed.sites.values():
        assert sum(charge.event.steps for charge in one.outbox.charges()) == 4
