"""The bytes that a job sends to and from a site: of real messages, with the job's own constants.

A round is an order with the receipts of the round before, the charge, its confirmation and the
update. Charges have proofs, whose length follows from how many entries a ledger has: of this job
alone here.

Not covered: what the link adds to a message (less than 1 KiB); a round that is asked for again; the
offer and the close, which travel once a job; hashes of 67 bytes by which proofs are longer in
ledgers of many jobs.
"""

from dataclasses import asdict, dataclass

import numpy as np
from flwr.app import RecordDict

from common import messages
from common.adapter import vector_sha256
from common.flower import content_to_bytes
from common.job import Job, SignedJob
from common.layout import Layout
from common.phases import charged, confirm, shown
from common.privacy.charge import HeadOf, LedgerRow, SignedCharge
from common.privacy.entries import Reserved, Terms, write_entry
from common.privacy.event import GaussianSteps
from common.privacy.ledger import Head
from common.receipt import (
    Confirmation,
    Reply,
    RoundReceipt,
    SignedConfirmation,
    SignedReceipt,
    to_bytes,
)

_DIGEST, _SIGNATURE, _KEY = "0" * 64, "0" * 144, "0" * 182  # a P-256 signature and key, DER in hex
_CHAIN = "x" * 1_500  # a server's certificate and its intermediate, PEM
_STAMP = "2026-11-28T00:00:00Z"
_ENTRIES_A_ROUND = 3  # reserved, released, committed


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of the messages of one round at one site, and of the whole job."""

    up_round: int
    down_round: int
    rounds: int

    @property
    def up(self) -> int:
        """From the site, in all."""
        return self.up_round * self.rounds

    @property
    def down(self) -> int:
        """To the site, in all."""
        return self.down_round * self.rounds


def traffic(job: Job, layout: Layout) -> Traffic:
    """The bytes of a round's messages to and from one site, as they are encoded."""
    table, trained = layout.table, layout.trained(layout.largest_round)
    vector, steps = np.zeros(trained.size, np.float32), job.training.local_steps
    state = np.zeros(table.size, np.float32)
    digest, last, charge = vector_sha256(state), job.training.rounds, _charge(job)
    head = Head(_entries(job), _DIGEST, _SIGNATURE, _KEY)
    update = messages.Update(vector, last, digest, steps, job.steps, head)
    signed = SignedJob(job=job, signer=_DIGEST, signature="0" * 128)
    receipt = messages.Receipt(last, digest, is_accepted=True)
    records = shown([_receipt(job, charge)], [charge.head])
    order = messages.order(signed, table, state, last, receipt, head, shown=records)
    up = (charged(charge), messages.update(job, trained.table, update))
    return Traffic(
        up_round=_size(*up), down_round=_size(order, _confirmed(job, charge)), rounds=last
    )


def _size(*contents: RecordDict) -> int:
    return sum(len(content_to_bytes(content)) for content in contents)


def _entries(job: Job) -> int:
    """Of a ledger that has this job alone."""
    return 2 + _ENTRIES_A_ROUND * job.training.rounds


def _charge(job: Job) -> SignedCharge:
    """A round's charge as a site proves it, in the middle of the job."""
    size, privacy, training = _entries(job) // 2 + 1, job.privacy, job.training
    proof = (_DIGEST,) * (size - 1).bit_length()
    head = HeadOf(size=size, root=_DIGEST, signature=_SIGNATURE, public_key=_KEY)
    event = GaussianSteps(privacy.sampling_rate, job.noise_multiplier, training.local_steps)
    terms = Terms(unit=privacy.unit, unit_cap=privacy.unit_cap, delta=privacy.delta)
    body = write_entry(
        Reserved,
        seq=size,
        at=_STAMP,
        salt="0" * 32,
        job_sha256=_DIGEST,
        round=training.rounds,
        input_sha256=_DIGEST,
        start_sha256=_DIGEST,
        charge=asdict(event),
        terms=terms,
        code_sha256=_DIGEST,
        accountant="dp-accounting 0.6.0",
        job_steps=job.steps,
    )
    row = LedgerRow(
        seq=size,
        before=_DIGEST,
        body=body.decode(),
        hash=_DIGEST,
        signature=_SIGNATURE,
        inclusion=proof,
    )
    return SignedCharge(row=row, head=head, since=head, consistency=proof)


def _receipt(job: Job, charge: SignedCharge) -> bytes:
    """A closed round's, in which all sites gave an update."""
    receipt = RoundReceipt(
        job_sha256=_DIGEST,
        round=job.training.rounds,
        closed_at=_STAMP,
        before=_DIGEST,
        input_sha256=_DIGEST,
        output_sha256=_DIGEST,
        asked=job.sites,
        replies=tuple(Reply(site=s, payload_sha256=_DIGEST, accepted=True) for s in job.sites),
        charges=dict.fromkeys(job.sites, charge),
        heads=dict.fromkeys(job.sites, charge.head),
    )
    return to_bytes(SignedReceipt(receipt=receipt, signature=_SIGNATURE, chain=_CHAIN))


def _confirmed(job: Job, charge: SignedCharge) -> RecordDict:
    said = Confirmation(
        job_sha256=_DIGEST,
        round=job.training.rounds,
        site=job.sites[0],
        head=charge.head,
        at=_STAMP,
    )
    return confirm(SignedConfirmation(confirmation=said, signature=_SIGNATURE, chain=_CHAIN))
