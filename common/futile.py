"""Settings of a job that cannot do together what they say: told before any site is asked.

Nothing here can hurt a record. A signed manifest from before a rule was known may break it, and
stays readable; what cannot be computed at all is refused in ``common/job.py``, signed or not.

Not covered: rules that work and are too weak for who attacks.
"""

from typing import TYPE_CHECKING, Final

from common.methods import METHODS, Part

if TYPE_CHECKING:
    from common.job import Job

# Given to pydantic as its context, where a manifest is read that somebody has signed.
SIGNED: Final = {"is_signed": True}


def futile(job: "Job") -> list[str]:
    """Every combination of the job's that has no effect, or not the one that it names."""
    return [*_of_rule(job), *_of_pull(job), *_of_base(job)]


def _of_rule(job: "Job") -> list[str]:
    asked, training, found = job.aggregation, job.training, []
    if asked is None:
        return []
    if asked.rule in ("median", "geometric-median") and training.quorum < 3:
        found.append(
            f"training.quorum must be at least 3 with aggregation.rule {asked.rule!r} (of two "
            f"updates none is outvoted), got {training.quorum}"
        )
    if asked.norm_bound is not None and asked.norm_bound >= training.max_update_norm:
        found.append(
            "aggregation.norm_bound must be less than training.max_update_norm, "
            f"{training.max_update_norm:g} (longer updates are rejected before any is cut), "
            f"got {asked.norm_bound:g}"
        )
    if asked.quarantine_after is not None and training.quorum == len(job.data.population):
        found.append(
            f"training.quorum must be less than the {training.quorum} sites with "
            "aggregation.quarantine_after (the first site in quarantine would end the job), "
            f"got {training.quorum}"
        )
    return found


def _of_pull(job: "Job") -> list[str]:
    """FedProx's pull mu is a curvature, as weight decay is: SGD bears 2 (1 + momentum) / rate."""
    training, found = job.training, []
    mu = training.proximal_mu or 0.0
    if not mu:
        return []
    if training.local_steps < 2:
        found.append(
            "training.local_steps must be at least 2 with training.proximal_mu (the first step "
            f"begins where it pulls to), got {training.local_steps}"
        )
    pull = training.learning_rate * (mu + training.weight_decay)
    most = 2 * (1 + training.momentum)
    if training.optimizer == "sgd" and pull >= most:
        found.append(
            "training.learning_rate x (training.proximal_mu + training.weight_decay) must be less "
            f"than 2 x (1 + training.momentum), {most:g} (each step would overshoot by more than "
            f"it corrects), got {pull:g}"
        )
    return found


def _of_base(job: "Job") -> list[str]:
    method, dtype = job.adapter.method, job.model.dtype
    if Part.FOLD not in METHODS[method].state or dtype == "float32":
        return []
    return [
        f"model.dtype must be float32 with adapter.method {method!r} (what is folded into coarser "
        f"weights would be rounded away), got {dtype}"
    ]
