"""A job's evidence: signed rows and receipts as sites and a server make them, without training."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import pki
from common.audit.evidence import Evidence
from common.job import Job, sign_job
from common.privacy.charge import HeadOf, LedgerRow, SignedCharge, SignedEnding
from common.privacy.entries import Closed, Created, Released, Reserved, write_entry
from common.privacy.ledger import Chain, Head, Row, public_hex
from common.receipt import Reply, RoundReceipt, ServerKey, SignedReceipt
from common.result import Result

AT = "2026-11-28T01:00:00Z"
MakeEvidence = Callable[..., Evidence]
OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
CAP = {"kind": "rdp-filter", "order": 6.5, "epsilon": 12.0, "delta": 1e-5}


class SiteLedger:
    """A site's ledger, entry by entry."""

    def __init__(self, site: str) -> None:
        self.key = pki.load_key(pki.new_site_key_and_csr(site)[0])
        self.chain, self.rows = Chain(), list[Row]()
        self.since: HeadOf | None = None
        key = public_hex(self.key)
        self.add(
            Created, format=1, site=site, unit="record", cap=CAP, binds_keys=True,
            public_key=key, is_ephemeral=False,
        )  # fmt: skip

    def add(self, model: type, **fields: object) -> int:
        seq = self.chain.size
        body = write_entry(model, seq=seq, at=AT, salt=f"{seq:032x}", **fields)
        row = self.chain.tail.row(body, self.key)
        self.chain.extend(row)
        self.rows.append(row)
        return seq

    def head(self) -> Head:
        return self.chain.head(self.key)

    def charge(self, job: Job, result: Result, round_: int) -> SignedCharge:
        """Reserve a round, and prove it."""
        stated = result.privacy
        seq = self.add(
            Reserved,
            job_sha256=job.sha256,
            round=round_,
            input_sha256="11" * 32,
            start_sha256="",
            charge={
                "sampling_rate": stated.sampling_rate,
                "noise_multiplier": stated.noise_multiplier,
                "steps": stated.local_steps,
            },
            terms={"unit": stated.unit, "unit_cap": stated.unit_cap, "delta": stated.delta},
            code_sha256="22" * 32,
            accountant="pld",
        )
        made = self.shown(seq)
        self.since = made.head
        self.add(Released, job_sha256=job.sha256, round=round_, payload_sha256="33" * 32)
        return made

    def ending(self, job: Job, steps: int) -> SignedEnding:
        """Close the job, and prove that."""
        seq = self.add(
            Closed, job_sha256=job.sha256, state="finished", final_sha256="", is_final=True,
            steps=steps, counts=0,
        )  # fmt: skip
        return SignedEnding(**dict(self.shown(seq)))

    def shown(self, seq: int) -> SignedCharge:
        head = HeadOf.of(self.head())
        proof = self.chain.consistency_proof(self.since.size) if self.since else list[bytes]()
        return SignedCharge(
            row=LedgerRow.of(self.rows[seq], self.rows[seq - 1], self.chain),
            head=head,
            since=self.since,
            consistency=tuple(part.hex() for part in proof),
            hand_overs=() if self.since else (LedgerRow.of(self.rows[0], None, self.chain),),
        )


@dataclass
class Federation:
    """Keys of a server and its sites."""

    server: ServerKey
    certificates: dict[str, bytes]
    ledgers: dict[str, SiteLedger]


def federation(sites: tuple[str, ...]) -> Federation:
    root = pki.create_root("federation")
    intermediate = pki.create_intermediate(root)
    server = pki.issue_server(intermediate, ["localhost"])
    certificates = {}
    for site in sites:
        _, csr = pki.new_site_key_and_csr(site)
        certificates[site] = pki.issue_site(csr, intermediate)
    ledgers = {site: SiteLedger(site) for site in sites}
    return Federation(ServerKey(server.certificate, server.key), certificates, ledgers)


def receipts(job: Job, result: Result, made: Federation) -> tuple[SignedReceipt, ...]:
    """Of rounds in which each site was asked until its steps of the result are used up."""
    left = {site.name: site.steps for site in result.sites}
    before, signed, heads = "", list[SignedReceipt](), dict[str, HeadOf]()
    for row in result.rounds:
        asked = tuple(sorted(s for s, steps in left.items() if steps > 0))
        charges = {s: made.ledgers[s].charge(job, result, row.round) for s in asked}
        left = {s: steps - result.privacy.local_steps for s, steps in left.items()}
        heads = heads | {s: charge.head for s, charge in charges.items()}
        receipt = RoundReceipt(
            job_sha256=job.sha256,
            round=row.round,
            closed_at=AT,
            before=before,
            input_sha256="11" * 32,
            output_sha256=hashlib.sha256(str(row.round).encode()).hexdigest(),
            asked=asked,
            replies=tuple(Reply(site=s, payload_sha256="33" * 32, accepted=True) for s in asked),
            charges=charges,
            heads=heads,
        )
        signed.append(made.server.sign_receipt(receipt))
        before = signed[-1].sha256
    return tuple(signed)


def evidence_of(result: Result, job: Job, *, is_simulation: bool = False) -> Evidence:
    made = federation(job.sites)
    rounds = () if is_simulation else receipts(job, result, made)
    return Evidence(
        job=sign_job(job, OPERATOR),
        receipts=rounds,
        endings={s.name: made.ledgers[s.name].ending(job, s.steps) for s in result.sites},
        certificates=made.certificates,
        result=result,
        is_simulation=is_simulation,
        made_at=AT,
        software="veiltune 0.1.0",
    )


@pytest.fixture(scope="session")
def make_evidence() -> MakeEvidence:
    return evidence_of


@pytest.fixture(scope="session")
def evidence(outcome: Callable[..., tuple[Result, Job]]) -> Evidence:
    """Of three sites; northgate was asked for half of the rounds."""
    return evidence_of(*outcome(steps={"northgate": 48}))
