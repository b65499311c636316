"""Whole jobs with a server that signs: every site learns every site's head, and who forks is left.

The grid is in one process; certificates, signatures and receipts are those of the link.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flwr.app import ConfigRecord, Message, RecordDict

from common import pki
from common.audit.cli import main as fl_audit
from common.audit.heads_cli import read_heads
from common.errors import Refusal, UpdateRejected
from common.heads import HeadRow
from common.job import Job
from common.messages import CLOSE, TRAIN, read_verdict
from common.phases import RELEASE, confirm, read_charged, read_confirm
from common.privacy.charge import HeadOf, SignedCharge, check_charge
from common.receipt import ServerKey, SignedConfirmation, SignedReceipt, to_bytes, verify_signed
from server import tables

MakeJob = Callable[..., Job]
ROUNDS = 2
WITHOUT: dict[str, Any] = {"policy": {"allow_no_privacy": True}}


def server_key(root: pki.Credential) -> ServerKey:
    made = pki.issue_server(pki.create_intermediate(root), ["127.0.0.1"])
    return ServerKey(made.certificate, made.key)


ROOT, STRANGER = pki.create_root("heads"), pki.create_root("another")
KEY = server_key(ROOT)


@pytest.fixture
def signing(
    make_job: MakeJob, federation: Callable[..., Any], no_privacy: dict[str, Any]
) -> Callable[..., Any]:
    """Federations whose server signs and whose sites trust its root."""

    def make(name: str = "wards", rounds: int = ROUNDS, quorum: int = 1) -> Any:  # noqa: ANN401
        training = {"rounds": rounds, "local_steps": 1, "quorum": quorum}
        job = make_job(job={"name": name}, training=training, privacy=no_privacy)
        fed = federation(job, **WITHOUT)
        fed.server_key = lambda: KEY
        for one in fed.sites.values():
            (one.home.folder / "pki").mkdir(exist_ok=True)
            (one.home.folder / "pki/root.pem").write_bytes(ROOT.certificate)
        return fed

    return make


def receipts(fed: Any) -> list[SignedReceipt]:  # noqa: ANN401 -- the root conftest's own
    found: list[SignedReceipt] = fed.checkpoints.round_receipts(fed.signed.job.sha256)
    return found


def seen(fed: Any, at: str, of: str) -> list[HeadRow]:  # noqa: ANN401
    return read_heads(fed.sites[at].home.folder, of)[0]


def said(fed: Any, site: str) -> list[str]:  # noqa: ANN401
    """The reasons that a site gave, in order."""
    verdicts = [read_verdict(reply.content) for name, reply in fed.replies if name == site]
    return [verdict.reason for verdict in verdicts if verdict is not None and verdict.reason]


def test_every_round_has_a_receipt_that_names_all_that_was_exchanged(
    signing: Callable[..., Any],
) -> None:
    fed = signing()
    fed.run()
    made, job = receipts(fed), fed.signed.job.sha256
    assert [signed.receipt.round for signed in made] == [1, 2]
    assert [signed.receipt.before for signed in made] == ["", made[0].sha256]
    records = {record.round: record for record in fed.rounds}
    for signed in made:
        receipt, record = signed.receipt, records[signed.receipt.round]
        verify_signed(signed, ROOT.certificate)
        ends = (receipt.job_sha256, receipt.input_sha256, receipt.output_sha256)
        assert ends == (job, record.input_sha256, record.output_sha256)
        assert receipt.asked == ("A", "B")
        for reply in receipt.replies:
            kept = {c.round: c for c in fed.sites[reply.site].outbox.charges()}[receipt.round]
            assert (reply.payload_sha256, reply.accepted) == (kept.payload_sha256, True)
        for site, charge in receipt.charges.items():
            entry = check_charge(charge, {charge.head.public_key}.__contains__)
            assert (entry.job_sha256, entry.round) == (job, receipt.round)
            assert entry.input_sha256 == receipt.input_sha256
            assert receipt.heads[site] == charge.head
            ours = fed.sites[site].outbox.journal.rows()[entry.seq]
            assert charge.row.hash == ours.hash.hex()
    first, second = (signed.receipt for signed in made)
    for site in "AB":  # the proof of each round starts where the receipt before ended
        since = second.charges[site].since
        assert since is not None
        assert since.is_same(first.heads[site])


def test_each_site_knows_every_head_of_all_jobs_and_that_it_goes_on(
    signing: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fed = signing()
    fed.run()
    later = signing("later")
    later.run()
    heads = [s.receipt.heads for f in (fed, later) for s in receipts(f)]
    for at, of in (("A", "B"), ("B", "A")):
        rows = seen(later, at, of)
        assert [(row.size, row.root) for row in rows] == [(h[of].size, h[of].root) for h in heads]
        assert [row.state for row in rows] == ["first", *["consistent"] * 3]
        assert len({row.confirmed_by for row in rows}) == 1
    own = seen(later, "A", "A")
    assert [row.size for row in own] == [h["A"].size for h in heads]
    home = str(later.sites["A"].home.folder)
    capsys.readouterr()
    assert fl_audit(["heads", home, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["passed"]
    assert len(shown["heads"]) == 8
    assert fl_audit(["heads", home]) == 0
    assert "consistent" in capsys.readouterr().out


def test_nothing_leaves_before_the_head_was_confirmed(signing: Callable[..., Any]) -> None:
    """What a server without our root's certificate says frees no byte."""
    fed = signing(rounds=1, quorum=2)
    stranger = server_key(STRANGER)

    def replies(change: Callable[[SignedConfirmation], RecordDict]) -> RecordDict:
        (asked,) = [m for n, m in fed.requests if n == "A" and m.metadata.message_type == RELEASE]
        word = read_confirm(asked.content)
        assert isinstance(word, SignedConfirmation)
        from client.app import make_client_app
        from common.flower import new_context, set_message_id

        again = Message(change(word), 5, RELEASE)
        set_message_id(again, "1")
        app = make_client_app(lambda _: fed.sites["A"])
        return app(again, new_context(5)).content

    fed.tap = _stop_before_the_end(fed)
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    fed.tap = lambda name, reply: reply
    assert "arrays" in replies(confirm)  # asked again, the bytes
    for change, reason in (
        (lambda w: confirm(w.confirmation), "must be signed by our server, got no signature"),
        (lambda w: confirm(stranger.confirm(w.confirmation)), "another root"),
        (lambda w: confirm(w.model_copy(update={"signature": "00" * 70})), "got another"),
        (
            lambda w: confirm(
                w.model_copy(
                    update={"confirmation": w.confirmation.model_copy(update={"round": 2})}
                )
            ),
            "got another",
        ),
        (lambda w: confirm(KEY.confirm(w.confirmation.model_copy(update={"site": "B"}))), "site A"),
        (
            lambda w: confirm(KEY.confirm(w.confirmation.model_copy(update={"round": 2}))),
            "round 2 must be ready",
        ),
        (
            lambda w: confirm(
                KEY.confirm(
                    w.confirmation.model_copy(
                        update={"head": w.confirmation.head.model_copy(update={"root": "0" * 64})}
                    )
                )
            ),
            "must be this ledger's",
        ),
        (
            lambda w: confirm(
                KEY.confirm(
                    w.confirmation.model_copy(
                        update={"head": w.confirmation.head.model_copy(update={"size": 2})}
                    )
                )
            ),
            "must be this ledger's",
        ),
        (lambda w: RecordDict({"confirm": ConfigRecord({"signed": b"{"})}), "schema"),
        (lambda w: RecordDict(), "must hold unsigned"),
    ):
        content = replies(change)
        verdict = read_verdict(content)
        assert verdict is not None, reason
        assert "arrays" not in content
        assert reason in verdict.reason


