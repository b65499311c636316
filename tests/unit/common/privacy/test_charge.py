"""A charge that is proved without its ledger, over ledgers of any shape."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.privacy.charge import HeadOf, LedgerRow, Link, SignedCharge, check_charge
from common.privacy.entries import Created, Decided, Rekeyed, Reserved, Terms, write_entry
from common.privacy.ledger import Chain, Row, public_hex
from common.receipt import MAX_CHARGE_BYTES, read_charge, to_bytes

JOB, OLD = "ab" * 32, ec.generate_private_key(ec.SECP256R1())
NEW = ec.generate_private_key(ec.SECP256R1())
WHEN: dict[str, Any] = {"at": "2026-03-04T05:06:07Z", "salt": "5a" * 16}
CHARGE = {"sampling_rate": 0.25, "noise_multiplier": 1.5, "steps": 2}


class Written:
    """A ledger of one ``reserved`` entry among others, by one key or two."""

    def __init__(self, before: int, after: int, rekey_at: int | None = None) -> None:
        self.chain, self.rows, self.key = Chain(), list[Row](), OLD
        self.heads: list[HeadOf] = []
        named = {"public_key": public_hex(OLD), "is_ephemeral": False}
        self.append(Created, **named, site="A", unit="", cap={}, binds_keys=True)
        self.named = [0]
        for number in range(before + after + 1):
            if number == rekey_at:
                self.rekey()
            if number == before:
                self.seq = self.chain.size
                self.append(
                    Reserved, job_sha256=JOB, round=1, input_sha256="cd" * 32, start_sha256="",
                    charge=CHARGE, terms=Terms(), code_sha256="", accountant="test",
                )  # fmt: skip
            else:
                said = {"decision": "refuse", "who": "", "note": ""}
                self.append(Decided, job_sha256=JOB, **said)

    def append(self, model: type[Any], **fields: object) -> None:
        tail = self.chain.tail
        row = tail.row(write_entry(model, seq=tail.seq, **WHEN, **fields), self.key)
        self.chain.extend(row)
        self.rows.append(row)
        self.heads.append(HeadOf.of(self.chain.head(self.key)))

    def rekey(self) -> None:
        endorsement = self.chain.tail.endorse(public_hex(NEW), OLD)
        self.named.append(self.chain.size)
        self.key = NEW
        named = {"public_key": public_hex(NEW), "is_ephemeral": False, "accepted_by": ""}
        self.append(Rekeyed, endorsement=endorsement, **named)

    def row(self, seq: int) -> LedgerRow:
        return LedgerRow.of(self.rows[seq], self.rows[seq - 1] if seq else None, self.chain)

    def charge(self, since: int | None = None) -> SignedCharge:
        """Under the head of now, from the head of the first ``since`` entries."""
        first = since or 0
        if any(self.seq < place < first for place in self.named):
            first = 0
        return SignedCharge(
            row=self.row(self.seq),
            head=self.heads[-1],
            since=self.heads[since - 1] if since else None,
            consistency=self.proof(since) if since else (),
            hand_overs=tuple(self.row(seq) for seq in self.named if seq >= first),
        )

    def proof(self, size: int) -> tuple[str, ...]:
        return tuple(part.hex() for part in self.chain.consistency_proof(size))


def admitted(*keys: ec.EllipticCurvePrivateKey) -> Callable[[str], bool]:
    return {public_hex(key) for key in keys}.__contains__


@settings(max_examples=40)
@given(st.integers(0, 9), st.integers(0, 9), st.data())
def test_any_charge_of_any_ledger_is_proved_and_survives_its_bytes(
    before: int, after: int, data: st.DataObject
) -> None:
    rekey_at = data.draw(st.none() | st.integers(0, before + after))
    ledger = Written(before, after, rekey_at)
    size = ledger.chain.size
    since = data.draw(st.none() | st.integers(1, size))
    charge = ledger.charge(since)
    entry = check_charge(charge, admitted(ledger.key))
    assert (entry.job_sha256, entry.round, entry.charge.steps) == (JOB, 1, 2)
    assert read_charge(to_bytes(charge)) == charge
    with pytest.raises(UpdateRejected, match="admitted for the site"):
        check_charge(charge, admitted())


def test_a_new_key_needs_the_word_of_the_one_before() -> None:
    ledger = Written(3, 2, rekey_at=1)
    charge = ledger.charge(1)
    assert check_charge(charge, admitted(NEW)).round == 1
    with pytest.raises(UpdateRejected, match="must be signed by the ledger's key"):
        check_charge(charge.model_copy(update={"hand_overs": ()}), admitted(NEW))
    stolen = ledger.row(ledger.named[1])
    body = stolen.body.replace('"endorsement":"30', '"endorsement":"31')
    wrong = charge.model_copy(update={"hand_overs": (stolen.model_copy(update={"body": body}),)})
    with pytest.raises(UpdateRejected, match="must be endorsed"):
        check_charge(wrong, admitted(NEW))
    others = charge.model_copy(update={"hand_overs": (ledger.row(1), *charge.hand_overs)})
    with pytest.raises(UpdateRejected, match="must name a key"):
        check_charge(others, admitted(NEW))


def test_a_head_of_another_ledger_is_not_continued() -> None:
    ledger, other = Written(3, 2), Written(1, 4)
    charge = ledger.charge(2)
    for wrong in (
        charge.model_copy(update={"since": other.heads[2], "consistency": ledger.proof(3)}),
        charge.model_copy(update={"also": (Link(since=other.heads[2], consistency=()),)}),
        charge.model_copy(update={"consistency": ()}),
    ):
        with pytest.raises(UpdateRejected, match="got no proof that it does"):
            check_charge(wrong, admitted(OLD))
    unsigned = ledger.heads[1].model_copy(update={"signature": "00"})
    with pytest.raises(UpdateRejected, match="earlier head must be signed"):
        check_charge(charge.model_copy(update={"since": unsigned}), admitted(OLD))


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_byte_that_changes_is_found(place: int, change: int) -> None:
    data = bytearray(to_bytes(CHANGED.charge(2)))
    data[place % len(data)] ^= change
    with pytest.raises(UpdateRejected):
        check_charge(read_charge(bytes(data)), admitted(OLD))


CHANGED = Written(3, 2)


def test_what_is_too_large_or_in_another_form_is_not_parsed() -> None:
    whole = to_bytes(CHANGED.charge())
    for data, reason in (
        (b" " * (MAX_CHARGE_BYTES + 1), "must be at most"),
        (b"[" * 100, "must nest at most"),
        (whole + b" ", "canonical"),
        (whole[:-1], "schema"),
        (b'{"row":1,"row":2}', "twice"),
    ):
        with pytest.raises(UpdateRejected, match=reason):
            read_charge(data)
