"""How large a round's receipt gets. Oracle: sizes counted by hand, of the longest there are."""

import pytest
from flwr.app import RecordDict

from common.job import MOST_JOB_SITES
from common.phases import MAX_RECEIPTS_BYTES, read_receipts, shown
from common.privacy.charge import MAX_LINKS, HeadOf, LedgerRow, Link, SignedCharge
from common.receipt import (
    MAX_CHARGE_BYTES,
    Reply,
    RoundReceipt,
    SignedReceipt,
    fitted,
    has_room,
    most_charge_bytes,
    to_bytes,
)

# A key of P-256 is 91 bytes in DER, a signature 72 at most.
HEAD = HeadOf(size=2**53 - 1, root="f" * 64, signature="ab" * 72, public_key="cd" * 91)
PEM = "x" * 16_000  # of a server's chain, far longer than one is


def charge(links: int, hashes: int, body: int) -> SignedCharge:
    proof = ("e" * 64,) * hashes
    link = Link(since=HEAD, consistency=proof)
    row = LedgerRow(
        seq=2**53 - 1, before="0" * 64, body="b" * body, hash="1" * 64, signature="ab" * 72,
        inclusion=proof,
    )  # fmt: skip
    return SignedCharge(
        row=row, head=HEAD, since=HEAD, consistency=proof, hand_overs=(row,), also=(link,) * links
    )


def receipt_of(sites: int, said: SignedCharge) -> bytes:
    names = [f"{n:04}".ljust(63, "s") for n in range(sites)]
    receipt = RoundReceipt(
        job_sha256="0" * 64, round=2**53 - 1, closed_at="2026-11-28T00:00:00Z", before="0" * 64,
        input_sha256="0" * 64, output_sha256="0" * 64, asked=tuple(names),
        replies=tuple(Reply(site=n, payload_sha256="0" * 64, accepted=False) for n in names),
        charges=dict.fromkeys(names, said), heads=dict.fromkeys(names, HEAD),
    )  # fmt: skip
    return to_bytes(SignedReceipt(receipt=receipt, signature="ab" * 72, chain=PEM))


def filled(sites: int) -> SignedCharge:
    """A charge of exactly as many bytes as there may be of each of so many sites."""
    bare = len(to_bytes(charge(0, 24, 0)))
    left = most_charge_bytes(sites) - bare
    links = max(0, min(MAX_LINKS - 1, left // len(to_bytes(charge(1, 24, 0)))))
    body = (most_charge_bytes(sites) - len(to_bytes(charge(links, 24, 0)))) // 2
    return charge(links, 24, min(body, 8192))


@pytest.mark.parametrize("sites", [1500, MOST_JOB_SITES])
def test_a_receipt_of_the_largest_charges_is_a_message(sites: int) -> None:
    said = filled(sites)
    assert most_charge_bytes(sites) - 1 <= len(to_bytes(said)) <= most_charge_bytes(sites)
    data = receipt_of(sites, said)
    # Each site: its charge; four times its name of 63; a reply, a head, and what is between.
    head = len(to_bytes(HEAD))
    reply = len('{"accepted":false,"payload_sha256":"","site":""},') + 64
    each = len(to_bytes(said)) + head + 4 * 63 + reply + 2 * len('"":,') + len('"",')
    assert abs(len(data) - sites * each - len(PEM)) < 1000
    assert len(data) <= MAX_RECEIPTS_BYTES


def test_charges_of_any_number_of_sites_leave_room_for_all_else() -> None:
    """The closed form: what is not charges is under 1.3 KiB a site, and 20 kB in all."""
    empty = charge(0, 0, 0)
    beside = (len(receipt_of(200, empty)) - len(receipt_of(100, empty))) / 100
    assert beside - len(to_bytes(empty)) < 1.3 * 1024
    for sites in (1, 100, 223, 224, 225, 1500, MOST_JOB_SITES):
        charges = sites * most_charge_bytes(sites)
        assert charges + sites * 1.3 * 1024 + 20_000 <= MAX_RECEIPTS_BYTES
    assert most_charge_bytes(1) == MAX_CHARGE_BYTES


@pytest.mark.slow
def test_the_first_receipt_of_many_sites_reaches_them() -> None:
    """With all proofs it would be dropped on its way, and no site would know any peer."""
    whole = charge(MAX_LINKS - 1, 24, 900)
    assert 1500 * len(to_bytes(whole)) > MAX_RECEIPTS_BYTES
    kept = fitted(whole, 1500)
    assert 0 < len(kept.also) < MAX_LINKS - 1
    assert kept.also == whole.also[: len(kept.also)]
    data = receipt_of(1500, kept)
    content = shown([data])
    assert len(content) == 1
    (read,) = read_receipts(RecordDict({**content}))
    assert len(read.receipt.charges) == 1500


@pytest.mark.parametrize("sites", [2, 900, 1500, 2500])
def test_a_proof_is_left_out_only_where_it_has_no_room(sites: int) -> None:
    for links in range(MAX_LINKS):
        said = fitted(charge(links, 24, 900), sites)
        assert len(to_bytes(said)) <= most_charge_bytes(sites)
        if len(said.also) < links:
            assert not has_room(said, sites)
            one_more = said.model_copy(update={"also": (*said.also, said.links[0])})
            assert len(to_bytes(one_more)) > most_charge_bytes(sites)
    assert has_room(charge(0, 24, 900), sites) == (sites < 2500)
    assert not has_room(charge(MAX_LINKS - 1, 0, 0), 2)
