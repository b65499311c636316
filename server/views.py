"""What an operator sees of a job, as JSON: constants, rounds, and what each site has spent.

Every epsilon is computed from recorded steps, never from the plan.
"""

import dataclasses
from pathlib import Path
from typing import Any

from common.config import SCORES
from common.job import Job
from common.measured import measured
from common.result import privacy_statement, site_result
from common.stopping import kept_round
from server.charges import charged_steps
from server.checkpoint import Checkpoints, JobRow
from server.counts import answers

View = dict[str, Any]


def summary(row: JobRow, checkpoints: Checkpoints, outcomes: Path) -> View:
    """One line of ``fl-server jobs``."""
    job = row.signed.job
    rounds = checkpoints.rounds(row.sha256)
    return {
        "sha256": row.sha256,
        "name": row.name,
        "state": row.state,
        "reason": row.reason,
        "submitted_at": row.submitted_at,
        "changed_at": row.changed_at,
        "round": rounds[-1].round if rounds else 0,
        "rounds": job.training.rounds,
        "measure": SCORES[job.job.task],
        "accuracy": rounds[-1].accuracy if rounds else None,
        "entity_f1": rounds[-1].entity_f1 if rounds else None,
        "sites": list(job.sites),
        "outcome": str(outcomes / row.sha256) if row.state == "finished" else None,
    }


def detail(row: JobRow, checkpoints: Checkpoints, outcomes: Path) -> View:
    """All of ``fl-server show``."""
    signed, rounds = row.signed, checkpoints.rounds(row.sha256)
    return {
        **summary(row, checkpoints, outcomes),
        "signer": signed.signer,
        "constants": _constants(signed.job),
        "closed": closed_rounds(row, checkpoints),
        "kept_round": kept_round(signed.job, rounds) if rounds else None,
        "spent": _spent(row, checkpoints),
        "metrics": _metrics(row, checkpoints),
    }


def _metrics(row: JobRow, checkpoints: Checkpoints) -> View | None:
    """What the sites' counts say, once there are any."""
    asked = answers(checkpoints, row.sha256)
    counts = {site: one.counts for site, one in asked.items() if one.counts is not None}
    found = measured(row.signed.job, counts, sorted(set(asked) - set(counts)))
    return None if found is None else found.model_dump(mode="json")


def closed_rounds(row: JobRow, checkpoints: Checkpoints) -> list[View]:
    """Each closed round, from round 0, the untrained start."""
    return [dataclasses.asdict(record) for record in checkpoints.rounds(row.sha256)]


def _constants(job: Job) -> View:
    return {
        "task": job.job.task,
        "base": job.model.base,
        "method": job.adapter.method,
        "rank": job.adapter.rank,
        "local_steps": job.training.local_steps,
        "quorum": job.training.quorum,
        "patience": job.training.patience,
        "deadline_s": job.training.deadline_s,
        "codec": job.training.codec,
        "mode": job.privacy.mode,
        "unit": job.privacy.unit,
        "epsilon": job.privacy.epsilon,
        "delta": job.privacy.delta,
        "clip_norm": job.privacy.clip_norm,
        "sampling_rate": job.privacy.sampling_rate,
        "noise_multiplier": job.noise_multiplier,
        "population": dict(job.data.population),
    }


def _spent(row: JobRow, checkpoints: Checkpoints) -> list[View]:
    job = row.signed.job
    receipts = checkpoints.receipts(row.sha256)
    dispatched = checkpoints.dispatched(row.sha256)
    steps = charged_steps(receipts, dispatched, job.training.local_steps, for_good=True)
    privacy, asked = privacy_statement(job, seeded=False), answers(checkpoints, row.sha256)
    return [
        {
            **site_result(site, steps.get(site, 0), privacy, is_counted=site in asked).model_dump(
                mode="json"
            ),
            "updates": sum(r.accepted for r in receipts if r.site == site),
            "bytes_up": sum(r.bytes_up for r in receipts if r.site == site),
        }
        for site in job.sites
    ]
