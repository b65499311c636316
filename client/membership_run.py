"""Records for a membership attack, and the attack.

On public records everything is made here: an adapter trained on some, others like them, and
reference adapters trained on yet others. On records that are given, the references learn from the
public ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.attacks import Cohorts, attack
from client.audit_setting import WARDS, encoded, public_records
from client.auditing import train_job, trainer_of
from client.train import Trainer
from common.adapter import Vector, load_adapter
from common.audit.membership import Attack
from common.data import catalogue
from common.errors import InvalidInput
from common.job import Job, load_job, require_site
from common.model import require_base
from common.saved import read_adapter
from common.tasks.batches import Example

Units = Sequence[Sequence[Example]]

_OTHERS = 1000  # what 0.1 % of false alarms takes
_MOST_SEEDS = 16  # of synthetic hospitals


@dataclass(frozen=True, slots=True)
class Given:
    """What an owner of records brings: the adapter, who is in it and who is not. Sensitive."""

    adapter: Path
    members: Path
    others: Path


@dataclass(frozen=True, slots=True)
class Found:
    """What the attacks reached, on how many records."""

    job_sha256: str
    members: int
    others: int
    attacks: list[Attack]


def perform(path: Path, site: str, given: Given | None, references: int, *, private: bool) -> Found:
    """Attack the adapter that was given, or one that is trained here.

    Raises:
        InvalidInput: a fault of the job or a file, or too few public records.
    """
    job = load_job(path)
    require_site(job, site)
    adapter = load_adapter(job, require_base(job), "cpu")
    trainer = trainer_of(job, adapter, site)
    if not private:
        bare = replace(trainer.mechanism, clip_norm=None, noise_multiplier=0.0)
        trainer = replace(trainer, mechanism=bare)
    cohorts = _cohorts(job, site, trainer, given, references)
    if given is None:
        released: Vector = train_job(replace(trainer, units=cohorts.members))
    else:
        released = read_adapter(adapter, given.adapter)
    members = sum(len(unit) for unit in cohorts.members)
    found = attack(trainer, released, cohorts)
    return Found(job.sha256, members, len(cohorts.others), found)


def _cohorts(
    job: Job, site: str, trainer: Trainer, given: Given | None, references: int
) -> Cohorts:
    population = job.data.population[site]
    public = _public_units(job, trainer, 2 * population + 2 * _OTHERS)
    if given is None:
        # In turn, so that all are alike; where records are few, each gets what there is.
        share = min(population, len(public) // 4)
        told = share + max(share, min(_OTHERS, len(public) - 3 * share))
        members, others = public[:share], public[share:told]
        rest = public[len(members) + len(others) :]
    else:
        members, others, rest = _file(job, trainer, given.members), [], public
        others = _file(job, trainer, given.others)
    beside, pool = rest[::2][:_OTHERS], rest[1::2]
    if not beside or not pool:
        raise InvalidInput(f"public records must be at least 8 units, got {len(public)}")
    return Cohorts(
        members=members,
        others=[example for unit in others for example in unit],
        references=[_some(pool, number, references, population) for number in range(references)],
        beside=[example for unit in beside for example in unit],
    )


def _public_units(job: Job, trainer: Trainer, wanted: int) -> list[list[Example]]:
    """Encoded public units, shuffled by their content alone: of the wards as many as are wanted."""
    found: list[list[Example]] = []
    seeds = range(_MOST_SEEDS) if job.evaluation.data == WARDS else range(1)
    for seed in seeds:
        found += encoded(job, trainer, public_records(job, seed))
        if len(found) >= wanted:
            break
    return sorted(found, key=lambda unit: hash(unit[0].input_ids))


def _some(pool: Units, number: int, references: int, most: int) -> list[Sequence[Example]]:
    """What reference ``number`` learns from: two thirds of the pool, others for each."""
    chosen = [unit for place, unit in enumerate(pool) if (place + number) % 3]
    return chosen[:most] if references > 1 else list(pool[:most])


def _file(job: Job, trainer: Trainer, path: Path) -> list[list[Example]]:
    if not path.is_file():
        raise InvalidInput(f"records must be a readable file, got {path}")
    return encoded(job, trainer, catalogue.load(str(path), columns=job.hold_out_columns))
