"""The chain finds whatever was changed. Oracles: the formula written out, and recorded ledgers."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput, LedgerBroken
from common.privacy import merkle
from common.privacy.account import Account, spent
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import (
    Closed,
    Committed,
    Created,
    Decided,
    Entry,
    Rekeyed,
    Released,
    Reserved,
    Submitted,
    Terms,
    read_entry,
    write_entry,
)
from common.privacy.extract import Extract, read_extract, replay, verified, write_extract
from common.privacy.ledger import Chain, Head, Row, public_hex
from common.privacy.lifetime import cap_from_dict

GOLDEN = Path(__file__).parents[3] / "golden"
KEY, OTHER = (ec.derive_private_key(n, ec.SECP256R1()) for n in (1234567, 7654321))
JOB, SECOND = "ab" * 32, "cd" * 32
STAMP, SALT = "2026-03-04T05:06:07Z", "5a" * 16
STEPS = {"sampling_rate": 0.05, "noise_multiplier": 1.3, "steps": 4}
VERSIONS = {"terms": Terms(), "code_sha256": "", "accountant": "none"}
SUBMITTED = {
    "job_sha256": JOB, "name": "first", "manifest_sha256": "01" * 32, "message_cap_bytes": 9,
    "plan": {**STEPS, "steps": 9}, **VERSIONS,
}  # fmt: skip
RESERVED = {
    "job_sha256": JOB, "round": 1, "input_sha256": "02" * 32, "start_sha256": "",
    "charge": STEPS, **VERSIONS,
}  # fmt: skip
RELEASED = {"job_sha256": JOB, "round": 1, "payload_sha256": "03" * 32}

Step = tuple[type[Entry], dict[str, Any]]
LIFE: list[Step] = [
    (Created, {"site": "A", "unit": "", "cap": {"order": 8}}),
    (Submitted, SUBMITTED),
    (Decided, {"job_sha256": JOB, "decision": "approve", "who": "Ada", "note": ""}),
    (Reserved, RESERVED),
    (Released, RELEASED),
    (Committed, {**RELEASED, "is_accepted": True}),
    (Reserved, {**RESERVED, "round": 2}),
    (Closed, {"job_sha256": JOB, "state": "finished", "final_sha256": ""}),
]

FINAL: Step = (Closed, {**LIFE[7][1], "is_final": True})


def ledger(steps: list[Step], key: ec.EllipticCurvePrivateKey = KEY) -> list[Row]:
    chain, rows = Chain(), list[Row]()
    for seq, (model, fields) in enumerate(steps):
        named = {"public_key": public_hex(key), "is_ephemeral": True}
        given = {**fields, **(named if model in (Created, Rekeyed) else {})}
        body = write_entry(model, seq=seq, at=STAMP, salt=SALT, **given)
        rows.append(chain.tail.row(body, key))
        chain.extend(rows[-1])
    return rows


ROWS = ledger(LIFE)


def check(rows: list[Row]) -> Account:
    chain, account = Chain(), Account()
    for row in rows:
        account.apply(chain.extend(row))
    return account


def test_an_entrys_hash_and_signature_are_the_formulas() -> None:
    before = bytes(32)
    for row in ROWS:
        digest = hashlib.sha256(b"veiltune ledger entry v1\n" + before + row.body).digest()
        assert row.hash == digest
        KEY.public_key().verify(
            row.signature, b"veiltune ledger signature v1\n" + digest, ec.ECDSA(hashes.SHA256())
        )
        before = digest


def test_a_body_is_sorted_json_without_spaces() -> None:
    for row in ROWS:
        said = json.loads(row.body)
        assert row.body == json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        assert (said["at"], said["salt"]) == (STAMP, SALT)


def test_a_head_is_the_root_over_the_entries_hashes() -> None:
    chain = Chain()
    for row in ROWS:
        chain.extend(row)
    head = chain.head(KEY)
    root = merkle.root([merkle.leaf_hash(row.hash) for row in ROWS])
    assert (head.size, head.root, head.public_key) == (len(ROWS), root.hex(), public_hex(KEY))
    signed = b"veiltune ledger head v1\n" + (len(ROWS)).to_bytes(8, "big") + root
    KEY.public_key().verify(bytes.fromhex(head.signature), signed, ec.ECDSA(hashes.SHA256()))
    assert head.is_signed()
    for changed in (
        replace(head, size=head.size + 1),
        replace(head, root="00" * 32),
        replace(head, public_key=public_hex(OTHER)),
        replace(head, public_key="zz"),
        replace(head, public_key="ab" * 91),
        replace(head, signature=""),
    ):
        assert not changed.is_signed()


@pytest.mark.parametrize(
    "public_key",
    [
        "300c300706032a03040500030100",  # an algorithm that nobody knows
        "3017301006072a8648ce3d020106052b8104007f0303000401",  # a curve that nobody knows
        public_hex(KEY)[:-2],
        public_hex(ec.generate_private_key(ec.SECP384R1())),
        # RFC 8032 section 7.1, the first Ed25519 key.
        "302a300506032b6570032100d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
    ],
)
def test_a_head_by_a_key_of_no_known_kind_is_not_signed(public_key: str) -> None:
    assert not Head(1, "00" * 32, "30", public_key).is_signed()
    named = {"public_key": public_key or "00", "is_ephemeral": True}
    body = write_entry(Created, seq=0, at=STAMP, salt=SALT, **named, **LIFE[0][1])
    with pytest.raises(LedgerBroken, match="ledger entry 0: public key must be a P-256 key"):
        Chain().extend(Chain().tail.row(body, KEY))


@pytest.mark.parametrize("size", [-1, 2**64])
def test_a_head_of_a_size_that_no_ledger_has_is_not_signed(size: int) -> None:
    assert not Head(size, "00" * 32, "30", public_hex(KEY)).is_signed()


def test_a_row_that_was_checked_is_not_taken_in_by_it() -> None:
    chain = Chain()
    entry = chain.check(ROWS[0])
    assert (chain.size, chain.keys) == (0, ())
    chain.take(ROWS[0], entry)
    assert chain.size == 1


def rekeyed(chain: Chain, **said: str) -> Row:
    named = {"public_key": public_hex(OTHER), "is_ephemeral": False}
    body = write_entry(Rekeyed, seq=chain.size, at=STAMP, salt=SALT, **named, **said)
    return chain.tail.row(body, OTHER)


def chain_of(steps: list[Step]) -> Chain:
    chain = Chain()
    for row in ledger(steps):
        chain.extend(row)
    return chain


BOUND: list[Step] = [(Created, {**LIFE[0][1], "binds_keys": True}), *LIFE[1:3]]


def test_a_key_that_nobody_endorsed_is_read_in_an_older_ledger_alone() -> None:
    chain_of(LIFE[:3]).extend(rekeyed(chain_of(LIFE[:3])))
    with pytest.raises(LedgerBroken, match="ledger entry 3 must name a key that the one before or"):
        chain_of(BOUND).extend(rekeyed(chain_of(BOUND)))
    for said in ({"accepted_by": "Ada"}, {"endorsement": ""}):
        older = chain_of(LIFE[:3])
        older.extend(rekeyed(older, **said))
        if "accepted_by" in said:  # a version that knows better has written here
            with pytest.raises(LedgerBroken, match="ledger entry 4 must name a key"):
                older.extend(rekeyed(older))
        else:
            older.extend(rekeyed(older))


def test_a_key_is_handed_over_by_the_one_before_at_that_place_alone() -> None:
    chain = chain_of(BOUND)
    good = chain.tail.endorse(public_hex(OTHER), KEY)
    elsewhere = chain_of(BOUND[:2]).tail.endorse(public_hex(OTHER), KEY)
    for wrong in (elsewhere, chain.tail.endorse(public_hex(OTHER), OTHER), good[:-2], "00"):
        for words in ("", "Ada"):
            with pytest.raises(LedgerBroken, match="entry 3 must be endorsed by the key before"):
                chain.extend(rekeyed(chain, endorsement=wrong, accepted_by=words))
    said = b"veiltune ledger hand-over v1\n" + ledger(BOUND)[-1].hash
    said += bytes.fromhex(public_hex(OTHER))
    KEY.public_key().verify(bytes.fromhex(good), said, ec.ECDSA(hashes.SHA256()))
    chain.extend(rekeyed(chain, endorsement=good))
    assert chain.keys[-1] == public_hex(OTHER)


def test_a_stranger_can_check_one_entry_or_an_older_head() -> None:
    chain = Chain()
    for row in ROWS:
        chain.extend(row)
    for seq, row in enumerate(ROWS):
        proof = chain.inclusion_proof(seq)
        leaf = merkle.leaf_hash(row.hash)
        assert merkle.is_included(leaf, seq, len(ROWS), proof, chain.root())
        old, proof = chain.root(seq + 1), chain.consistency_proof(seq + 1)
        assert merkle.is_consistent(seq + 1, old, len(ROWS), chain.root(), proof)


def test_what_is_replayed_is_what_was_charged() -> None:
    account = check(ROWS)
    first, second = account.charges(JOB)
    assert first.event == second.event == GaussianSteps(0.05, 1.3, 4)
    assert (first.is_released, first.is_acknowledged, first.at) == (True, True, STAMP)
    assert (second.is_released, second.is_acknowledged) == (False, False)
    assert account.jobs[JOB].state == "finished"
    assert account.charged_steps(JOB) == 8
    assert account.charges(SECOND) == []


@given(st.data())
def test_a_flipped_bit_of_any_row_is_named(data: st.DataObject) -> None:
    rows = list(ROWS)
    seq = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(["body", "hash", "signature"]))
    changed = bytearray(getattr(rows[seq], name))
    place, bit = data.draw(st.integers(0, len(changed) - 1)), data.draw(st.integers(0, 7))
    changed[place] ^= 1 << bit
    rows[seq] = replace(rows[seq], **{name: bytes(changed)})  # type: ignore[arg-type]
    with pytest.raises(LedgerBroken, match=f"ledger entry {seq} "):
        check(rows)


@given(st.data())
def test_a_row_that_is_gone_moved_or_put_between_is_named(data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(ROWS) - 2))
    second = data.draw(st.integers(first + 1, len(ROWS) - 1))
    gone = [row for row in ROWS if row.seq != first]
    moved = list(ROWS)
    moved[first], moved[second] = moved[second], moved[first]
    renumbered = [replace(row, seq=n) for n, row in enumerate(gone)]
    twice = [*ROWS[: second + 1], *ROWS[second:]]
    for rows, seq in ((gone, first), (moved, first), (renumbered, first), (twice, second + 1)):
        with pytest.raises(LedgerBroken, match=f"ledger entry {seq} "):
            check(rows)


def test_an_entry_that_another_key_signed_is_named() -> None:
    for seq in range(1, len(ROWS)):
        chain = Chain()
        for row in ROWS[:seq]:
            chain.extend(row)
        with pytest.raises(LedgerBroken, match=f"ledger entry {seq} must be signed by its key"):
            chain.extend(chain.tail.row(ROWS[seq].body, OTHER))


def test_an_entry_that_says_another_number_is_named() -> None:
    chain = Chain()
    for row in ROWS[:2]:
        chain.extend(row)
    body = write_entry(Decided, seq=3, at=STAMP, salt=SALT, **LIFE[2][1])
    with pytest.raises(LedgerBroken, match="ledger entry 2 must say its number, got 3"):
        chain.extend(chain.tail.row(body, KEY))


def test_a_new_key_signs_from_the_entry_that_names_it() -> None:
    chain = Chain()
    for row in ROWS:
        chain.extend(row)
    named = {"public_key": public_hex(OTHER), "is_ephemeral": False}
    rekeyed = write_entry(Rekeyed, seq=chain.size, at=STAMP, salt=SALT, **named)
    with pytest.raises(LedgerBroken, match="must be signed by its key"):
        chain.extend(chain.tail.row(rekeyed, KEY))
    chain.extend(chain.tail.row(rekeyed, OTHER))
    assert chain.keys == (public_hex(KEY), public_hex(OTHER))
    decided = write_entry(Decided, seq=chain.size, at=STAMP, salt=SALT, **LIFE[2][1])
    with pytest.raises(LedgerBroken, match="must be signed by its key"):
        chain.extend(chain.tail.row(decided, KEY))
    chain.extend(chain.tail.row(decided, OTHER))


@pytest.mark.parametrize(
    ("steps", "seq", "must"),
    [
        ([LIFE[1]], 0, "be of another kind"),
        ([LIFE[0], LIFE[0]], 1, "be of another kind"),
        ([LIFE[0], LIFE[3]], 1, "follow its job's submission"),
        ([LIFE[0], LIFE[7]], 1, "follow its job's submission"),
        ([*LIFE[:2], LIFE[1]], 2, "submit a new job"),
        ([*LIFE[:2], LIFE[4]], 2, "follow its reservation"),
        ([*LIFE[:4], LIFE[3]], 4, "charge a later round"),
        ([*LIFE[:5], LIFE[4]], 5, "be the round's one release"),
        ([*LIFE[:4], LIFE[5]], 4, "receipt the released bytes"),
        ([*LIFE[:4], FINAL, LIFE[4]], 5, "release for an open job"),
        ([*LIFE, (Reserved, {**RESERVED, "round": 3})], 8, "charge an open job"),
        ([*LIFE[:7], (Reserved, {**RESERVED, "round": 3})], 7, "stay within the job's budget"),
    ],
)
def test_an_entry_that_could_not_follow_is_named(steps: list[Step], seq: int, must: str) -> None:
    with pytest.raises(LedgerBroken, match=f"ledger entry {seq} must {must}"):
        check(ledger(steps))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": -1}, {"at": "today"}, {"salt": "5a"}, {"round": -1}, {"round": 2**53},
        {"input_sha256": "xyz"}, {"charge": {**STEPS, "steps": -1}},
        {"charge": {**STEPS, "noise_multiplier": float("nan")}},
        {"charge": {**STEPS, "noise_multiplier": float("inf")}},
        {"charge": {**STEPS, "sampling_rate": 1.5}}, {"note": "a key of no schema"},
        {"terms": {"delta": 0}}, {"terms": {"sampler": "shuffled"}},
    ],
)  # fmt: skip
def test_an_entry_outside_its_schema_is_not_written(change: dict[str, Any]) -> None:
    given = {"seq": 1, "at": STAMP, "salt": SALT, **RESERVED}
    assert write_entry(Reserved, **given)
    with pytest.raises(InvalidInput, match="ledger entry must keep to its schema"):
        write_entry(Reserved, **(given | change))


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"kind": "created"}', ROWS[2].body + b" ", b"[" * 5000,
     ROWS[2].body.replace(b'"who":"Ada"', b'"who":"Eve","who":"Ada"'),
     ROWS[2].body.replace(b'"seq":2', b'"seq":2.0'), b"\xff"],
)  # fmt: skip
def test_a_body_that_is_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(LedgerBroken, match="ledger entry 2 must"):
        read_entry(body, 2)


def test_an_entry_that_cannot_be_read_is_named() -> None:
    chain = Chain()
    for row in ROWS[:3]:
        chain.extend(row)
    with pytest.raises(LedgerBroken, match="ledger entry 3 must"):
        chain.extend(chain.tail.row(b"{}", KEY))


def test_a_lifetime_cap_is_kept_as_it_was_given() -> None:
    cap = {"order": 8, "budget": 2.5, "orders": [1.5, 2], "kind": {"name": "rdp", "on": True}}
    account = check(ledger([(Created, {"site": "A", "unit": "patient_id", "cap": cap})]))
    assert account.created is not None
    assert account.created.cap == cap
    with pytest.raises(InvalidInput, match="schema"):
        ledger([(Created, {"site": "A", "unit": "", "cap": {"budget": float("inf")}})])


@pytest.mark.parametrize("name", ["ledger_capped.jsonl"])
def test_a_recorded_ledger_with_a_cap_and_a_new_key_is_read_for_ever(name: str) -> None:
    expected = json.loads((GOLDEN / "accounts.json").read_text())
    chain, account = verified(read_extract((GOLDEN / name).read_bytes()))
    # The oracle is Opacus' PRV accountant, within its own error of 0.01.
    found = spent(account.charges(), expected["delta"])
    assert found == pytest.approx(expected["ledger_v1"], abs=0.01)
    assert account.created is not None
    cap = cap_from_dict(account.created.cap)
    assert (cap.max_epsilon, cap.delta) == (8.0, expected["delta"])
    assert cap.name.startswith("rdp-filter order ")
    assert cap.allows(charge.event for charge in account.charges())
    assert [entry.words for entry in account.hand_overs] == [
        "handed over by the key before, accepted by Ada"
    ]
    assert len(chain.keys) == 2


def extract() -> Extract:
    return read_extract((GOLDEN / "ledger_v1.jsonl").read_bytes())


def test_a_recorded_ledger_is_replayed_to_the_same_epsilon() -> None:
    expected = json.loads((GOLDEN / "accounts.json").read_text())
    account = replay(extract())
    found = spent(account.charges(), expected["delta"])
    # The oracle is Opacus' PRV accountant, within its own error of 0.01.
    assert found == pytest.approx(expected["ledger_v1"], abs=0.01)
    assert account.created is not None
    assert account.created.cap == {"order": 8, "budget": 2.5}
    assert [job.state for job in account.jobs.values()] == ["finished", "running"]
    assert [(c.terms.unit, c.terms.unit_cap) for c in account.charges()] == [("patient_id", 4)] * 4
    assert [d.who for d in account.decisions] == ["Ada", "Ada"]


def test_an_extract_is_read_as_it_was_written() -> None:
    data = (GOLDEN / "ledger_v1.jsonl").read_bytes()
    found = read_extract(data)
    assert write_extract(found.rows, found.head) == data


def test_an_extract_without_its_end_or_with_anothers_head_is_refused() -> None:
    found = extract()
    with pytest.raises(LedgerBroken, match="head must be over its 11 entries, got one over 12"):
        replay(Extract(found.rows[:-1], found.head))
    other = check_head(OTHER, found)
    with pytest.raises(LedgerBroken, match="head must be signed by its last key"):
        replay(Extract(found.rows, other))
    with pytest.raises(LedgerBroken, match="head must be signed by its last key"):
        replay(Extract(found.rows, replace(found.head, signature=other.signature)))


def test_a_head_by_an_earlier_key_of_the_ledger_is_refused() -> None:
    chain, rows = chain_of(BOUND), ledger(BOUND)
    rows.append(rekeyed(chain, accepted_by="Ada"))
    chain.extend(rows[-1])
    assert replay(Extract(tuple(rows), chain.head(OTHER)))
    with pytest.raises(LedgerBroken, match="head must be signed by its last key"):
        replay(Extract(tuple(rows), chain.head(KEY)))


def check_head(key: ec.EllipticCurvePrivateKey, found: Extract) -> Any:  # noqa: ANN401
    chain = Chain()
    for row in found.rows:
        chain.extend(row)
    return chain.head(key)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 12.0}, {"size": True}, {"size": "12"}, {"signature": 5}, {"signature": None},
        {"root": 5}, {"public_key": []}, {"note": "a key of no schema"},
    ],
)  # fmt: skip
def test_a_head_of_another_type_is_refused(change: dict[str, Any]) -> None:
    *lines, last = (GOLDEN / "ledger_v1.jsonl").read_text().splitlines()
    head = {"head": json.loads(last)["head"] | change}
    with pytest.raises(InvalidInput, match="extract must be a ledger's JSON lines"):
        read_extract("\n".join([*lines, json.dumps(head)]).encode())


@pytest.mark.parametrize(
    "change", [{"seq": 3.0}, {"seq": False}, {"hash": 7}, {"body": None}, {"signature": {}}]
)
def test_a_row_of_another_type_is_refused(change: dict[str, Any]) -> None:
    lines = (GOLDEN / "ledger_v1.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | change)
    with pytest.raises(InvalidInput, match="extract must be a ledger's JSON lines"):
        read_extract("\n".join(lines).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]\n[]", b'{"head": {}}', b"\xff", b"[" * 9000])
def test_a_file_that_is_no_extract_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="extract must be a ledger's JSON lines"):
        read_extract(data)