def _stop_before_the_end(fed: Any) -> Callable[[str, Message], Message]:  # noqa: ANN401
    """Once B has answered too, so that round 1 stays open."""

    def tap(name: str, reply: Message) -> Message:
        if name == "B" and reply.metadata.message_type == RELEASE:
            raise KeyboardInterrupt
        return reply

    return tap


def test_a_server_that_died_in_a_round_confirms_the_same_charge_again(
    signing: Callable[..., Any],
) -> None:
    fed = signing()
    fed.tap = _stop_before_the_end(fed)
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    before = fed.sites["A"].outbox.charges()
    fed.tap = lambda _, reply: reply
    fed.run()
    assert [c.payload_sha256 for c in fed.sites["A"].outbox.charges()][:1] == [
        before[0].payload_sha256
    ]
    for at, of in (("A", "B"), ("B", "A")):
        assert [row.state for row in seen(fed, at, of)] == ["first", "consistent"]
    assert said(fed, "A") == said(fed, "B") == []


Forge = Callable[[SignedCharge], SignedCharge]


def other_body(charge: SignedCharge) -> SignedCharge:
    body = charge.row.body.replace('"steps":1', '"steps":0')
    return charge.model_copy(update={"row": charge.row.model_copy(update={"body": body})})


def without_proof(charge: SignedCharge) -> SignedCharge:
    return charge.model_copy(update={"row": charge.row.model_copy(update={"inclusion": ()})})


def shorter(charge: SignedCharge) -> SignedCharge:
    head = charge.head.model_copy(update={"size": charge.head.size - 1})
    return charge.model_copy(update={"head": head})


