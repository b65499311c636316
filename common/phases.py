"""A round in two phases: a site shows its charge, the server confirms the head, the bytes leave.

    order (adapter, receipts, heads to prove from)  ->  charge, with its proofs
    confirmation of that charge's head              ->  update, or the verdict stored in its place

and, when the job has ended, ``close`` -> verdict, and the site's last word on what it was charged.

Not covered: what a charge proves (common/privacy/charge.py), who signs what (common/receipt.py),
the other messages (common/messages.py).
"""

from collections.abc import Sequence
from typing import Annotated

from flwr.app import ConfigRecord, RecordDict
from pydantic import Field

from common.config import Section
from common.contents import config_in
from common.errors import UpdateRejected
from common.privacy.charge import MAX_LINKS, HeadOf, SignedCharge, SignedEnding
from common.receipt import (
    MAX_SIGNED_BYTES,
    Confirmation,
    SignedConfirmation,
    SignedReceipt,
    read_charge,
    read_confirmation,
    read_ending,
    read_receipt,
    read_unsigned_confirmation,
    read_whole,
    to_bytes,
)

RELEASE = "train.release"
PROVE = "prove"  # the record of an order that names the heads to prove from
_CHARGE, _CONFIRM, _RECEIPTS, _ENDING = "charge", "confirm", "receipts", "ending"
MAX_PROOFS_ASKED = MAX_LINKS // 2
_MAX_PROVE_BYTES = 32 * 1024
MAX_RECEIPTS_BYTES = MAX_SIGNED_BYTES  # of all receipts in one order
_MOST_RECEIPTS = 2000  # fields of a message are counted too (common/parts.py)


class _Prove(Section):
    heads: Annotated[tuple[HeadOf, ...], Field(max_length=MAX_PROOFS_ASKED)]


def charged(charge: SignedCharge) -> RecordDict:
    """A site's answer to an order: what the round is charged, and that its ledger goes on."""
    return RecordDict({_CHARGE: ConfigRecord({"signed": to_bytes(charge)})})


def is_charge(content: RecordDict) -> bool:
    """Whether an answer is of the first phase."""
    return config_in(content, _CHARGE) is not None


def read_charged(content: RecordDict) -> SignedCharge:
    """The charge in an answer; its proofs are not checked.

    Raises:
        UpdateRejected: there is none, or more than a charge.
    """
    if set(content) != {_CHARGE}:
        raise UpdateRejected(f"charge must stand alone, got {sorted(content)[:6]}")
    return read_charge(_bytes(content, _CHARGE, "signed"))


def ended(verdict: RecordDict, ending: SignedEnding | None) -> RecordDict:
    """A site's answer to a close: its verdict and, where it can prove it, its last word."""
    if ending is not None:
        verdict[_ENDING] = ConfigRecord({"signed": to_bytes(ending)})
    return verdict


def read_ended(content: RecordDict) -> SignedEnding | None:
    """The last word in an answer to a close, if there is one; its proofs are not checked.

    Raises:
        UpdateRejected: something else stands in its place.
    """
    if _ENDING not in content:
        return None
    return read_ending(_bytes(content, _ENDING, "signed"))


def confirm(said: SignedConfirmation | Confirmation) -> RecordDict:
    """The server's word that it keeps the head; without a signature where it has no key."""
    name = "signed" if isinstance(said, SignedConfirmation) else "unsigned"
    return RecordDict({_CONFIRM: ConfigRecord({name: to_bytes(said)})})


def read_confirm(content: RecordDict) -> SignedConfirmation | Confirmation:
    """What the server confirms; a signature is not checked.

    Raises:
        UpdateRejected: nothing, or something else.
    """
    if "signed" in (config_in(content, _CONFIRM) or {}):
        return read_confirmation(_bytes(content, _CONFIRM, "signed"))
    return read_unsigned_confirmation(_bytes(content, _CONFIRM, "unsigned"))


def shown(receipts: Sequence[bytes], prove: Sequence[HeadOf] = ()) -> dict[str, ConfigRecord]:
    """The records of an order or a close: the receipts that a site has not seen, oldest first.

    ``prove`` names the site's own earlier heads, the one confirmed last first; the site shows that
    its ledger goes on from each. Receipts that are too many for a message are left out from the
    oldest on, and the site then says which it lacks.
    """
    fits: list[bytes] = []
    room = MAX_RECEIPTS_BYTES
    for receipt in reversed(receipts[-_MOST_RECEIPTS:]):
        room -= len(receipt)
        if room < 0:
            break
        fits.insert(0, receipt)
    found = {_RECEIPTS: ConfigRecord({"signed": fits})} if fits else {}
    if prove:
        asked = _Prove(heads=tuple(prove[:MAX_PROOFS_ASKED]))
        found[PROVE] = ConfigRecord({"heads": to_bytes(asked)})
    return found


def read_receipts(content: RecordDict) -> tuple[SignedReceipt, ...]:
    """The receipts in an order or a close; signatures are not checked.

    Raises:
        UpdateRejected: too many, too large, or no receipts.
    """
    found = config_in(content, _RECEIPTS)
    if found is None:
        return ()
    signed = found.get("signed")
    if not isinstance(signed, list) or len(signed) > _MOST_RECEIPTS:
        raise UpdateRejected("receipts must be a list of them, got something else")
    parts = [part for part in signed if isinstance(part, bytes)]
    if len(parts) != len(signed) or sum(map(len, parts)) > MAX_RECEIPTS_BYTES:
        raise UpdateRejected(f"receipts must be at most {MAX_RECEIPTS_BYTES} bytes, got others")
    return tuple(read_receipt(part) for part in parts)


def read_prove(content: RecordDict) -> tuple[HeadOf, ...]:
    """The heads that a site is asked to go on from.

    Raises:
        UpdateRejected: too many, or no heads.
    """
    if config_in(content, PROVE) is None:
        return ()
    return read_whole(_Prove, _bytes(content, PROVE, "heads"), PROVE, _MAX_PROVE_BYTES).heads


def _bytes(content: RecordDict, record: str, name: str) -> bytes:
    found = (config_in(content, record) or ConfigRecord()).get(name)
    if not isinstance(found, bytes):
        raise UpdateRejected(f"{record} must hold {name}, got none")
    return found
