"""A simulated site: its records, its ledger and what it answers, without a home of its own.

It says what client/site.py says, from the same parts: the job's mechanism over its own units, one
charge a round, the same contents. Only training is not its own: a cohort trains many sites at once
and hands each its change.

Not covered: a site's policy, which in a simulation allows just this job; a life before it; peers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import islice

import structlog
from flwr.app import RecordDict

from client.config import RuntimeSection
from client.feedback import Feedback
from client.lifetime import plan
from client.measure import divided_by, released_counts
from client.site import NOT_PARTICIPATING
from client.train import Trainer
from common.adapter import LoadedAdapter, Vector
from common.code import code_sha256
from common.data.records import Record, require_labels
from common.data.units import privacy_units
from common.errors import JobRefused, RoundRefused, VeiltuneError
from common.flower import content_to_bytes
from common.job import Job, SignedJob
from common.messages import Closing, Order, Update, update
from common.messages import Receipt as Word
from common.metric_messages import Counts, counts_reply
from common.privacy.account import steps_of
from common.privacy.accounting import GaussianSteps
from common.privacy.entries import Closed, Committed, Purpose, Released, Reserved, Submitted, Terms
from common.privacy.mechanism import mechanism_of
from common.privacy.stream import KeySource
from common.tasks import task_of
from common.vocabulary import require_known
from simulations.engine.account import MemoryLedger

Known = tuple[int, bytes] | None  # round and state of the last order that was charged

log = structlog.get_logger(__name__)


@dataclass
class SimulatedSite:
    """One site of a simulation.

    Attributes:
        name: its own.
        signed: the one job that it takes part in.
        adapter: the job's, shared by all sites.
        records: its own.
        keys: of the run's seed, which forfeit privacy.
        latest: what the next round's state is measured by.
    """

    name: str
    signed: SignedJob
    adapter: LoadedAdapter
    records: Sequence[Record]
    keys: KeySource
    latest: Known = None
    _trainer: Trainer | None = None
    _ready: dict[int, RecordDict] = field(default_factory=dict)
    _feedback: Feedback = field(default_factory=Feedback)

    def __post_init__(self) -> None:
        cap = {"kind": "simulation"}
        self.ledger = MemoryLedger(self.name, cap, "")

    @property
    def job(self) -> Job:
        """The job's constants."""
        return self.signed.job

    def consider(self) -> Trainer:
        """The job made ready, recorded with its whole budget the first time.

        Raises:
            JobRefused: its records do not fit the job, in the words of a real site.
        """
        if self._trainer is None:
            trainer = self._prepare()
            self.ledger.append(Submitted, **_submission(self.job, self.signed))
            self._trainer = trainer
        return self._trainer

    def _prepare(self) -> Trainer:
        job, task = self.job, task_of(self.job)
        try:
            units = privacy_units(list(self.records), job.privacy.unit)
            require_labels(self.records, job.data.labels, f"records of {self.name}")
            every = [record for unit in units for record in unit]
            examples = task.encode(self.adapter.tokenizer, every, job)
            require_known(examples, self.adapter.model, job.model.max_length)
        except VeiltuneError as error:
            log.error("data refused", site=self.name, reason=str(error))
            raise JobRefused(NOT_PARTICIPATING) from error
        encoded = iter(examples)
        trainer = replace(
            trainer_of(job, self.adapter, self.name, self.keys),
            units=[list(islice(encoded, len(unit))) for unit in units],
        )
        return divided_by(trainer, units, self.keys("hold-out", 0, 0))

    def is_charged(self, round_: int) -> bool:
        """Whether a round was charged, and so has its content."""
        return (self.job.sha256, round_) in self.ledger.account.rounds

    def reserve(self, order: Order, input_sha256: str, start: bytes) -> None:
        """Charge a round before it is trained from the state ``start``, or the counts.

        Raises:
            RoundRefused: it is none of the job's.
        """
        job, is_counts = self.job, order.round == self.job.metrics_round
        if order.round > job.training.rounds and not (is_counts and job.metrics_event):
            raise RoundRefused(f"round must be at most {job.training.rounds}, got {order.round}")
        event, purpose = _charge(job, is_counts=is_counts)
        steps = 0 if is_counts else event.steps
        self._note(order.receipt)
        self.ledger.append(
            Reserved,
            job_sha256=job.sha256,
            round=order.round,
            input_sha256=input_sha256,
            start_sha256=input_sha256,
            charge=steps_of(event),
            terms=_terms(job),
            job_steps=self.ledger.account.charged_steps(job.sha256) + steps,
            **({"purpose": purpose} if is_counts else {}),
            **_versions(),
        )
        self.latest = order.round, start

    def keep(self, round_: int, input_sha256: str, change: Vector) -> None:
        """Take a round's change; the content that waits for the confirmation."""
        charged = self.ledger.account.charged_steps(self.job.sha256)
        steps, head = self.job.training.local_steps, self.ledger.head()
        trainer = self.consider()
        carried = self._feedback.carried(trainer, round_, change)
        result = Update(carried, round_, input_sha256, steps, charged, head)
        self._store(round_, update(self.job, trainer.trained(round_).table, result))

    def count(self, round_: int, input_sha256: str, vector: Vector) -> None:
        """Make the job's counts of the state ``vector`` (P,), which wait as a round's bytes do."""
        counts = released_counts(self.consider(), vector)
        self._store(round_, counts_reply(Counts(counts, input_sha256, self.ledger.head())))

    def _store(self, round_: int, content: RecordDict) -> None:
        digest = hashlib.sha256(content_to_bytes(content)).hexdigest()
        self.ledger.append(
            Released, job_sha256=self.job.sha256, round=round_, payload_sha256=digest
        )
        self._ready = {round_: content}

    def release(self, round_: int) -> RecordDict:
        """A round's content, now that its charge was confirmed.

        Raises:
            RoundRefused: there is none.
        """
        if round_ not in self._ready:
            raise RoundRefused(f"round {round_} must be ready to leave, got none")
        return self._ready[round_]

    def end(self, closing: Closing) -> None:
        """Note the last receipt and the job's end."""
        self._note(closing.receipt)
        account, job = self.ledger.account, self.job.sha256
        submitted = account.jobs.get(job)
        if submitted is not None and submitted.is_open:
            self.ledger.append(
                Closed,
                job_sha256=job,
                state=closing.state,
                final_sha256=closing.final_sha256,
                is_final=True,
                steps=account.charged_steps(job),
                counts=account.releases_of_counts(job),
            )
        self._ready.clear()

    def _note(self, receipt: Word | None) -> None:
        """Keep the server's receipt for the last round's bytes."""
        found = receipt and self.ledger.account.rounds.get((self.job.sha256, receipt.round))
        if (
            receipt is None
            or not found
            or found.charge.payload_sha256 != receipt.payload_sha256
            or found.charge.is_acknowledged
        ):
            return
        self.ledger.append(
            Committed,
            job_sha256=self.job.sha256,
            round=receipt.round,
            payload_sha256=receipt.payload_sha256,
            is_accepted=receipt.is_accepted,
        )


