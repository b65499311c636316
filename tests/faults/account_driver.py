"""A site's account in use, to be killed at any point: no model, no link.

    python account_driver.py FOLDER

answers one round; ``run`` does every operation there is. Started again, either goes on where it
was. The file ``wire`` stands for the network: a line there has left the site.
"""

import hashlib
import os
import sys
from pathlib import Path

from client.outbox import Outbox, RoundKey, Terms
from common.errors import StorageFailed
from common.privacy.accounting import GaussianSteps

JOB, OTHER, STEPS, ROUNDS = "b" * 64, "d" * 64, 25, (4, 5)
EVENT = GaussianSteps(0.05, 1.3, STEPS)


def run(folder: Path) -> None:
    """Open, accept, train and release each round, note receipts, change the key, close."""
    box = Outbox(folder / "account.db", site="A")
    box.open_job(OTHER, "other", b"{  }", 800, EVENT, Terms(delta=1e-5))
    if box.job(JOB).state == "running":
        box.decide(JOB, "approve", "Ada")
        for round_ in ROUNDS:
            send(box, folder / "wire", round_)
        box.close_job(JOB, "finished", "")
    Outbox(folder / "account.db", folder / "site.pem").journal.rekey("Ada")


def send(box: Outbox, wire: Path, round_: int) -> None:
    """Answer a round as client/site.py does."""
    key = RoundKey(JOB, round_, f"{round_:064x}")
    payload = box.stored(key)
    if payload is None:
        box.reserve(key, EVENT, b"start")
        payload = box.store(key, os.urandom(3000))
    with wire.open("a") as sent:
        sent.write(f"{round_} {payload.hex()}\n")
        sent.flush()
        os.fsync(sent.fileno())
    box.acknowledge(JOB, round_, hashlib.sha256(payload).hexdigest(), accepted=True)


if __name__ == "__main__":
    try:
        home = Path(sys.argv[1])
        send(Outbox(home / "account.db"), home / "wire", ROUNDS[0])
    except (StorageFailed, OSError) as error:  # the latter from the wire
        sys.exit(f"storage failed: {error}")
