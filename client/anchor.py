"""How far a site's ledger had come, in a file beside it: a second memory, should the first be lost.

After each commit the signed head is written to ``account.anchor``, whole and durable, never before.
A kill between the two leaves it behind, which is no harm: it has to be a beginning of the ledger.
So a ledger that is missing, emptied, cut or begun anew is noticed even if no server saw it.

Not covered: who takes this file away too. Whoever can write to a home can; then the head that the
server witnessed is what is left.
"""

import json
from dataclasses import asdict
from pathlib import Path

from common.errors import AnchorBroken, InvalidInput
from common.files import exists, write_file
from common.privacy.extract import read_head
from common.privacy.ledger import Chain, Head
from common.strict_json import read_json

_MAX_BYTES = 4096


class Anchor:
    """The anchor of the account at ``account``."""

    def __init__(self, account: Path) -> None:
        self.path = account.with_suffix(".anchor")

    def read(self) -> Head | None:
        """The head, or ``None`` where none was written yet.

        Raises:
            AnchorBroken: it holds something else.
        """
        if not exists(self.path):
            return None
        try:
            return read_head(read_json(self.path, max_bytes=_MAX_BYTES))
        except InvalidInput as error:
            raise AnchorBroken(f"{self.path} must be as it was written, got: {error}") from error

    def write(self, head: Head) -> None:
        """Remember a head that is durable in the ledger.

        Raises:
            StorageFailed: it cannot be written; the ledger stands as it is.
        """
        write_file(self.path, json.dumps({"head": asdict(head)}).encode() + b"\n")


def require_nothing_lost(head: Head | None) -> None:
    """Check, where there is no ledger, that there was none.

    Raises:
        AnchorBroken: there was one, and a new one would forget what it charged.
    """
    if head is not None:
        raise AnchorBroken(
            f"account.db must hold the {head.size} entries that account.anchor remembers, got "
            f"none: put the latest account.db back; without it nobody knows what was spent"
        )


def require_anchored(head: Head | None, chain: Chain) -> None:
    """Check that a ledger continues a head that was read before the ledger was.

    Raises:
        AnchorBroken: it does not, or its keys did not sign the head.
    """
    if head is None:
        return
    if head.size > chain.size or head.root != chain.root(head.size).hex():
        got = f"{chain.size}" if head.size > chain.size else "others"
        raise AnchorBroken(
            f"ledger must begin with the {head.size} entries that account.anchor remembers, "
            f"got {got}: put the latest account.db back"
        )
    if head.public_key not in chain.keys or not head.is_signed():
        raise AnchorBroken("account.anchor must be signed by the ledger's key, got another's")