def of_another_round(charge: SignedCharge) -> SignedCharge:
    return charge.model_copy(update={"row": charge.hand_overs[0]})


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (other_body, "must match its hash"),
        (without_proof, "under its head, got no proof"),
        (shorter, "signed by its key"),
        (of_another_round, "must be a reserved entry, got one created"),
        (lambda c: c.model_copy(update={"hand_overs": ()}), "entry that names its key"),
        (lambda c: c.model_copy(update={"consistency": ("ab" * 32,)}), "got none"),
    ],
)
def test_a_charge_that_is_not_proved_is_rejected_in_words_and_the_round_goes_on(
    signing: Callable[..., Any],
    forge: Forge,
    reason: str,
    logs: Any,  # noqa: ANN401
) -> None:
    fed = signing(rounds=1)

    def tap(name: str, reply: Message) -> Message:
        if name == "B" and reply.metadata.message_type == TRAIN:
            forged = to_bytes(forge(read_charged(reply.content)))
            reply.content.config_records["charge"] = ConfigRecord({"signed": forged})
        return reply

    fed.tap = tap
    fed.run()
    assert any(reason in str(e.get("reason")) for e in logs.events if e["log_level"] == "warning")
    (signed,) = receipts(fed)
    assert [reply.site for reply in signed.receipt.replies] == ["A"]
    assert set(signed.receipt.charges) == {"A"}
    assert not any(n == "B" and r.metadata.message_type == RELEASE for n, r in fed.replies)


def test_a_charge_of_an_unadmitted_key_is_rejected(
    signing: Callable[..., Any],
    logs: Any,  # noqa: ANN401
) -> None:
    fed = signing(rounds=1)
    fed.run()
    (signed,) = receipts(fed)
    charge = signed.receipt.charges["A"]
    with pytest.raises(UpdateRejected, match="by a key admitted for the site"):
        check_charge(charge, lambda key: False)


def rewrite(fed: Any, change: Callable[[SignedReceipt], SignedReceipt]) -> None:  # noqa: ANN401
    """The last receipt that the server keeps, as a server that lies would have made it."""
    made, table = change(receipts(fed)[-1]), tables.round_receipts
    with fed.checkpoints._database.writing() as connection:
        connection.execute(
            table.update()
            .where(sa.and_(table.c.round == made.receipt.round))
            .values(content=to_bytes(made), sha256=made.sha256)
        )


def lies_after(fed: Any, round_: int, change: Callable[..., SignedReceipt]) -> None:  # noqa: ANN401
    """Rewrite the receipt of a round as soon as it was closed."""

    class Rounds(list[Any]):
        def append(self, record: Any) -> None:  # noqa: ANN401
            super().append(record)
            if record.round == round_:
                rewrite(fed, change)

    fed.rounds = Rounds()


def altered(signed: SignedReceipt, **fields: object) -> SignedReceipt:
    return KEY.sign_receipt(signed.receipt.model_copy(update=fields))


def forked(signed: SignedReceipt) -> SignedReceipt:
    other = HeadOf(**{**signed.receipt.heads["B"].model_dump(), "root": "ab" * 32})
    charges = {site: c for site, c in signed.receipt.charges.items() if site != "B"}
    return altered(signed, heads={**signed.receipt.heads, "B": other}, charges=charges)


def shrunk(signed: SignedReceipt) -> SignedReceipt:
    other = HeadOf(**{**signed.receipt.heads["B"].model_dump(), "size": 1, "root": "cd" * 32})
    charges = {site: c for site, c in signed.receipt.charges.items() if site != "B"}
    return altered(signed, heads={**signed.receipt.heads, "B": other}, charges=charges)


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        (forked, "FORKED", "ledger of site B"),
        pytest.param(shrunk, "SHRUNK", "must be no shorter", marks=pytest.mark.slow),
    ],
)
def test_a_peer_that_forks_or_shrinks_is_trained_with_no_more(
    signing: Callable[..., Any],
    change: Callable[[SignedReceipt], SignedReceipt],
    state: str,
    reason: str,
    logs: Any,  # noqa: ANN401
    capsys: pytest.CaptureFixture[str],
) -> None:
    fed = signing(rounds=3)
    lies_after(fed, 2, change)  # A's order of round 3 brings it
    with suppress(Refusal):  # B misses its own charge
        fed.run()
    assert [c.round for c in fed.sites["A"].outbox.charges()] == [1, 2]  # trained no more
    assert any(reason in words for words in said(fed, "A"))
    assert any("trains no more" in e["event"] for e in logs.events if e["log_level"] == "error")
    assert seen(fed, "A", "B")[-1].state == state
    home = str(fed.sites["A"].home.folder)
    capsys.readouterr()
    assert fl_audit(["heads", home]) == 1
    assert state in capsys.readouterr().out
    later = signing("later")
    later.run()
    assert reason in said(later, "A")[0]  # for good, with that peer
    assert later.signed.job.sha256 not in {c.job_sha256 for c in fed.sites["A"].outbox.charges()}


