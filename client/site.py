"""A site's side of a job: consider it, make it ready, answer its rounds, note its end.

The order within a round is the privacy argument: verify what came, reserve all steps durably, train
and noise, store the finished bytes durably, show the charge, and hand the bytes out once the server
has confirmed the ledger's head with it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import structlog
import torch
from flwr.app import RecordDict

from client.account import life_of, open_account, recorded_cap
from client.approval import require_approval
from client.config import SiteHome
from client.estimate import require_limits
from client.feedback import Feedback
from client.freshness import Stamp, stamp, warn_if_changed
from client.heads import Heads
from client.lifetime import Life, plan, require_lifetime, require_room
from client.measure import divided, released_counts
from client.outbox import Charge, RoundKey, Submission, Terms, spent
from client.peers import Peers
from client.policy import admit
from client.rehearsal import rehearse
from client.step import require_step
from client.train import Trainer
from common.adapter import LoadedAdapter, Vector, load_adapter, vector_sha256
from common.data.readers import read_records
from common.data.records import Record, require_labels
from common.data.units import privacy_units
from common.errors import (
    AccountingInDoubt,
    InvalidInput,
    JobRefused,
    Refusal,
    RoundRefused,
    SelfCheckFailed,
    StorageFailed,
    VeiltuneError,
)
from common.flower import content_from_bytes, content_to_bytes
from common.job import Job, SignedJob, parse_signed_job
from common.log import frames
from common.messages import (
    NO_UPDATE,
    WRONG_BASE,
    Closing,
    Order,
    Receipt,
    Update,
    job_cap,
    update,
    verdict,
)
from common.metric_messages import NO_COUNTS, Counts, counts_reply
from common.model import require_base
from common.phases import charged
from common.privacy.accounting import GaussianSteps
from common.privacy.charge import SignedEnding
from common.privacy.mechanism import mechanism_of
from common.privacy.persample import rows_within_memory
from common.privacy.stream import KeySource
from common.receipt import Confirmation, SignedConfirmation
from common.tasks import task_of
from common.tasks.batches import Example
from common.vocabulary import require_known

NOT_PARTICIPATING = "not participating"

log = structlog.get_logger(__name__)


class Site:
    """An institution's own process state; one job is ready at a time.

    Args:
        home: the site's folder and file.
        seeded: a simulation's keys for sampling and noise, which forfeit privacy; else fresh ones.
    """

    def __init__(self, home: SiteHome, *, seeded: KeySource | None = None) -> None:
        self.home = home
        self.outbox = open_account(home)
        self._cap, self._unit = recorded_cap(self.outbox), self.outbox.fixed_unit()
        self._seeded = seeded
        self._trainers: dict[str, Trainer] = {}
        self._feedback = Feedback()
        self._read: Stamp | None = None  # of the ready job's file of records
        if home.config.runtime.threads:
            torch.set_num_threads(home.config.runtime.threads)

    @property
    def _heads(self) -> Heads:
        return Heads(self.outbox, self.home)

    @property
    def _peers(self) -> Peers:
        return Peers(self.outbox, self.home)

    def consider(self, signed: SignedJob) -> Trainer:
        """Accept a job and make it ready, or refuse it.

        Raises:
            JobRefused: by policy, what a peer's ledger showed, base model or data; where the reason
                depends on records it reads ``not participating`` and this site's own log has it.
            SelfCheckFailed: the mechanism does not do what its accounting assumes.
        """
        job = admit(signed, self.home, life_of(self.outbox))
        self._peers.require_quiet(job)
        require_approval(signed, self.home, self.outbox.decisions())
        if job.sha256 not in self._trainers:
            read = stamp(self.home, job)  # before it is read: a change under way is one too
            trainer, records = self._prepare(job)
            self._open(signed, trainer)
            trainer = divided(trainer, records, self.outbox, self._seeded)
            self._trainers, self._read = {job.sha256: trainer}, read
            log.info("job accepted", job=job.job.name, site=self.home.site)
        return self._trainers[job.sha256]

    def _open(self, signed: SignedJob, trainer: Trainer) -> None:
        """Record the job with its whole budget, if there is still room for that."""
        job = signed.job

        def within(submissions: Sequence[Submission], charges: Sequence[Charge]) -> None:
            if job.is_private:
                require_lifetime(job, Life(self._cap, submissions, charges, self._unit))

        self.outbox.open_job(
            job.sha256,
            job.job.name,
            signed.to_bytes(),
            job_cap(job, trainer.adapter.table),
            plan(job),
            _terms(job),
            within=within,
            metrics=job.metrics_event,
        )

    def _prepare(self, job: Job) -> tuple[Trainer, list[list[Record]]]:
        """Base model first, then the machine's limits, then data, then the self-checks."""
        try:
            folder = require_base(job, self.home.models, download=False)
        except (InvalidInput, JobRefused) as error:
            # The reason tells of folders on this machine: it stays here.
            log.error("base model refused", job=job.job.name, reason=str(error))
            raise JobRefused(WRONG_BASE) from error
        try:
            adapter = load_adapter(job, folder, self.home.config.runtime.device)
        except InvalidInput as error:
            raise JobRefused(str(error)) from error
        trainer = make_trainer(job, adapter, self.home, self._seeded)
        if self.outbox.cap(job.sha256) is None:  # once accepted, a slow hour ends no job
            require_limits(trainer, self.home)
        records, units = self._units(job, adapter)
        trainer = replace(trainer, units=units)
        try:
            passed = rehearse(trainer, self.home.site, is_seeded=self._seeded is not None)
        except (AccountingInDoubt, SelfCheckFailed) as error:
            log.error("self-check failed", job=job.job.name, reason=str(error))
            raise
        log.info("self-checks passed", job=job.job.name, checks=", ".join(passed))
        return trainer, records

    def _units(
        self, job: Job, adapter: LoadedAdapter
    ) -> tuple[list[list[Record]], list[list[Example]]]:
        """The site's records by privacy unit, and the same encoded."""
        try:
            units = self._records(job)
            records = [record for unit in units for record in unit]
            examples = task_of(job).encode(adapter.tokenizer, records, job)
            require_known(examples, adapter.model, job.model.max_length)
        except StorageFailed:
            raise
        # As broad as can be: the reason is a fact about private records, whatever it is, so it
        # stays here, and the server gets one answer that asking again does not change.
        except Exception as error:
            log.error("data refused", job=job.job.name, **_reason(error))
            raise JobRefused(NOT_PARTICIPATING) from error
        encoded = iter(examples)
        return units, [list(islice(encoded, len(unit))) for unit in units]

    def _records(self, job: Job) -> list[list[Record]]:
        data_set = self.home.data_set(job.data.name)
        path = self.home.path(data_set.path)
        units = privacy_units(read_records(path, data_set.columns), job.privacy.unit)
        require_labels((record for unit in units for record in unit), job.data.labels, path.name)
        return units

    def cap(self, job_sha256: str) -> int | None:
        """The most bytes that a message of this job may have; ``None`` before it is accepted."""
        return self.outbox.cap(job_sha256)

    def answer(self, order: Order, vector: Vector) -> RecordDict:
        """Train a round unless that was done, and show its charge; its bytes stay here.

        Raises:
            JobRefused, SelfCheckFailed: see ``consider``.
            RoundRefused: the round does not continue what this site knows.
            StorageFailed: the account is in doubt; nothing is handed out.
        """
        trainer = self.consider(order.signed)
        job = trainer.job
        self._peers.take(order.rounds, job.sha256, len(job.sites))
        self._peers.require_quiet(job)
        if order.receipt is not None:
            self._note(job.sha256, order.receipt)
        key = RoundKey(job.sha256, order.round, vector_sha256(vector))
        if self.outbox.stored(key) is None:
            self._train(trainer, key, vector)
        sites = len(job.sites)
        return charged(self._heads.charge(job.sha256, order.round, order.prove, sites))

    def release(self, said: SignedConfirmation | Confirmation) -> RecordDict:
        """A round's bytes, now that the server keeps the head that holds their charge.

        Asked again, it gives the same bytes.

        Raises:
            RoundRefused: the confirmation is not our server's or not of a round that is ready.
            StorageFailed: it could not be kept; nothing is handed out.
        """
        job_sha256, round_ = self._heads.confirm(said)
        released = content_from_bytes(self.outbox.released(job_sha256, round_))
        log.info("round sent", job=job_sha256[:12], round=round_)
        return released

    def _train(self, trainer: Trainer, key: RoundKey, vector: Vector) -> None:
        job = trainer.job
        latest = self.outbox.latest_input(job.sha256)
        require_step(job, trainer.adapter, key.round, vector, latest)
        event = GaussianSteps(
            job.privacy.sampling_rate, job.noise_multiplier, job.training.local_steps
        )
        self.outbox.reserve(
            key, event, vector.astype("<f4").tobytes(), _terms(job), within=self._life_allows
        )
        log.info("round starts", job=job.job.name, round=key.round, steps=event.steps)
        self.outbox.store(key, self._content(trainer, key, vector))
        self._read = warn_if_changed(self.home, job, self._read)
        self._tell(job, key.round)

    def _life_allows(self, charges: Sequence[Charge]) -> None:
        require_room(charges, self._cap)

    def _content(self, trainer: Trainer, key: RoundKey, vector: Vector) -> bytes:
        """A reserved round's one answer: its update or, in fixed words, that there is none.

        Whatever goes wrong from the first sampled record on is stored like an update: asked again,
        the site would train with fresh noise, and failures that tell of records could be counted.

        Raises:
            StorageFailed: the account is in doubt; nothing was handed out, the charge stays.
        """
        job = trainer.job
        try:
            change = trainer.train_round(vector, key.round)
            result = Update(
                vector=self._feedback.carried(trainer, key.round, change),
                round=key.round,
                input_sha256=key.input_sha256,
                steps=job.training.local_steps,
                charged_steps=sum(c.event.steps for c in self.outbox.charges(job.sha256)),
                head=self.outbox.head(),
            )
            table = trainer.trained(key.round).table
            return content_to_bytes(update(job, table, result))
        except StorageFailed:
            raise
        # As broad as can be: which error a round ends in, memory that ran out included, may depend
        # on the records that were sampled.
        except Exception as error:  # noqa: BLE001
            log.error("no update", job=job.job.name, round=key.round, **_reason(error))
        said = verdict(accepted=False, reason=NO_UPDATE, head=self.outbox.head())
        return content_to_bytes(said)

    def _tell(self, job: Job, round_: int) -> None:
        """Say in this site's own log what it has spent, once a round is durable."""
        charges = self.outbox.charges(job.sha256)
        cost = spent(charges, job.privacy.delta) if job.privacy.delta else None
        log.info("round ready to send", job=job.job.name, round=round_, epsilon=cost)

    def measure(self, order: Order, vector: Vector) -> RecordDict:
        """Count for the job unless that was done, and show the charge; the counts stay here.

        Charged before a held-out record is looked at; one release a job, of one adapter. As a
        round's bytes they leave by ``release``.

        Raises:
            JobRefused, SelfCheckFailed: see ``consider``.
            RoundRefused: the job has no counts, or they were asked of another adapter.
            StorageFailed: the account is in doubt; nothing is handed out.
        """
        trainer = self.consider(order.signed)
        job, event = trainer.job, trainer.job.metrics_event
        self._peers.take(order.rounds, job.sha256, len(job.sites))
        self._peers.require_quiet(job)
        if event is None or order.round != job.metrics_round:
            raise RoundRefused("metrics must be those of the job, after its rounds, got others")
        if order.receipt is not None:
            self._note(job.sha256, order.receipt)
        key = RoundKey(job.sha256, order.round, vector_sha256(vector))
        if self.outbox.stored(key) is None:
            start = vector.astype("<f4").tobytes()
            self.outbox.reserve(
                key, event, start, _terms(job), within=self._life_allows, purpose="metrics"
            )
            self.outbox.store(key, self._counts(trainer, key, vector))
            self._read = warn_if_changed(self.home, job, self._read)
            log.info("counts ready to send", job=job.job.name)
        sites = len(job.sites)
        return charged(self._heads.charge(job.sha256, order.round, order.prove, sites))

    def _counts(self, trainer: Trainer, key: RoundKey, vector: Vector) -> bytes:
        """The one answer, as ``_content`` makes a round's: counts or, in fixed words, none."""
        try:
            counts = released_counts(trainer, vector)
            return content_to_bytes(
                counts_reply(Counts(counts, key.input_sha256, self.outbox.head()))
            )
        except StorageFailed:
            raise
        # As broad as can be: which error it ends in may depend on the records that were counted.
        except Exception as error:  # noqa: BLE001
            log.error("no counts", job=trainer.job.job.name, **_reason(error))
        said = verdict(accepted=False, reason=NO_COUNTS, head=self.outbox.head())
        return content_to_bytes(said)

    def end(self, closing: Closing) -> SignedEnding | None:
        """Note the last receipts and a job's end; the ledger's last word on it, if there is one."""
        if closing.receipt is not None:
            self._note(closing.job_sha256, closing.receipt)
        try:
            sites = self._sites(closing.job_sha256)
            self._peers.take(closing.rounds, closing.job_sha256, sites)
        except Refusal as error:  # a job's end is no less its end
            log.warning("last receipts not taken", reason=str(error))
        self.outbox.close_job(closing.job_sha256, closing.state, closing.final_sha256)
        self._trainers.pop(closing.job_sha256, None)
        self._feedback.forget(closing.job_sha256)
        log.info("job closed", job=closing.job_sha256[:12], state=closing.state)
        return self._heads.ending(closing.job_sha256, closing.prove)

    def _sites(self, job_sha256: str) -> int:
        """How many sites a job has, also after a restart; 1 of one that was not accepted here."""
        found = (row.manifest for row in self.outbox.jobs() if row.sha256 == job_sha256)
        return max((len(parse_signed_job(manifest).job.sites) for manifest in found), default=1)

    def _note(self, job_sha256: str, receipt: Receipt) -> None:
        self.outbox.acknowledge(
            job_sha256, receipt.round, receipt.payload_sha256, accepted=receipt.is_accepted
        )


def _reason(error: Exception) -> dict[str, str]:
    """What this site's own log says: a library's words may hold a record, ours never do."""
    if isinstance(error, VeiltuneError):
        return {"reason": str(error)}
    return {"error": type(error).__name__, "where": frames(error)}


def _terms(job: Job) -> Terms:
    privacy = job.privacy
    return Terms(unit=privacy.unit, unit_cap=privacy.unit_cap, delta=privacy.delta)


def make_trainer(
    job: Job, adapter: LoadedAdapter, home: SiteHome, keys: KeySource | None = None
) -> Trainer:
    """The job's trainer at this site, without any units yet.

    A physical batch has the rows that the owner set, or fewer where memory is short: two such
    buffers are held at once where units have several records.
    """
    runtime = home.config.runtime
    most = rows_within_memory(2 * adapter.layout.largest, adapter.device)
    return Trainer(
        job=job,
        adapter=adapter,
        units=(),
        mechanism=mechanism_of(job, home.site, keys),
        losses=task_of(job).per_example_loss,
        rows=min(runtime.physical_batch, most),
        engine=runtime.engine,
        fused=runtime.fused,
        rank=job.rank(home.site),
    )
