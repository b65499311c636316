"""A small federation's evidence, made by hand: authorities, ledgers, receipts, all signed for real.

No model is trained and no server runs; hashes of adapters are those of a few words. What a test
changes is signed again with the very keys, as a dishonest server or site would.
"""

import copy
import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import pki
from common.audit.evidence import Evidence, write_bundle
from common.histograms import bins
from common.initial import drawn_a
from common.job import Job, SignedJob, sign_job
from common.keys import public_key_sha256
from common.layout import Matrices
from common.measured import measured
from common.privacy.charge import HeadOf, LedgerRow, SignedCharge, SignedEnding
from common.privacy.entries import Closed, Created, Rekeyed, Released, Reserved, write_entry
from common.privacy.event import GaussianSteps
from common.privacy.ledger import Chain, Row, public_hex
from common.receipt import Reply, RoundReceipt, ServerKey, SignedReceipt
from common.result import Result, privacy_statement, site_result
from common.signed import SignedRoster, sign
from server.unended import counted_in_full

AT = dt.datetime(2026, 11, 20, 9, 30, tzinfo=dt.UTC)
BEFORE = AT - dt.timedelta(days=90)  # when root and intermediate were made
STAMP = "2026-11-20T10:00:00Z"
PRIVACY = {
    "mode": "site", "unit": "patient_id", "unit_cap": 4, "epsilon": 6.0, "delta": 1e-5,
    "clip_norm": 0.75, "sampling_rate": 0.05,
}  # fmt: skip


def weights(bias: float = 0.5) -> bytes:
    """An adapter's file of the job below: what stays at its start, and what a round might make."""
    job, name = make_job(), "base_model.model.encoder.layer.0.query"
    rank, inputs = job.adapter.rank, 6
    start = drawn_a(job, Matrices(name, 1.0, None, None, None, None, rank, inputs, 4), 0)
    tensors = {
        f"{name}.lora_A.weight": start.astype(np.float32),
        f"{name}.lora_B.weight": np.arange(4 * rank, dtype=np.float32).reshape(4, rank),
        "base_model.model.classifier.weight": np.ones((2, 4), np.float32),
        "base_model.model.classifier.bias": np.full(2, bias, np.float32),
    }
    return safetensors.numpy.save(tensors)


def digest(words: str) -> str:
    """The sha256 of a few words."""
    return hashlib.sha256(words.encode()).hexdigest()


COUNTS = {"release": ["accuracy", "classes"], "hold_out": 0.25, "share": 0.1, "records_per_unit": 2}


DISJOINT = "made up by a program: nobody is in it"


def make_job(
    sites: Sequence[str] = ("A", "B"),
    rounds: int = 2,
    metrics: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
    **privacy: object,
) -> Job:
    """A job of two steps a round; with ``metrics`` it has counts after the last."""
    return Job.model_validate(
        ({} if metrics is None else {"metrics": dict(metrics)})
        | {
            "job": {"name": "small"},
            "model": {"base": "builtin:none", "sha256": digest("base")},
            "adapter": {"targets": ("query",)},
            "training": {"rounds": rounds, "local_steps": 2, "learning_rate": 0.5}
            | dict(training or {}),
            "privacy": {k: v for k, v in (PRIVACY | privacy).items() if v is not None},
            "data": {
                "name": "notes",
                "labels": ("x", "y"),
                "population": {site: 400 + 10 * n for n, site in enumerate(sites)},
            },
            "evaluation": {"data": "builtin:wards", "disjoint_because": DISJOINT},
        }
    )


