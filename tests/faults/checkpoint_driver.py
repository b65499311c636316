"""A server's durable state in use, to be broken at any call: ``checkpoint_driver.py FOLDER``.

It saves round 2 of the one job that is there, as a round's end does.
"""

import hashlib
import sys
from pathlib import Path

from common.errors import StorageFailed
from server.checkpoint import Checkpoints, Receipt, RoundRecord

BYTES = 40_000


def open_state(folder: Path) -> Checkpoints:
    """The state in ``folder``."""
    return Checkpoints(f"sqlite:///{folder / 'state.db'}")


def save(store: Checkpoints, round_: int) -> None:
    """Close a round with the updates of two sites."""
    (row,) = store.jobs()
    store.save_round(row.sha256, record(round_), vector(round_), receipts(round_))


def vector(round_: int) -> bytes:
    """A round's adapter."""
    return bytes([round_]) * BYTES


def record(round_: int) -> RoundRecord:
    """What is kept of a round."""
    digest = hashlib.sha256(vector(round_)).hexdigest()
    return RoundRecord(round_, 0.25 * round_, None, 11, 1.5, "00" * 32, digest)


def receipts(round_: int) -> list[Receipt]:
    """One for each site."""
    return [Receipt(site, round_, "aa" * 32, 4, 4 * round_, 5, accepted=True) for site in "AB"]


if __name__ == "__main__":
    try:
        save(open_state(Path(sys.argv[1])), 2)
    except StorageFailed as error:
        sys.exit(f"storage failed: {error}")
