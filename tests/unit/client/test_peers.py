"""A peer's heads as receipts name them: what raises an alarm, and what no honest one ever does.

Ledgers, charges and receipts are signed for real; the ledger of B is the oracle.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from client.config import SiteConfig, SiteHome
from client.heads import Heads
from client.outbox import Outbox, RoundKey, Terms
from client.peers import Peers
from common import heads
from common.audit.heads_cli import read_heads
from common.privacy.charge import MAX_LINKS, HeadOf, Link, SignedCharge
from common.privacy.entries import Closed, Reserved
from common.privacy.event import GaussianSteps
from common.privacy.ledger import Chain
from common.receipt import (
    Confirmation,
    RoundReceipt,
    ServerKey,
    SignedReceipt,
    most_charge_bytes,
    to_bytes,
)
from tests.story import AT, Ledger, authorities, digest

FIRST, SECOND, ELSEWHERE = digest("first job"), digest("second job"), digest("another job")
EVENT, PLAN = GaussianSteps(0.05, 1.3, 2), GaussianSteps(0.05, 1.3, 80)
BY = authorities()
KEY = ServerKey(BY.server.certificate, BY.server.key)
SITE_KEY = BY.enrol("B")[0]


def charge_of(ledger: Ledger, job: str, round_: int, *since: HeadOf) -> SignedCharge:
    """The next entry as the charge of a round, with a proof from each of these heads."""
    seq = ledger.append(
        Reserved, job_sha256=job, round=round_, input_sha256=digest("in"),
        start_sha256=digest("start"), terms={"delta": 1e-5}, code_sha256=digest("code"),
        charge={"sampling_rate": 0.05, "noise_multiplier": 1.3, "steps": 2}, accountant="pld",
    )  # fmt: skip
    made = ledger.charge(seq, since[0] if since else None, [] if since else [0])
    also = [Link(since=h, consistency=ledger.charge(seq, h).consistency) for h in since[1:]]
    return made.model_copy(update={"also": tuple(also)})


def grow(ledger: Ledger, count: int = 1) -> HeadOf:
    """So many entries more of which receipts say nothing; the head then."""
    for _ in range(count):
        ledger.append(Closed, job_sha256=ELSEWHERE, state="stopped", final_sha256="")
    return ledger.head()


def rolled_back(ledger: Ledger, size: int) -> Ledger:
    """The same site with its ledger put back to ``size`` entries; what follows differs."""
    older = Ledger("B", SITE_KEY)
    older.chain, older.rows = Chain(), []
    for row in ledger.rows[:size]:
        older.chain.extend(row)
        older.rows.append(row)
    older.append(Closed, job_sha256=digest("a branch"), state="failed", final_sha256="")
    return older


class Server:
    """Receipts of a site A and its peer B, in the order in which they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.minute = folder, 0
        self.outbox = Outbox(folder / "account.db", site="A")
        self.home = SiteHome(folder, SiteConfig(site="A"))
        (folder / "pki").mkdir()
        (folder / "pki/root.pem").write_bytes(BY.root.certificate)
        self.chains: dict[str, list[SignedReceipt]] = {}

    def close(
        self, job: str, round_: int, said: SignedCharge | HeadOf, *, minute: int = 0
    ) -> SignedReceipt:
        """Sign a round's receipt with B's charge, or with its head alone."""
        self.minute += 1
        chain = self.chains.setdefault(job, [])
        del chain[round_ - 1 :]
        receipt = RoundReceipt(
            job_sha256=job,
            round=round_,
            closed_at=f"{AT + dt.timedelta(minutes=minute or self.minute):%Y-%m-%dT%H:%M:%SZ}",
            before=chain[-1].sha256 if chain else "",
            input_sha256=digest("in"),
            output_sha256=digest("out"),
            asked=("A", "B"),
            replies=(),
            charges={"B": said} if isinstance(said, SignedCharge) else {},
            heads={"B": said.head if isinstance(said, SignedCharge) else said},
        )
        chain.append(KEY.sign_receipt(receipt))
        return chain[-1]

    def show(self, *receipts: SignedReceipt) -> None:
        """Bring them to A, one at a time."""
        for signed in receipts:
            Peers(self.outbox, self.home).take([signed], signed.receipt.job_sha256, 2)

    def tell(self, job: str, round_: int, said: SignedCharge | HeadOf) -> HeadOf:
        """Close a round and bring its receipt; B's head in it."""
        signed = self.close(job, round_, said)
        self.show(signed)
        return signed.receipt.heads["B"]

    @property
    def states(self) -> list[str]:
        """How A judged each head of B that it kept."""
        return [row.state for row in read_heads(self.folder, "B")[0]]

    @property
    def alarms(self) -> list[str]:
        """Whom A trains with no more."""
        return [alarm.site for alarm in Peers(self.outbox, self.home).alarms()]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("B", SITE_KEY)