class Ledger:
    """A site's whole ledger with its key."""

    def __init__(self, site: str, key: bytes, /, **created: object) -> None:
        self.site, self.pem, self.key = site, key, pki.load_key(key)
        self.chain, self.rows = Chain(), list[Row]()
        cap = {"kind": "pld-schedule", "jobs": [digest("jobs")], "epsilon": 12.0, "delta": 1e-5}
        said: dict[str, object] = {
            "public_key": public_hex(self.key), "is_ephemeral": False, "site": site,
            "unit": "", "cap": cap, "binds_keys": True,
        }  # fmt: skip
        self.append(Created, **(said | created))

    def append(self, model: type[Any], **fields: object) -> int:
        """Write the next entry; its number."""
        seq = len(self.rows)
        salt = digest(f"{self.site}{seq}{fields.get('job_sha256', '')}")[:32]
        body = write_entry(model, seq=seq, at=STAMP, salt=salt, **fields)
        row = self.chain.tail.row(body, self.key)
        self.chain.extend(row)
        self.rows.append(row)
        return seq

    def rekey(self, key: bytes) -> int:
        """Go on under another key, which the one before hands over."""
        new = pki.load_key(key)
        endorsement = self.chain.tail.endorse(public_hex(new), self.key)
        self.key = new
        return self.append(
            Rekeyed, public_key=public_hex(new), is_ephemeral=False, endorsement=endorsement,
            accepted_by="Dr. Keeper",
        )  # fmt: skip

    def head(self) -> HeadOf:
        """The signed head of now."""
        return HeadOf.of(self.chain.head(self.key))

    def charge(self, seq: int, since: HeadOf | None, named: Sequence[int] = ()) -> SignedCharge:
        """Entry ``seq`` as a charge; ``named`` are the entries since then that name a key."""
        proof = [] if since is None else self.chain.consistency_proof(since.size)
        return SignedCharge(
            row=self.shown(seq),
            head=self.head(),
            since=since,
            consistency=tuple(part.hex() for part in proof),
            hand_overs=tuple(self.shown(n) for n in named),
        )

    def last_word(
        self, job_sha256: str, since: HeadOf | None, steps: int, counts: int
    ) -> SignedEnding:
        """What would be the ending if the job ended now; the ledger stays as it is."""
        ended = copy.copy(self)
        ended.chain, ended.rows = copy.deepcopy(self.chain), list(self.rows)
        seq = ended.append(
            Closed, job_sha256=job_sha256, state="finished", final_sha256="", is_final=True,
            steps=steps, counts=counts,
        )  # fmt: skip
        first = since.size if since is not None and since.size <= seq else 0
        kinds = [json.loads(row.body)["kind"] for row in ended.rows]
        named = [n for n in range(first, seq) if kinds[n] in ("created", "rekeyed")]
        charge = ended.charge(seq, since if first else None, named)
        return SignedEnding(**dict(charge))

    def shown(self, seq: int) -> LedgerRow:
        """An entry with its place under the head of now."""
        return LedgerRow.of(self.rows[seq], self.rows[seq - 1] if seq else None, self.chain)


@dataclass
class Authorities:
    """A root and what stands below it."""

    root: pki.Credential
    intermediate: pki.Credential
    server: pki.Credential
    operator: Ed25519PrivateKey

    def enrol(self, site: str) -> tuple[bytes, bytes]:
        """A key (PEM) and its certificate chain (PEM)."""
        key, csr = pki.new_site_key_and_csr(site)
        return key, pki.issue_site(csr, self.intermediate, now=AT)


def authorities(name: str = "wards") -> Authorities:
    """New ones; the server's certificate is of the story's morning."""
    root = pki.create_root(name, now=BEFORE)
    intermediate = pki.create_intermediate(root, now=BEFORE)
    server = pki.issue_server(intermediate, ["127.0.0.1"], now=AT)
    return Authorities(root, intermediate, server, Ed25519PrivateKey.generate())


Plan = Callable[[int, str], dict[str, object]]