def trainer_of(job: Job, adapter: LoadedAdapter, site: str, keys: KeySource) -> Trainer:
    """A site's trainer without units, as client/site.py makes it by default."""
    return Trainer(
        job=job,
        adapter=adapter,
        units=(),
        mechanism=mechanism_of(job, site, keys),
        losses=task_of(job).per_example_loss,
        rows=RuntimeSection().physical_batch,
        rank=job.rank(site),
    )


def _charge(job: Job, *, is_counts: bool) -> tuple[GaussianSteps, Purpose]:
    if is_counts and job.metrics_event is not None:
        return job.metrics_event, "metrics"
    rate, steps = job.privacy.sampling_rate, job.training.local_steps
    return GaussianSteps(rate, job.noise_multiplier, steps), "update"


def _submission(job: Job, signed: SignedJob) -> dict[str, object]:
    return {
        "job_sha256": job.sha256,
        "name": job.job.name,
        "manifest_sha256": hashlib.sha256(signed.to_bytes()).hexdigest(),
        "message_cap_bytes": 0,  # no link brings any
        "plan": steps_of(plan(job)),
        "terms": _terms(job),
        "metrics": job.metrics_event and steps_of(job.metrics_event),
        **_versions(),
    }


def _terms(job: Job) -> Terms:
    privacy = job.privacy
    return Terms(unit=privacy.unit, unit_cap=privacy.unit_cap, delta=privacy.delta)


@cache
def _versions() -> dict[str, str]:
    found = version("dp-accounting")
    return {"code_sha256": code_sha256(), "accountant": f"dp-accounting {found}"}
