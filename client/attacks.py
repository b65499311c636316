"""What the attacks on a released adapter, or on one site's update, need of a trainer.

Not covered: the attacks themselves (``common/audit/membership.py``, ``inversion.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from client.auditing import train_job
from client.train import Trainer
from common.adapter import Vector
from common.audit import membership
from common.tasks.batches import Example, placed_batches

Floats = NDArray[np.float64]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Encoded records by what they are to the audited adapter. Sensitive where records are.

    Attributes:
        members: by unit; it was trained on them.
        others: it was not, and they are told from members.
        references: by unit and reference adapter; neither of the above.
        beside: none of the above: what RMIA compares with.
    """

    members: Sequence[Sequence[Example]]
    others: Sequence[Example]
    references: Sequence[Sequence[Sequence[Example]]]
    beside: Sequence[Example]


def attack(trainer: Trainer, released: Vector, cohorts: Cohorts) -> list[membership.Attack]:
    """Both attacks on ``released``; reference adapters are trained here, each by the same job."""
    members = [example for unit in cohorts.members for example in unit]
    asked = [*members, *cohorts.others, *cohorts.beside]
    target = losses(trainer, released, asked)
    trained = [train_job(replace(trainer, units=units)) for units in cohorts.references]
    references = np.stack([losses(trainer, one, asked) for one in trained])
    tested, n = len(members) + len(cohorts.others), len(members)
    ratio = membership.rmia(
        target[:tested], references[:, :tested], target[tested:], references[:, tested:]
    )
    return [
        membership.reached("loss", -target[:n], -target[n:tested]),
        membership.reached("rmia", ratio[:n], ratio[n:]),
    ]


def losses(trainer: Trainer, vector: Vector, examples: Sequence[Example]) -> Floats:
    """The loss of each example under the adapter ``vector``, (n,)."""
    adapter = trainer.adapter
    adapter.write(vector)
    found = np.empty(len(examples))
    with torch.inference_mode():
        for batch, places in placed_batches(examples, _BATCH, adapter.pad_id, adapter.device):
            found[places] = trainer.losses(adapter.model.eval(), batch).cpu().double().numpy()
    adapter.model.train()
    adapter.write(adapter.initial)
    return found