def two_rounds(server: Server, ledger: Ledger) -> tuple[HeadOf, HeadOf]:
    """B's heads after the first two rounds of the first job, both known at A."""
    one = server.tell(FIRST, 1, charge_of(ledger, FIRST, 1))
    grow(ledger)
    return one, server.tell(FIRST, 2, charge_of(ledger, FIRST, 2, one))


def test_a_head_that_was_seen_raises_an_alarm_when_a_longer_one_was_shown_since(
    server: Server, ledger: Ledger
) -> None:
    one, _ = two_rounds(server, ledger)
    server.tell(FIRST, 3, one)
    assert (server.states, server.alarms) == (["first", "consistent", "SHRUNK"], ["B"])


def test_a_shorter_ledger_under_a_later_job_s_charge_raises_an_alarm(
    server: Server, ledger: Ledger
) -> None:
    _, two = two_rounds(server, ledger)
    grow(ledger, 5)
    server.tell(FIRST, 3, charge_of(ledger, FIRST, 3, two))
    before = server.alarms
    back = rolled_back(ledger, 4)
    server.tell(SECOND, 1, charge_of(back, SECOND, 1))
    assert before == []
    assert (server.states[-1], server.alarms) == ("SHRUNK", ["B"])


@pytest.mark.parametrize("shown", ["the older head", "none", "a newer branch's head too"])
def test_a_ledger_put_back_and_grown_again_is_no_continuation_in_the_next_job(
    server: Server, ledger: Ledger, shown: str
) -> None:
    """Whoever forgot with it: B proves all that it can."""
    one, two = two_rounds(server, ledger)
    back = rolled_back(ledger, one.size)
    branch = grow(back, 3)
    since = {"the older head": [one], "none": [], "a newer branch's head too": [branch, one]}
    charge = charge_of(back, SECOND, 1, *since[shown])
    assert charge.head.size > two.size
    server.tell(SECOND, 1, charge)
    assert (server.states, server.alarms) == (["first", "consistent", "FORKED"], ["B"])


def test_a_branch_that_a_receipt_without_a_charge_named_first_is_found_at_the_first_charge(
    server: Server, ledger: Ledger
) -> None:
    one, _ = two_rounds(server, ledger)
    back = rolled_back(ledger, one.size)
    branch = server.tell(SECOND, 1, grow(back, 5))
    assert (server.states[-1], server.alarms) == ("unproven", [])
    server.tell(SECOND, 2, charge_of(back, SECOND, 2, branch, one))
    assert (server.states[-1], server.alarms) == ("FORKED", ["B"])