@pytest.mark.parametrize(
    "how", ["missing", "altered", pytest.param("other bytes", marks=pytest.mark.slow)]
)
def test_a_receipt_without_this_sites_own_charge_ends_the_job_here(
    signing: Callable[..., Any], how: str
) -> None:
    fed = signing(rounds=3)

    def change(signed: SignedReceipt) -> SignedReceipt:
        receipt = signed.receipt
        if how == "missing":
            charges = {s: c for s, c in receipt.charges.items() if s != "A"}
            return altered(signed, charges=charges)
        if how == "altered":
            other = receipt.charges["A"].model_copy(update={"row": receipt.charges["B"].row})
            return altered(signed, charges={**receipt.charges, "A": other})
        first, *rest = receipt.replies
        first = first.model_copy(update={"payload_sha256": "ab" * 32})
        return altered(signed, replies=(first, *rest))

    lies_after(fed, 1, change)
    with suppress(Refusal):
        fed.run()
    assert [c.round for c in fed.sites["A"].outbox.charges()] == [1]
    assert any("this site" in words for words in said(fed, "A"))


@pytest.mark.slow
def test_an_account_and_a_database_from_before_go_on(signing: Callable[..., Any]) -> None:
    """Their tables are made when the first head or charge is kept."""
    fed = signing()
    fed.run()
    with closing(sqlite3.connect(fed.folder / "state.db")) as db:
        for name in ("charges", "round_receipts", "confirmed_heads"):
            db.execute(f"DROP TABLE {name}")
        db.commit()
    for one in fed.sites.values():
        with closing(sqlite3.connect(one.home.account_path)) as db:
            for name in ("head", "confirmation", "round_receipt", "last_shown", "alarm"):
                db.execute(f"DROP TABLE {name}")
            db.commit()
    later = signing("later")
    later.run()
    assert [signed.receipt.round for signed in receipts(later)] == [1, 2]
    assert [row.state for row in seen(later, "A", "B")] == ["first", "consistent"]


def test_a_close_brings_the_last_receipt(signing: Callable[..., Any]) -> None:
    fed = signing()
    fed.run()
    assert any(m.metadata.message_type == CLOSE for _, m in fed.requests)
    last = receipts(fed)[-1].receipt
    assert seen(fed, "A", "B")[-1].size == last.heads["B"].size


class Lost(list[Any]):
    """A server's rounds, until it is lost; its database is copied when another was closed."""

    def __init__(self, folder: Path, *, copied_at: int, lost_at: int) -> None:
        super().__init__()
        self._folder, self._copied_at, self._lost_at = folder, copied_at, lost_at

    def append(self, record: Any) -> None:  # noqa: ANN401
        super().append(record)
        if record.round == self._copied_at:
            shutil.copy(self._folder / "state.db", self._folder / "copy.db")
        if record.round == self._lost_at:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_server_that_is_put_back_in_a_job_makes_no_peer_an_enemy(
    signing: Callable[..., Any],
) -> None:
    """It forgot two rounds; A knows B by the head of one, and B by then had the other's."""
    fed = signing(rounds=4)
    fed.rounds = Lost(fed.folder, copied_at=1, lost_at=3)
    with pytest.raises(KeyboardInterrupt):
        fed.run()
    shutil.copy(fed.folder / "copy.db", fed.folder / "state.db")
    fed.rounds = []
    fed.run()
    assert [signed.receipt.round for signed in receipts(fed)] == [1, 2, 3, 4]
    for at, of in (("A", "B"), ("B", "A")):
        rows, alarms = read_heads(fed.sites[at].home.folder, of)
        assert alarms == []
        assert [row.state for row in rows] == ["first", *["consistent"] * (len(rows) - 1)]
    assert said(fed, "A") == said(fed, "B") == []


@pytest.mark.slow
def test_a_peer_and_a_server_that_are_put_back_together_are_found_in_the_next_job(
    signing: Callable[..., Any], tmp_path: Path
) -> None:
    first = signing()
    first.run()
    home, copy = first.sites["B"].home.folder, tmp_path / "copy"
    shutil.copytree(home, copy)
    shutil.copy(first.folder / "state.db", tmp_path / "copy.db")
    signing("second").run()
    shutil.rmtree(home)
    shutil.copytree(copy, home)
    shutil.copy(tmp_path / "copy.db", first.folder / "state.db")
    third = signing("third", rounds=4)
    third.run()
    rows, alarms = read_heads(third.sites["A"].home.folder, "B")
    assert rows[-1].is_bad
    assert {alarm.site for alarm in alarms} == {"B"}
    assert any("ledger of site B" in words for words in said(third, "A"))
