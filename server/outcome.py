"""What a finished job leaves behind: the adapter, ``result.json``, a report and a model card.

Every number comes from durable records; each epsilon is computed anew from the steps that were
charged, never from the plan.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.adapter import LoadedAdapter, Vector, vector_sha256
from common.errors import StorageFailed
from common.files import write_file
from common.job import Job
from common.measured import measured
from common.model import file_sha256
from common.result import (
    ClassResult,
    EntitiesResult,
    FinalResult,
    PrivacyStatement,
    Result,
    RoundResult,
    StartResult,
    hold_out_declared,
    privacy_statement,
    site_result,
    write_result,
)
from common.saved import WEIGHTS, save_adapter
from common.stopping import kept_round
from common.tasks.metrics import Metrics
from server.charges import charged_steps
from server.checkpoint import Checkpoints, RoundRecord
from server.counts import answers
from server.model_card import model_card
from server.report import write_report


def write_outcome(
    job: Job,
    adapter: LoadedAdapter,
    vector: Vector,
    metrics: Metrics,
    checkpoints: Checkpoints,
    out: Path,
    *,
    grid_name: str,
    seeded: bool,
) -> Result:
    """Write the outcome folder and return what ``result.json`` holds.

    Raises:
        StorageFailed: the disk refused.
    """
    folder = out / "adapter"
    try:
        save_adapter(adapter, vector, folder, job.model.base)
    except OSError as error:
        raise StorageFailed(f"outcome must be written to {out}, got: {error.strerror}") from error
    hashes = {
        "adapter_sha256": file_sha256(folder / WEIGHTS),
        "vector_sha256": vector_sha256(vector),
    }
    result = _result(job, metrics, checkpoints, hashes, grid_name, seeded)
    write_file(folder / "README.md", model_card(result, job).encode(), mode=0o644)
    write_report(result, job, out / "report.html")
    write_result(result, out / "result.json")
    return result


def _result(
    job: Job,
    metrics: Metrics,
    checkpoints: Checkpoints,
    hashes: dict[str, str],
    grid_name: str,
    seeded: bool,
) -> Result:
    privacy = privacy_statement(job, seeded=seeded)
    rounds = checkpoints.rounds(job.sha256)
    charges = _charges_by_round(job, checkpoints, [r.round for r in rounds], grid_name == "link")
    final, asked = charges[-1], answers(checkpoints, job.sha256)
    counts = {site: one.counts for site, one in asked.items() if one.counts is not None}
    return Result.model_validate(
        {
            "job_sha256": job.sha256,
            "name": job.job.name,
            "task": job.job.task,
            "grid": grid_name,
            "private": privacy.is_private,
            "sites": [
                site_result(site, final.get(site, 0), privacy, is_counted=site in asked)
                for site in job.sites
            ],
            "start": _start(rounds[0]),
            "rounds": [
                _round(record, max(steps.values(), default=0), privacy)
                for record, steps in zip(rounds, charges, strict=True)
                if record.round > 0
            ],
            "kept_round": None if job.training.patience is None else kept_round(job, rounds),
            "final": _final(metrics),
            "hold_out": hold_out_declared(job),
            "privacy": privacy,
            "metrics": measured(job, counts, sorted(set(asked) - set(counts))),
            "seconds": sum(record.seconds for record in rounds),
            **hashes,
        }
    )


def _charges_by_round(
    job: Job, checkpoints: Checkpoints, rounds: Sequence[int], for_good: bool
) -> list[dict[str, int]]:
    """Steps charged to each site by the end of each round; after the last, all that was asked."""
    receipts, dispatched = checkpoints.receipts(job.sha256), checkpoints.dispatched(job.sha256)
    last = max(rounds)
    return [
        charged_steps(
            [r for r in receipts if r.round <= round_],
            [d for d in dispatched if d[0] <= round_ or round_ == last],
            job.training.local_steps,
            for_good=for_good,
        )
        for round_ in rounds
    ]


def _start(record: RoundRecord) -> StartResult | None:
    if record.round != 0 or record.score is None:
        return None
    return StartResult(
        accuracy=record.accuracy, macro_f1=record.macro_f1, entity_f1=record.entity_f1
    )


def _round(record: RoundRecord, steps: int, privacy: PrivacyStatement) -> RoundResult:
    return RoundResult(
        round=record.round,
        accuracy=record.accuracy,
        macro_f1=record.macro_f1,
        entity_f1=record.entity_f1,
        epsilon=privacy.epsilon(steps),
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        seconds=record.seconds,
    )


def _final(metrics: Metrics) -> FinalResult:
    return FinalResult(
        accuracy=metrics.accuracy,
        macro_f1=metrics.macro_f1,
        entity_f1=metrics.entity_f1,
        entities=None if metrics.entities is None else EntitiesResult(**asdict(metrics.entities)),
        classes=tuple(
            ClassResult(
                label=c.label, precision=c.precision, recall=c.recall, f1=c.f1, support=c.support
            )
            for c in metrics.classes
        ),
    )