def test_receipts_that_come_again_or_late_raise_nothing(server: Server, ledger: Ledger) -> None:
    """The end of the first job is learnt of after that of the second."""
    one = server.close(FIRST, 1, charge_of(ledger, FIRST, 1))
    two = server.close(FIRST, 2, charge_of(ledger, FIRST, 2, one.receipt.heads["B"]))
    seen = two.receipt.heads["B"]
    three = server.close(FIRST, 3, charge_of(ledger, FIRST, 3, seen))
    server.show(one)
    known = [one.receipt.heads["B"], seen, three.receipt.heads["B"]]
    later = server.close(SECOND, 1, charge_of(ledger, SECOND, 1, *reversed(known)))
    server.show(later, one, later, two, three, one, three)
    assert server.alarms == []
    assert server.states == ["first", "consistent", "unproven", "unproven"]


def test_a_late_receipt_with_another_ledger_is_none_of_the_known_one(
    server: Server, ledger: Ledger
) -> None:
    one, two = two_rounds(server, ledger)
    back = rolled_back(ledger, one.size)
    late = server.close(SECOND, 1, charge_of(back, SECOND, 1, one), minute=1)
    assert late.receipt.heads["B"].size == two.size
    server.show(late)
    assert (server.states[-1], server.alarms) == ("FORKED", ["B"])


def test_a_restored_server_that_has_forgotten_heads_raises_nothing(
    server: Server, ledger: Ledger
) -> None:
    """It closes rounds 2 and 3 again, in 2 and 3 without B, and B comes back in 4."""
    one, two = two_rounds(server, ledger)
    three = server.tell(FIRST, 3, charge_of(ledger, FIRST, 3, two))
    server.tell(FIRST, 2, one)
    server.tell(FIRST, 3, one)
    server.tell(FIRST, 4, charge_of(ledger, FIRST, 4, one, three, two))
    assert server.alarms == []
    assert server.states == ["first", *["consistent"] * 3]


def test_a_restored_server_s_next_job_may_name_a_head_that_peers_saw_long_ago(
    server: Server, ledger: Ledger
) -> None:
    one, two = two_rounds(server, ledger)
    server.tell(SECOND, 1, one)
    server.tell(SECOND, 2, charge_of(ledger, SECOND, 2, one, two))
    assert (server.states, server.alarms) == (["first", "consistent", "consistent"], [])


def test_a_restored_server_may_name_a_shorter_head_that_this_site_never_saw(
    server: Server, ledger: Ledger
) -> None:
    between = grow(ledger)
    server.tell(FIRST, 1, charge_of(ledger, FIRST, 1))
    server.tell(SECOND, 1, between)
    assert (server.states, server.alarms) == (["first", "unproven"], [])


def many(ledger: Ledger, count: int) -> list[HeadOf]:
    """Heads of jobs that A took no part in, longest first."""
    return [grow(ledger) for _ in range(count)][::-1]


@pytest.mark.parametrize(("links", "state"), [(MAX_LINKS - 1, "FORKED"), (MAX_LINKS, "unproven")])
def test_only_a_peer_that_had_no_room_for_a_proof_may_leave_it_out(
    server: Server, ledger: Ledger, links: int, state: str
) -> None:
    two_rounds(server, ledger)
    head = server.tell(SECOND, 1, charge_of(ledger, SECOND, 1, *many(ledger, links)))
    assert server.states[-1] == state
    assert server.alarms == (["B"] if state == "FORKED" else [])
    if state == "unproven":
        server.tell(SECOND, 2, charge_of(ledger, SECOND, 2, head))
        assert (server.states[-1], server.alarms) == ("consistent", [])


@pytest.mark.parametrize(("sites", "state"), [(4, "FORKED"), (2500, "unproven")])
def test_in_a_job_of_many_sites_a_charge_has_room_for_fewer_proofs(
    server: Server, ledger: Ledger, sites: int, state: str
) -> None:
    two_rounds(server, ledger)
    signed = server.close(SECOND, 1, charge_of(ledger, SECOND, 1, *many(ledger, 12)))
    Peers(server.outbox, server.home).take([signed], SECOND, sites)
    assert server.states[-1] == state


