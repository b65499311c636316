"""The coordinator's Flower ServerApp: a job from its first offer to its outcome.

It uses Flower's public Grid and Strategy alone, so the same app runs over the link, in a simulation
and under Flower's own runtime. Each round is a transaction: who is asked is durable before they
are, and the new adapter with all receipts is durable before the next round. A killed server resumes
after the last closed round, and sites answer an open one with the bytes they answered before.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from common import messages, phases
from common.adapter import LoadedAdapter, Vector, load_adapter, vector_sha256
from common.errors import InvalidInput, JobStopped
from common.flower import become_server
from common.job import Job, SignedJob, parse_signed_job, verify_job
from common.model import require_base
from common.result import Result
from common.stopping import best_round, is_over
from common.trace import about, exchange_id, round_id
from server.checkpoint import Checkpoints, Receipt, RoundRecord
from server.evaluate import HoldOut, load_hold_out
from server.kept import kept_adapter
from server.measuring import measure
from server.nodes import NamedGrid
from server.outcome import write_outcome
from server.participants import Participants
from server.round import collect, open_book, site_of
from server.strategies import STRATEGIES
from server.strategies.base import global_record, read_global
from server.strategies.optimizer import optimized
from server.witness import confirm, keep_ending, witness

_CLOSE_TIMEOUT_S = 30.0
_CLOSE = "close"

log = structlog.get_logger(__name__)


def message_cap(job: Job) -> int:
    """The most bytes that a message of this job may have."""
    return messages.job_cap(job, _load(job).table)


def final_vector(job: Job, checkpoints: Checkpoints) -> Vector | None:
    """The adapter that a job ended with, or ``None`` before its end."""
    closed = checkpoints.rounds(job.sha256)
    if not is_over(job, closed):
        return None
    return _kept(job, checkpoints, closed)


def _kept(job: Job, checkpoints: Checkpoints, closed: Sequence[RoundRecord]) -> Vector:
    return np.frombuffer(kept_adapter(job, checkpoints, closed), dtype="<f4")


def _load(job: Job) -> LoadedAdapter:
    return load_adapter(job, require_base(job))


def run_job(
    signed: SignedJob,
    grid: Grid,
    checkpoints: Checkpoints,
    out: Path,
    *,
    grid_name: str = "link",
    observe: Callable[[RoundRecord], None] = lambda _: None,
    seeded: bool = False,
    pause_s: float | None = None,
) -> Result:
    """Run a job to its end, from its last closed round if there is one.

    Args:
        signed: the job, whose signature the caller has verified.
        grid: how its sites are reached.
        checkpoints: the durable state.
        out: the outcome folder.
        grid_name: as ``result.json`` states it.
        observe: told of every closed round, from round 0, the untrained start.
        seeded: whether some site's noise can be repeated, which forfeits privacy.
        pause_s: between two askings in a round, as ``collect`` takes it.

    Raises:
        Refusal: too few sites accept the job, or a round can have no quorum.
        InvalidInput: base model or hold-out are not what the job says.
        StorageFailed: a checkpoint is in doubt.
        JobStopped: the grid was stopped before the last round was closed.
    """
    become_server()
    job = signed.job
    adapter = _load(job)
    run = _Run(signed, adapter, load_hold_out(job, adapter), grid, checkpoints, observe, pause_s)
    vector = run.resume()
    if not is_over(job, run.closed):
        run.sites.gather()
    while not is_over(job, run.closed):
        round_ = run.closed[-1].round + 1
        with about(round_id(job.sha256, round_)):
            vector = run.round(round_, vector)
    kept = _kept(job, checkpoints, run.closed)
    run.measure(kept)
    metrics = run.hold_out.evaluate(kept)
    result = write_outcome(
        job, adapter, kept, metrics, checkpoints, out, grid_name=grid_name, seeded=seeded
    )
    run.close("finished", kept)
    return result


def announce_end(signed: SignedJob, grid: Grid, state: str) -> None:
    """Tell the sites that are connected that a job ended without an adapter."""
    become_server()
    nodes = sorted(grid.get_node_ids())
    content = messages.close(signed.job.sha256, state, None, None)
    orders = [
        Message(content, dst_node_id=node, message_type=messages.CLOSE, group_id=_CLOSE)
        for node in nodes
    ]
    for reply in grid.send_and_receive(orders, timeout=_CLOSE_TIMEOUT_S):
        site, identifier = site_of(signed.job, reply), _close_id(signed.job, reply)
        log.info("job closed", id=identifier, site=site, state=state)


def _close_id(job: Job, reply: Message) -> str:
    return exchange_id(job.sha256, _CLOSE, reply.metadata.reply_to_message_id)


@dataclass
class _Run:
    """A job under way."""

    signed: SignedJob
    adapter: LoadedAdapter
    hold_out: HoldOut
    grid: Grid
    checkpoints: Checkpoints
    observe: Callable[[RoundRecord], None]
    pause_s: float | None = None
    closed: list[RoundRecord] = field(default_factory=list)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    _packed: tuple[Vector, messages.Packed] | None = None

    def __post_init__(self) -> None:
        self.sites = Participants(self.signed, self.grid, self.checkpoints)

    @property
    def job(self) -> Job:
        """The job's constants."""
        return self.signed.job

    def resume(self) -> Vector:
        """The last closed round's adapter, or the public start as round 0."""
        self.closed = self.checkpoints.rounds(self.job.sha256)
        for record in self.closed:
            self.observe(record)
        latest = self.checkpoints.latest(self.job.sha256)
        if latest is None:
            return self._close_round(0, self.adapter.initial, [], time.monotonic(), "", (0, 0))
        self._remember(self.checkpoints.receipts(self.job.sha256))
        return np.frombuffer(latest[1], dtype="<f4")

    def round(self, round_: int, vector: Vector) -> Vector:
        """Ask, collect, aggregate, evaluate, and make it durable."""
        begun, sites = time.monotonic(), self.sites
        sites.quarantine()
        asked: set[str] = set()
        book = open_book(self.job, self.adapter, round_, vector)

        method, layout = STRATEGIES[self.job.adapter.method], self.adapter.layout
        strategy = method(self._ask, book.read, self.job, layout)

        def orders(to: set[str]) -> list[Message]:
            if not to:
                return []
            asked.update(to)
            log.info("round starts", round=round_, sites=len(to))
            self.checkpoints.dispatch(self.job.sha256, round_, sorted(to))
            config = ConfigRecord({"sites": sorted(to)})
            return list(strategy.configure_train(round_, global_record(vector), config, self.grid))

        def latecomers() -> list[Message]:
            sites.offer()
            return orders((sites.accepted & sites.connected()) - asked)

        first = orders(sites.present())

        def confirmed(site: str, input_sha256: str, reply: Message) -> RecordDict:
            said = confirm(self.checkpoints, self.job, round_, input_sha256, site, reply)
            return phases.confirm(said)

        replies = collect(self.grid, first, book, confirmed, latecomers, pause_s=self.pause_s)
        arrays, _ = strategy.aggregate_train(round_, replies)
        answered = {receipt.site for receipt in book.receipts} | set(book.refused)
        sites.missed = (sites.missed | asked) - answered
        middle = vector if arrays is None else read_global(arrays)
        before = self.checkpoints.memory(self.job.sha256)
        after, memory = optimized(self.job, vector, middle, round_, before)
        sizes = book.bytes_up, book.sent.bytes
        return self._close_round(
            round_, after, book.receipts, begun, book.input_sha256, sizes, memory
        )

    def _ask(self, site: str, round_: int, vector: Vector) -> RecordDict:
        if self._packed is None or self._packed[0] is not vector:  # once for all sites of a round
            self._packed = vector, messages.pack_global(vector, self.adapter.table)
        return messages.order(
            self.signed,
            self.adapter.table,
            vector,
            round_,
            self._receipt_for(site),
            self.checkpoints.head(site),
            packed=self._packed[1],
            shown=phases.shown(*self.checkpoints.to_show(self.job.sha256, site, round_)),
        )

    def _receipt_for(self, site: str) -> messages.Receipt | None:
        receipt = self.receipts.get(site)
        if receipt is None:
            return None
        return messages.Receipt(receipt.round, receipt.payload_sha256, receipt.accepted)

    def _remember(self, receipts: Iterable[Receipt]) -> None:
        self.receipts.update({receipt.site: receipt for receipt in receipts})

    def _close_round(
        self,
        round_: int,
        vector: Vector,
        receipts: list[Receipt],
        begun: float,
        input_sha256: str,
        sizes: tuple[int, int],
        memory: bytes = b"",
    ) -> Vector:
        metrics = self.hold_out.evaluate(vector)
        record = RoundRecord(
            round=round_,
            accuracy=metrics.accuracy,
            macro_f1=metrics.macro_f1,
            bytes_up=sizes[0],
            seconds=time.monotonic() - begun,
            input_sha256=input_sha256,
            output_sha256=vector_sha256(vector),
            entity_f1=metrics.entity_f1,
            bytes_down=sizes[1],
        )
        closed = [*self.closed, record]
        is_best = self.job.training.patience is not None and best_round(closed) == round_
        self.checkpoints.save_round(
            self.job.sha256,
            record,
            vector.astype("<f4").tobytes(),
            receipts,
            is_best=is_best,
            memory=memory,
        )
        self.closed = closed
        self._remember(receipts)
        self.observe(record)
        log.info("round closed", round=round_, sites=len(receipts), score=record.score)
        return vector

    def measure(self, vector: Vector) -> None:
        """Ask for the sites' counts of the adapter that is kept, where the job has any."""
        if self.job.metrics is None:
            return
        packed = messages.pack_global(vector, self.adapter.table)

        def content(site: str) -> RecordDict:
            return messages.order(
                self.signed,
                self.adapter.table,
                vector,
                self.job.metrics_round,
                self._receipt_for(site),
                self.checkpoints.head(site),
                packed=packed,
                shown=phases.shown(
                    *self.checkpoints.to_show(self.job.sha256, site, self.job.metrics_round)
                ),
            )

        took_part = {s for s, receipt in self.receipts.items() if receipt.accepted}
        found = measure(self.sites, self.checkpoints, vector, content, took_part)
        self.receipts.update(found)

    def close(self, state: str, vector: Vector | None) -> None:
        """Tell the sites that take part; those that are away learn it by ``fetch``.

        A job that was resumed after its last round was offered to nobody: who has a receipt took
        part. A stop comes too late for a job whose outcome is written, and only cuts this short.
        """
        try:
            self._tell(state, vector)
        except JobStopped as error:
            log.warning("end untold", job=self.job.job.name, error=error)

    def _tell(self, state: str, vector: Vector | None) -> None:
        def content(site: str) -> RecordDict:
            after_all = self.job.metrics_round + 1
            shown = phases.shown(*self.checkpoints.to_show(self.job.sha256, site, after_all))
            receipt = self._receipt_for(site)
            return messages.close(self.job.sha256, state, vector, receipt, shown=shown)

        sites = (self.sites.accepted | set(self.receipts)) & self.sites.connected()
        for reply in self.sites.send(sites, messages.CLOSE, content, _CLOSE, _CLOSE_TIMEOUT_S):
            site = site_of(self.job, reply)
            witness(self.checkpoints, site, reply)
            keep_ending(self.checkpoints, self.job, site, reply)
            log.info("job closed", id=_close_id(self.job, reply), site=site)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry, with all that it needs in the run's configuration.

    ``job`` is the signed manifest as JSON, ``signer`` the operator's public key (hex) that must
    have signed it, ``database`` a URL, ``out`` the outcome folder, ``grid`` its name in the result.

    Raises:
        InvalidInput: no ``signer``.
        JobRefused: another signed the job, or it was edited after signing.
    """
    config = context.run_config
    if "signer" not in config:
        raise InvalidInput("signer must be the operator's public key in run_config, got none")
    signed = parse_signed_job(str(config["job"]).encode())
    verify_job(signed, (str(config["signer"]),))
    checkpoints = Checkpoints(str(config["database"]))
    checkpoints.add_job(signed)
    run_job(
        signed,
        NamedGrid(grid, signed.job.sites),
        checkpoints,
        Path(str(config["out"])),
        grid_name=str(config.get("grid", "superlink")),
    )
