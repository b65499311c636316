"""A site's account in use, to be killed at any point: no model, no link.

    python account_driver.py FOLDER

answers one round; ``run`` does every operation there is. Started again, either goes on where it
was. The file ``wire`` stands for the network: a line there has left the site.
"""

import hashlib
import os
import sys
from pathlib import Path

from client.config import SiteConfig, SiteHome
from client.heads import Heads
from client.outbox import Outbox, RoundKey, Terms
from client.peers import Peers
from common import pki
from common.errors import StorageFailed
from common.privacy.accounting import GaussianSteps
from common.privacy.charge import HeadOf
from common.receipt import Confirmation, RoundReceipt, ServerKey

JOB, OTHER, STEPS, ROUNDS = "b" * 64, "d" * 64, 25, (4, 5)
EVENT = GaussianSteps(0.05, 1.3, STEPS)
AT = "2026-03-04T05:06:07Z"


def run(folder: Path) -> None:
    """Open, accept, train and release each round, note receipts, change the key, close."""
    box = Outbox(folder / "account.db", site="A")
    box.open_job(OTHER, "other", b"{  }", 800, EVENT, Terms(delta=1e-5))
    if box.job(JOB).state == "running":
        box.decide(JOB, "approve", "Ada")
        before = ""
        for round_ in ROUNDS:
            send(box, folder / "wire", round_)
            before = take_receipt(box, folder, round_, before)
        box.close_job(JOB, "finished", "")
    Outbox(folder / "account.db", folder / "site.pem").journal.rekey("Ada")


def send(box: Outbox, wire: Path, round_: int) -> None:
    """Answer a round as client/site.py does."""
    key = RoundKey(JOB, round_, f"{round_:064x}")
    payload = box.stored(key)
    if payload is None:
        box.reserve(key, EVENT, b"start")
        box.store(key, os.urandom(3000))
    words = Confirmation(job_sha256=JOB, round=round_, site="A", head=HeadOf.of(box.head()), at=AT)
    Heads(box, site_home(wire.parent / "without-a-root")).confirm(words)
    payload = box.released(JOB, round_)
    with wire.open("a") as sent:
        sent.write(f"{round_} {payload.hex()}\n")
        sent.flush()
        os.fsync(sent.fileno())
    box.acknowledge(JOB, round_, hashlib.sha256(payload).hexdigest(), accepted=True)


def take_receipt(box: Outbox, folder: Path, round_: int, before: str) -> str:
    """Learn of the round's end from a server's signed receipt; the receipt's hash."""
    root = pki.create_root("driver")
    (folder / "pki").mkdir(exist_ok=True)
    (folder / "pki/root.pem").write_bytes(root.certificate)
    server = pki.issue_server(pki.create_intermediate(root), ["127.0.0.1"])
    charge = Heads(box, site_home(folder)).charge(JOB, round_, (), 1)
    receipt = RoundReceipt(
        job_sha256=JOB,
        round=round_,
        closed_at=pki.load_certificates(server.certificate)[0].not_valid_before_utc.strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        ),
        before=before,
        input_sha256=f"{round_:064x}",
        output_sha256="0" * 64,
        asked=("A",),
        replies=(),
        charges={"A": charge},
        heads={"A": charge.head},
    )
    signed = ServerKey(server.certificate, server.key).sign_receipt(receipt)
    Peers(box, site_home(folder)).take([signed], JOB, 1)
    return signed.sha256


def site_home(folder: Path) -> SiteHome:
    """The site's home; one without a root takes confirmations as they are."""
    return SiteHome(folder, SiteConfig(site="A"))


if __name__ == "__main__":
    try:
        home = Path(sys.argv[1])
        send(Outbox(home / "account.db"), home / "wire", ROUNDS[0])
    except (StorageFailed, OSError) as error:  # the latter from the wire
        sys.exit(f"storage failed: {error}")