def test_another_root_at_a_known_size_raises_an_alarm_whoever_says_it(
    server: Server, ledger: Ledger
) -> None:
    one, _ = two_rounds(server, ledger)
    other = rolled_back(ledger, one.size - 1).head()
    assert other.size == one.size
    server.tell(SECOND, 1, other)
    assert (server.states[-1], server.alarms) == ("FORKED", ["B"])


def test_a_proof_from_another_root_at_a_known_size_raises_an_alarm(
    server: Server, ledger: Ledger
) -> None:
    """Also among as many as there may be."""
    one, _ = two_rounds(server, ledger)
    back = rolled_back(ledger, one.size - 1)
    other = back.head()
    assert other.size == one.size
    grow(back, 3)
    server.tell(SECOND, 1, charge_of(back, SECOND, 1, *many(back, MAX_LINKS - 1), other))
    assert (server.states[-1], server.alarms) == ("FORKED", ["B"])


@pytest.mark.parametrize(("round_", "state"), [(2, "unproven"), (3, "FORKED")])
def test_within_a_job_a_proof_has_no_room_only_where_a_restored_server_closes_a_round_again(
    server: Server, ledger: Ledger, round_: int, state: str
) -> None:
    two_rounds(server, ledger)
    server.tell(FIRST, round_, charge_of(ledger, FIRST, round_, *many(ledger, MAX_LINKS)))
    assert server.states[-1] == state


def test_a_charge_proves_no_other_head_than_its_own(server: Server, ledger: Ledger) -> None:
    one, two = two_rounds(server, ledger)
    charge = charge_of(ledger, FIRST, 3, two)
    signed = server.close(FIRST, 3, charge)
    other = grow(rolled_back(ledger, one.size), 9)
    shown = signed.receipt.model_copy(update={"heads": {"B": other}})
    server.show(KEY.sign_receipt(shown))
    assert (server.states[-1], server.alarms) == ("FORKED", ["B"])


def test_the_first_charge_that_is_seen_of_a_peer_must_be_proved_too(
    server: Server, ledger: Ledger
) -> None:
    charge = charge_of(ledger, FIRST, 1)
    spoilt = charge.row.model_copy(update={"inclusion": ()})
    server.tell(FIRST, 1, charge.model_copy(update={"row": spoilt}))
    assert (server.states, server.alarms) == (["FORKED"], ["B"])


# What a site shows of its own ledger.


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., SignedCharge]:
    """Charges of a site, by job and round; each head of it is confirmed unless told otherwise."""
    box = Outbox(tmp_path / "account.db", site="B")
    for job in (FIRST, SECOND):
        box.open_job(job, "small", b"{}", 800, PLAN, Terms(delta=1e-5))
    shown = Heads(box, SiteHome(tmp_path, SiteConfig(site="B")))

    def make(
        job: str, round_: int, prove: Sequence[HeadOf], *, is_told: bool = True, sites: int = 2
    ) -> SignedCharge:
        key = RoundKey(job, round_, digest(f"{round_}"))
        box.reserve(key, EVENT, b"start")
        box.store(key, b"an update")
        charge = shown.charge(job, round_, prove, sites)
        if is_told:
            words: dict[str, Any] = {"job_sha256": job, "round": round_, "site": "B"}
            shown.confirm(Confirmation(**words, head=charge.head, at="2026-11-20T10:00:00Z"))
        return charge

    return make


def sizes(charge: SignedCharge) -> list[int]:
    return [link.since.size for link in charge.links]


def test_a_job_s_first_charge_is_proved_from_every_confirmed_head_and_later_ones_from_the_last(
    own: Callable[..., SignedCharge],
) -> None:
    known: list[HeadOf] = []
    for round_ in (1, 2, 3):
        charge = own(FIRST, round_, known[-1:])
        assert sizes(charge) == [head.size for head in known[-1:]]
        known.append(charge.head)
    charge = own(SECOND, 1, known[-1:])
    assert sizes(charge) == [head.size for head in reversed(known)]
    assert sizes(own(SECOND, 2, [charge.head])) == [charge.head.size]


