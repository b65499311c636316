"""The server's memory of a site's ledger, over whole jobs in one process."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict

from common import messages
from common.flower import become_server, set_message_id
from common.job import Job
from common.link.identity import node_id
from common.phases import RELEASE
from common.privacy.entries import Created, Decided, write_entry
from common.privacy.ledger import WITNESSED, Chain, Head, public_hex
from server.witness import witness

MakeJob = Callable[..., Job]
MakeFederation = Callable[..., Any]
WITHOUT: dict[str, Any] = {"policy": {"allow_no_privacy": True}}


def words(fed: Any, site: str) -> list[str]:  # noqa: ANN401 -- the root conftest's own
    """The reasons that a site gave, in order; empty for an update."""
    said = [messages.read_verdict(r.content) for name, r in fed.replies if name == site]
    return ["" if verdict is None else verdict.reason for verdict in said]


def test_an_older_copy_put_back_trains_no_more(
    job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    made = job(training={"rounds": 3, "quorum": 1}, privacy=no_privacy)
    fed = federation(made, **WITHOUT)
    one = fed.sites["B"]
    account, older = one.home.account_path, fed.folder / "older.db"
    anchor = account.with_suffix(".anchor")  # a whole home's older copy
    rounds: list[Message] = []

    def put_back(name: str, reply: Message) -> Message:
        if name == "B" and reply.metadata.message_type == messages.OFFER:
            shutil.copy(account, older)
            shutil.copy(anchor, older.with_suffix(".anchor"))
        if name == "B" and reply.metadata.message_type == RELEASE:
            rounds.append(reply)
            if len(rounds) == 2:
                older.replace(account)
                older.with_suffix(".anchor").replace(anchor)
                one.outbox.__init__(account)  # as a new process would open it
        return reply

    fed.tap = put_back
    fed.run()
    assert words(fed, "B")[5] == (
        "ledger must hold the 7 entries that the server witnessed, got 2: "
        "an older copy was put back"
    )
    assert one.outbox.charges() == []
    assert [c.round for c in fed.sites["A"].outbox.charges()] == [1, 2, 3]


def test_every_job_is_offered_with_the_longest_head_of_all_jobs_before(
    job: MakeJob, federation: MakeFederation, no_privacy: dict[str, Any]
) -> None:
    fed = federation(job(training={"rounds": 1}, privacy=no_privacy), **WITHOUT)
    fed.run()
    known, now = fed.checkpoints.head("A"), fed.sites["A"].outbox.head()
    assert (known.size, known.root) == (now.size, now.root)
    second = job(training={"rounds": 1}, privacy=no_privacy, job={"name": "later"})
    later = federation(second, **WITHOUT)
    later.run()
    offered = {
        name: messages.read_head(request.content, WITNESSED)
        for name, request in later.requests
        if request.metadata.message_type == messages.OFFER
    }
    assert offered["A"] == known
    kept = fed.checkpoints.head("A")
    assert kept is not None
    assert kept.size > known.size


def other_ledger(size: int) -> Head:
    key, chain = ec.generate_private_key(ec.SECP256R1()), Chain()
    common = {"at": "2026-03-04T05:06:07Z", "salt": "5a" * 16}
    named = {"public_key": public_hex(key), "is_ephemeral": True}
    body = write_entry(Created, seq=0, **common, **named, site="B", unit="", cap={})
    chain.extend(chain.tail.row(body, key))
    for seq in range(1, size):
        said = {"job_sha256": "ab" * 32, "decision": "refuse", "who": "", "note": ""}
        chain.extend(chain.tail.row(write_entry(Decided, seq=seq, **common, **said), key))
    return chain.head(key)


@pytest.mark.parametrize(
    ("head", "event"),
    [
        (other_ledger(2), {"event": "ledger forked", "site": "B", "size": 2}),
        (other_ledger(1), {"event": "older ledger head", "site": "B", "size": 1}),
        (replace(other_ledger(9), size=8), {"event": "head not taken", "site": "B"}),
        (replace(other_ledger(9), root="ab"), {"event": "head not taken", "site": "B"}),
        # A key of an algorithm that nobody knows.
        (
            replace(other_ledger(9), public_key="300c300706032a03040500030100"),
            {"event": "head not taken", "site": "B"},
        ),
    ],
)
def test_a_head_that_contradicts_is_named_and_the_longer_one_kept(
    job: MakeJob,
    federation: MakeFederation,
    logs: Any,  # noqa: ANN401 -- the root conftest's own
    head: Head,
    event: dict[str, object],
) -> None:
    become_server()
    fed = federation(job())
    checkpoints, known = fed.checkpoints, other_ledger(2)

    def say(said: Head) -> None:
        asked = Message(RecordDict(), node_id("B"), messages.OFFER)
        set_message_id(asked, "1")
        reply = Message(messages.verdict(accepted=True, head=said), reply_to=asked)
        witness(checkpoints, "B", reply)

    say(known)
    say(head)
    assert checkpoints.head("B") == known
    assert any(event.items() <= found.items() for found in logs.events)