@dataclass
class Story:
    """What happened in a job, and who signed it."""

    by: Authorities
    signed: SignedJob
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    certificates: dict[str, bytes] = field(default_factory=dict)
    receipts: list[RoundReceipt] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    away: tuple[str, ...] = ()
    known: dict[str, bytes] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    is_simulation: bool = False
    begun: dt.datetime = AT

    @property
    def job(self) -> Job:
        """The job's constants."""
        return self.signed.job

    def enrol(self) -> None:
        """Give every site a key, a certificate and a ledger."""
        for site in self.job.sites:
            key, chain = self.by.enrol(site)
            self.certificates[site] = chain
            self.ledgers[site] = Ledger(site, key)

    def round(
        self,
        *,
        silent: Sequence[str] = (),
        away: Sequence[str] = (),
        entry: Mapping[str, Any] | None = None,
        named: Mapping[str, int] | None = None,
    ) -> None:
        """Close another round; ``entry`` changes what all sites wrote of it in their ledgers."""
        number = len(self.receipts) + 1
        before = self.receipts[-1] if self.receipts else None
        heads = dict(before.heads) if before else {}
        asked = tuple(site for site in self.job.sites if site not in away)
        charges = {
            site: self._charge(site, number, heads.get(site), entry or {}, named or {})
            for site in asked
            if site not in silent
        }
        self.receipts.append(
            RoundReceipt(
                job_sha256=self.job.sha256,
                round=number,
                closed_at=f"{self.begun + dt.timedelta(minutes=30 + number):%Y-%m-%dT%H:%M:%SZ}",
                before="",
                input_sha256=digest(f"adapter {number - 1}"),
                output_sha256=digest(f"adapter {number}"),
                asked=asked,
                replies=tuple(
                    Reply(site=s, payload_sha256=digest(f"{s}{number}"), accepted=True)
                    for s in charges
                ),
                charges=charges,
                heads=heads | {site: charge.head for site, charge in charges.items()},
            )
        )

    def count(self, *, silent: Sequence[str] = (), entry: Mapping[str, Any] | None = None) -> None:
        """Ask all sites for their counts; a silent one had charged, and sent nothing after it."""
        job, last = self.job, self.receipts[-1]
        number = job.metrics_round
        charges = {
            site: self._charge(site, number, last.heads.get(site), entry or {}, {})
            for site in job.sites
        }
        self.receipts.append(
            RoundReceipt(
                job_sha256=job.sha256,
                round=number,
                closed_at=f"{self.begun + dt.timedelta(minutes=30 + number):%Y-%m-%dT%H:%M:%SZ}",
                before="",
                input_sha256=last.output_sha256,
                output_sha256=last.output_sha256,
                asked=job.sites,
                replies=tuple(
                    Reply(site=s, payload_sha256=digest(f"{s}{number}"), accepted=True)
                    for s in charges
                    if s not in silent
                ),
                charges=charges,
                heads=last.heads | {site: charge.head for site, charge in charges.items()},
            )
        )

    def _counted(self) -> RoundReceipt | None:
        last = self.receipts[-1] if self.receipts else None
        return last if last and last.round == self.job.metrics_round and self.job.metrics else None

    def _charge(
        self,
        site: str,
        number: int,
        since: HeadOf | None,
        entry: Mapping[str, Any],
        named: Mapping[str, int],
    ) -> SignedCharge:
        ledger, job, privacy = self.ledgers[site], self.job, self.job.privacy
        event = GaussianSteps(privacy.sampling_rate, job.noise_multiplier, job.training.local_steps)
        if (counts := job.metrics_event) is not None and number == job.metrics_round:
            event, entry = counts, {"purpose": "metrics"} | dict(entry)
        (self.counted if event == counts else self.steps)[site] += event.steps
        said: dict[str, Any] = {
            "job_steps": self.steps[site],
            "job_sha256": job.sha256,
            "round": number,
            "input_sha256": digest(f"adapter {min(number - 1, len(self.receipts))}"),
            "start_sha256": digest(f"start {number - 1}"),
            "charge": asdict(event),
            "terms": {"unit": privacy.unit, "unit_cap": privacy.unit_cap, "delta": privacy.delta},
            "code_sha256": digest("code"),
            "accountant": "pld",
        }
        seq = ledger.append(Reserved, **(said | dict(entry)))
        first = () if since else (0,)
        charge = ledger.charge(seq, since, [*first, *([named[site]] if site in named else [])])
        ledger.append(
            Released, job_sha256=job.sha256, round=number, payload_sha256=digest(f"{site}{number}")
        )
        return charge

    def make(self, vector: bytes, file: bytes) -> None:
        """Let the last round have made these numbers (float32), and the result name the file."""
        made = hashlib.sha256(vector).hexdigest()
        self.receipts[-1] = self.receipts[-1].model_copy(update={"output_sha256": made})
        self.changes["adapter_sha256"] = hashlib.sha256(file).hexdigest()

    def signed_receipts(self) -> tuple[SignedReceipt, ...]:
        """The receipts in a chain of hashes, under the server's key."""
        key = ServerKey(self.by.server.certificate, self.by.server.key)
        chain: list[SignedReceipt] = []
        for receipt in self.receipts:
            before = chain[-1].sha256 if chain else ""
            chain.append(key.sign_receipt(receipt.model_copy(update={"before": before})))
        return tuple(chain)

    def result(self) -> Result:
        """What ``result.json`` states, each epsilon by the library's accountant."""
        job, privacy = self.job, privacy_statement(self.job, seeded=self.is_simulation)
        steps = job.training.local_steps
        counting = self._counted()
        given = {reply.site for reply in counting.replies} if counting else set[str]()
        size = bins(job.histograms)
        counts = {site: np.arange(9, 9 + size, dtype=np.int64) for site in given}
        silent = sorted(set(counting.asked) - given) if counting else ()
        asked = {
            site: [sum(site in r.asked for r in self.receipts[:n]) * steps for n in self._numbers()]
            for site in job.sites
        }
        quality = {"accuracy": 0.5, "macro_f1": 0.25, "entity_f1": None}
        data: dict[str, Any] = {
            "job_sha256": job.sha256,
            "name": job.job.name,
            "task": job.job.task,
            "grid": "link",
            "private": privacy.is_private,
            "sites": [
                site_result(
                    site,
                    asked[site][-1],
                    privacy,
                    is_counted=counting is not None and site in counting.asked,
                )
                for site in job.sites
            ],
            "metrics": measured(job, counts, silent),
            "start": None,
            "rounds": [
                quality
                | {
                    "round": n,
                    "epsilon": privacy.epsilon(max(asked[site][n - 1] for site in job.sites)),
                    "bytes_up": 64,
                    "bytes_down": 640,
                    "seconds": 1.0,
                }
                for n in self._numbers()
            ],
            "final": quality | {"classes": []},
            "hold_out": {"data": "builtin:wards", "split": "test", "disjoint_because": DISJOINT},
            "privacy": privacy,
            "seconds": 2.0,
            "adapter_sha256": digest("file"),
            "vector_sha256": self.receipts[-1].output_sha256,
        }
        return Result.model_validate(data | self.changes)

    def _numbers(self) -> range:
        return range(1, len(self.receipts) + (self._counted() is None))

    def evidence(self) -> Evidence:
        """All of it."""
        found = Evidence(
            job=self.signed,
            receipts=self.signed_receipts(),
            certificates=self.certificates,
            result=self.result(),
            is_simulation=self.is_simulation,
            made_at="2026-11-20T11:00:00Z",
            software="veiltune 0.1.0",
            endings=self.endings(),
            roster=self.roster(),
        )
        return counted_in_full(found)

    def roster(self, by: pki.Credential | None = None, **changes: object) -> bytes:
        """Who the root says takes part: every ledger's key, or the one (PEM) that it ``known``."""
        signer = by or self.by.root
        pems = {site: self.known.get(site) for site in self.job.sites}
        keys = {site: pki.load_key(p) if p else self.ledgers[site].key for site, p in pems.items()}
        said: dict[str, Any] = {
            "root": pki.fingerprint(signer.certificate),
            "federation": "wards",
            "sequence": 3,
            "signed_at": AT,
            "sites": {site: (public_key_sha256(key.public_key()),) for site, key in keys.items()},
        }
        return sign(SignedRoster.model_validate(said | changes), signer)

    def endings(self) -> dict[str, SignedEnding]:
        """Each site's last word, but for those that were away at the end."""
        last = self.receipts[-1].heads
        return {
            site: self.ledgers[site].last_word(
                self.job.sha256, last.get(site), self.steps[site], self.counted[site]
            )
            for site in self.job.sites
            if site not in self.away
        }

    def bundle(self, **evidence: object) -> bytes:
        """The file; ``evidence`` changes fields of it before it is sealed."""
        return write_bundle(replace(self.evidence(), **evidence), {}, self.by.server)  # type: ignore[arg-type]


def begin(sites: Sequence[str] = ("A", "B"), rounds: int = 2, **privacy: object) -> Story:
    """Everybody enrolled, no round yet."""
    by = authorities()
    story = Story(by, sign_job(make_job(sites, rounds, **privacy), by.operator))  # type: ignore[arg-type]
    story.enrol()
    return story


def told(sites: Sequence[str] = ("A", "B"), rounds: int = 2, **privacy: object) -> Story:
    """A whole job that went well."""
    story = begin(sites, rounds, **privacy)
    for _ in range(rounds):
        story.round()
    return story


def told_with_counts(
    *, silent: Sequence[str] = (), entry: Mapping[str, Any] | None = None
) -> Story:
    """The same, with counts after the last round."""
    story = told(metrics=COUNTS)
    story.count(silent=silent, entry=entry)
    return story