def test_a_server_that_has_forgotten_heads_is_shown_proofs_from_all(
    own: Callable[..., SignedCharge],
) -> None:
    heads_: list[HeadOf] = []
    for round_ in (1, 2, 3):
        heads_.append(own(FIRST, round_, heads_[-1:]).head)
    one, two, three = (head.size for head in heads_)
    assert sizes(own(FIRST, 4, heads_[:1])) == [one, three, two]


def test_a_charge_has_so_many_proofs_at_most_and_those_asked_for_come_first(
    own: Callable[..., SignedCharge],
) -> None:
    known: list[HeadOf] = []
    for round_ in range(1, MAX_LINKS + 4):
        known.append(own(FIRST, round_, known[-1:]).head)
    shown = sizes(own(SECOND, 1, [known[-1], known[0]]))
    assert shown == [known[-1].size, known[0].size, *(h.size for h in known[-2:3:-1])]
    assert len(shown) == MAX_LINKS


def test_in_a_job_of_many_sites_a_charge_leaves_out_what_has_no_room(
    own: Callable[..., SignedCharge],
) -> None:
    known: list[HeadOf] = []
    for round_ in range(1, MAX_LINKS + 4):
        known.append(own(FIRST, round_, known[-1:]).head)
    made = own(SECOND, 1, [known[-1], known[0]], sites=2900)
    assert len(to_bytes(made)) <= most_charge_bytes(2900)
    shown = sizes(made)
    assert 2 < len(shown) < MAX_LINKS
    assert shown == [known[-1].size, known[0].size, *(h.size for h in known[-2 : -len(shown) : -1])]


def test_a_head_of_another_ledger_is_not_proved_from(
    own: Callable[..., SignedCharge], ledger: Ledger
) -> None:
    one = own(FIRST, 1, []).head
    assert sizes(own(FIRST, 2, [one, grow(ledger)])) == [one.size]


def learn(folder: Path, charge: SignedCharge, head: HeadOf) -> list[int]:
    """Bring the site a receipt with its charge and head; the sizes of its own heads then."""
    (folder / "pki").mkdir()
    (folder / "pki/root.pem").write_bytes(BY.root.certificate)
    receipt = RoundReceipt(
        job_sha256=FIRST, round=2, closed_at=f"{AT + dt.timedelta(minutes=3):%Y-%m-%dT%H:%M:%SZ}",
        before="", input_sha256=digest("in"), output_sha256=digest("out"), asked=("B",),
        replies=(), charges={"B": charge}, heads={"B": head},
    )  # fmt: skip
    box = Outbox(folder / "account.db", site="B")
    home = SiteHome(folder, SiteConfig(site="B"))
    Peers(box, home).take([KEY.sign_receipt(receipt)], FIRST, 2)
    with box.journal.reading() as db:
        return [row.size for row in heads.history(db, "B")]


def test_heads_whose_confirmation_was_lost_are_learnt_from_a_receipt(
    own: Callable[..., SignedCharge], tmp_path: Path
) -> None:
    """Peers may know the site by them."""
    one = own(FIRST, 1, [], is_told=False)
    two = own(FIRST, 2, [one.head], is_told=False)
    assert learn(tmp_path, two, two.head) == [one.head.size, two.head.size]
    charge = own(SECOND, 1, [], is_told=False)
    assert sizes(charge) == [two.head.size, one.head.size]


def test_a_head_of_another_ledger_or_by_another_key_is_not_learnt_as_one_s_own(
    own: Callable[..., SignedCharge], tmp_path: Path, ledger: Ledger
) -> None:
    """Shown to peers, it would make them take this site for a forger."""
    other = grow(ledger)
    own(FIRST, 1, [], is_told=False)
    two = own(FIRST, 2, [], is_told=False)
    spoilt = two.head.model_copy(update={"signature": other.signature})
    assert learn(tmp_path, two.model_copy(update={"since": other}), spoilt) == []
