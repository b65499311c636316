"""What every empirical audit starts from: a job, a site's trainer for it, and records.

Records are the job's public hold-out set by default. A file that is given counts as private: what
an audit finds there is a function of it and stays at the site.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.report import CONSISTENT, REFUTED, AuditReport, write_report
from common.cli import print_json
from common.code import code_sha256
from common.data import catalogue, wards
from common.data.records import Record, require_labels
from common.data.units import privacy_units
from common.errors import InvalidInput
from common.job import Job, load_job, require_site
from common.privacy.event import GaussianSteps

if TYPE_CHECKING:
    from client.train import Trainer
    from common.tasks.batches import Example

FAILED = 1
PRIVATE_WORDS = (
    "private: every figure here is a function of them and stays at this site, "
    "where it was asked for"
)
WARDS = "builtin:wards"
_WARD_PATIENTS = 400  # in a hospital; three notes each


@dataclass(frozen=True)
class Setting:
    """A job ready to be audited.

    Attributes:
        job: what claims its epsilon.
        site: whose declared population counts.
        trainer: a site's, without units.
        units: encoded records, by privacy unit.
        is_private: whether they are anybody's.
    """

    job: Job
    site: str
    trainer: "Trainer"
    units: "list[list[Example]]"
    is_private: bool

    @property
    def code_sha256(self) -> str:
        """The code that runs here."""
        return code_sha256()

    @property
    def delta(self) -> float:
        """Of the claim."""
        return self.job.privacy.delta or 0.0

    @property
    def event(self) -> GaussianSteps:
        """All of the job's steps."""
        mechanism = self.trainer.mechanism
        return GaussianSteps(mechanism.sampling_rate, mechanism.noise_multiplier, self.job.steps)

    @cached_property
    def epsilon(self) -> float:
        """What the job costs, recomputed from its parameters."""
        from common.privacy.accounting import epsilon

        return epsilon([self.event], self.delta)

    @property
    def step_epsilon(self) -> float:
        """What one step costs that samples everybody."""
        from common.audit.gaussian import gaussian_epsilon

        return gaussian_epsilon(1 / self.event.noise_multiplier, self.delta)

    def bound_by_noise(self, mu: float, most: float) -> float:
        """The job's epsilon were its steps mu-GDP before sampling; at most ``most``."""
        from common.privacy.accounting import epsilon

        if mu <= 0:
            return 0.0
        found = epsilon([replace(self.event, noise_multiplier=1 / mu)], self.delta)
        return min(found, most)


def set_up(path: Path, site: str) -> Setting:
    """Read the job and load its base; no records yet.

    Raises:
        InvalidInput: a fault of the job, or a job without privacy.
        JobRefused: another base under its name.
    """
    from client.auditing import trainer_of
    from common.adapter import load_adapter
    from common.model import require_base

    job = load_job(path)
    require_site(job, site)
    if not job.is_private:
        raise InvalidInput("privacy.mode must be one that promises something, got none")
    adapter = load_adapter(job, require_base(job), "cpu")
    return Setting(job, site, trainer_of(job, adapter, site), [], is_private=False)


def with_records(setting: Setting, records: Path | None) -> Setting:
    """The same with as many units as the site declared, at the most: the public ones or a file's.

    Raises:
        InvalidInput: a fault of the file.
    """
    job = setting.job
    units = encoded(job, setting.trainer, _records(job, records))
    return replace(
        setting, units=units[: job.data.population[setting.site]], is_private=records is not None
    )


def _records(job: Job, given: Path | None) -> list[Record]:
    if given is not None:
        if not given.is_file():
            raise InvalidInput(f"records must be a readable file, got {given}")
        return catalogue.load(str(given), columns=job.hold_out_columns)
    return public_records(job)


def public_records(job: Job, seed: int = 0) -> list[Record]:
    """Records that anybody may read, of the kind that the job learns from.

    Of the synthetic wards as many as one likes, by ``seed``; else the public hold-out set.
    """
    name = job.evaluation.data
    if name != WARDS:
        held_out = catalogue.load(name, job.evaluation.split, job.hold_out_columns)
        # Public rows need not belong to anybody: each is then a unit of its own.
        return [replace(r, unit=r.unit or f"row {i}") for i, r in enumerate(held_out)]
    notes = wards.generate("train", seed=seed, patients_per_hospital=_WARD_PATIENTS)
    by_word = bool(job.hold_out_columns.words)
    return [
        replace(note, label="") if by_word else replace(note, words=(), tags=()) for note in notes
    ]


def encoded(job: Job, trainer: "Trainer", records: Sequence[Record]) -> "list[list[Example]]":
    """The records as the job's units, encoded.

    Raises:
        InvalidInput: a label that the job does not know, or a row without a unit.
    """
    from common.tasks import task_of

    units = privacy_units(records, job.privacy.unit)
    require_labels((record for unit in units for record in unit), job.data.labels, "records")
    task = task_of(job)
    return [task.encode(trainer.adapter.tokenizer, unit, job) for unit in units]


def level_of(significance: float, runs: int) -> float:
    """Each run's share of the significance (Bonferroni).

    Raises:
        InvalidInput: no significance, or no runs.
    """
    if not 0 < significance < 0.5:
        raise InvalidInput(f"significance must be in (0, 0.5), got {significance}")
    if not 1 <= runs <= 100_000:
        raise InvalidInput(f"runs must be 1 to 100000, got {runs}")
    return significance / runs


def finish(
    report: AuditReport, lines: Sequence[tuple[str, str]], out: Path | None, *, as_json: bool
) -> None:
    """Write the report where it was asked for, show it, and end with 1 where a claim is refuted."""
    import typer

    if out is not None:
        write_report(out, report)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _show(report, lines, out)
    if report.verdict == REFUTED:
        raise typer.Exit(FAILED)


def _show(report: AuditReport, lines: Sequence[tuple[str, str]], out: Path | None) -> None:
    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    claim = f"epsilon {report.epsilon:.3f} at delta {report.delta:g}, for all steps"
    level = f"{report.significance:g} over {report.runs} run{'s' * (report.runs > 1)}"
    rows = [
        ("the job claims", claim),
        *lines,
        ("so of the job refuted below", f"epsilon {_figure(report.lower_bound)}"),
        ("significance", level),
    ]
    for name, words in rows:
        table.add_row(name, Text(words))
    console.print(table)
    good = report.verdict == CONSISTENT
    console.print(Text(f"\n{report.verdict}", "green" if good else "bold red"))
    if out is not None:
        console.print(Text(f"report: {out}"))


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "no bound"
