"""The outcome of a run as ``result.json``: what was learned, what it cost, and by which mechanism.

Every epsilon in it can be recomputed from the mechanism and the steps beside it; ``fl-audit
result`` does so. Where nothing is promised epsilon and delta are null, because JSON has no
infinity.

Not covered: that the sites ran the steps that it states.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from common.config import (
    RECORD,
    SCORES,
    VERSION_PATTERN,
    Name,
    Section,
    Sha256,
    TaskName,
    parse,
)
from common.errors import InvalidInput
from common.files import write_file
from common.job import Job, Label, Reason
from common.measured import MetricsResult
from common.privacy import accounting
from common.privacy.accounting import GaussianSteps
from common.strict_json import read_json
from common.words import public_name

MAX_RESULT_BYTES = 32 * 1024 * 1024
MOST_NOISE = 2.0**20  # more than any job is calibrated to, and within what accountants can square

Share = Annotated[float, Field(ge=0, le=1)]
Epsilon = Annotated[float, Field(ge=0)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Record(Section):
    """A part of the file: a number is a number there, not a string that looks like one."""

    model_config = ConfigDict(strict=True)


class SiteResult(_Record):
    """What a site spent: DP-SGD steps charged to it, releases of counts, and their epsilon."""

    name: Name
    epsilon: Epsilon | None
    delta: Delta | None
    steps: Count
    counts: Annotated[int, Field(ge=0, le=1)] = 0


class Quality(_Record):
    """How good an adapter is on the public hold-out; null where it was not measured.

    ``entity_f1`` takes accuracy's place where words get tags: most words are of no entity.
    """

    accuracy: Share | None
    macro_f1: Share | None
    entity_f1: Share | None = None

    @property
    def score(self) -> float | None:
        """What the task is judged by."""
        return self.accuracy if self.entity_f1 is None else self.entity_f1


class HoldOutDeclared(_Record):
    """Which public set the scores are of, and the operator's reason that no site's unit is in it.

    Null where the operator declared nothing. ``checked_by`` says how much that is worth.
    """

    data: Annotated[str, Field(min_length=1, max_length=500)]
    split: Literal["train", "dev", "test"]
    disjoint_because: Reason | None
    checked_by: Literal["nobody"] = "nobody"


class StartResult(Quality):
    """The untrained adapter."""


class RoundResult(Quality):
    """The state after a round, from 1 on.

    ``epsilon`` is that of the site that has spent most by then. ``bytes_up`` and ``bytes_down`` are
    of all sites' messages in the round, as Flower serialises them; the latter is absent where an
    earlier version closed the round.
    """

    round: Annotated[int, Field(ge=1)]
    epsilon: Epsilon | None
    bytes_up: Count
    bytes_down: Count | None = None
    seconds: Annotated[float, Field(ge=0)]


class ClassResult(_Record):
    """One label, or kind of entity, on the public hold-out; ``support`` counts them there."""

    label: Label
    precision: Share
    recall: Share
    f1: Share
    support: Count


class EntitiesResult(_Record):
    """All entities together, as seqeval counts them by default, and F1 in its strict mode.

    Words beyond the longest text that the model takes, ``words_cut``, count as being of no entity.
    """

    precision: Share
    recall: Share
    f1: Share
    strict_f1: Share
    words: Count
    words_cut: Count


class FinalResult(Quality):
    """The adapter that was kept."""

    entities: EntitiesResult | None = None
    classes: Annotated[tuple[ClassResult, ...], Field(strict=False)]


class PrivacyStatement(_Record):
    """The mechanism that ran at every site, complete enough to recompute epsilon from."""

    mode: Literal["site", "none"]
    unit: Name
    unit_cap: Annotated[int, Field(ge=1, lt=2**53)] | None = None
    neighbours: Literal["add-or-remove-one"]
    sampler: Literal["poisson"]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    clip_norm: Annotated[float, Field(gt=0)] | None
    noise_multiplier: Annotated[float, Field(ge=0, le=MOST_NOISE)]
    local_steps: Annotated[int, Field(ge=1, lt=2**53)]
    delta: Delta | None
    accountant: Literal["pld"]
    accountant_version: Annotated[str, Field(pattern=rf"^dp-accounting {VERSION_PATTERN}\z")]
    seeded: bool
    metrics_noise_multiplier: Annotated[float, Field(gt=0, le=MOST_NOISE)] | None = None

    @property
    def is_private(self) -> bool:
        """Whether the run promises anything: noise that a seed can repeat can be subtracted."""
        return self.mode != "none" and not self.seeded

    def spent(self, steps: int) -> GaussianSteps:
        """The mechanism of ``steps`` executed steps, for an accountant."""
        return GaussianSteps(self.sampling_rate, self.noise_multiplier, steps)

    def events(self, steps: int, counts: int = 0) -> tuple[GaussianSteps, ...]:
        """The same, with so many releases of counts beside it.

        Raises:
            InvalidInput: there are counts and no noise for them.
        """
        if not counts:
            return (self.spent(steps),)
        if self.metrics_noise_multiplier is None:
            raise InvalidInput("privacy.metrics_noise_multiplier must be given, got none")
        return self.spent(steps), GaussianSteps(1.0, self.metrics_noise_multiplier, counts)

    def epsilon(self, steps: int, counts: int = 0) -> float | None:
        """What ``steps`` cost at the stated delta, and counts with them; None without noise.

        For seeded noise this is the figure that the same run would have with fresh noise.
        """
        if self.mode == "none" or self.delta is None:
            return None
        return accounting.epsilon(self.events(steps, counts), self.delta)

    @model_validator(mode="after")
    def _cap_belongs_to_units(self) -> Self:
        if (self.unit_cap is None) != (self.unit == RECORD):
            rule = "null" if self.unit == RECORD else "given"
            raise ValueError(
                f"privacy.unit_cap must be {rule} with unit {self.unit!r}, got {self.unit_cap}"
            )
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        with_noise = self.mode != "none"
        given = {
            "clip_norm": self.clip_norm is not None,
            "delta": self.delta is not None,
            "noise_multiplier": self.noise_multiplier > 0,
        }
        for name, is_given in given.items():
            if is_given != with_noise:
                rule = "given" if with_noise else "null or 0"
                raise ValueError(
                    f"privacy.{name} must be {rule} with mode {self.mode!r}, "
                    f"got {getattr(self, name)}"
                )
        return self


class Result(_Record):
    """A whole ``result.json``.

    ``kept_round`` is the round whose adapter was kept, where that need not be the last.
    ``adapter_sha256`` is of the file, ``vector_sha256`` of its numbers as rounds' receipts name
    them (common/receipt.py).
    """

    job_sha256: Sha256
    name: Name
    task: TaskName
    grid: Literal["inprocess", "link", "ray", "stacked", "superlink"]
    private: bool
    sites: Annotated[tuple[SiteResult, ...], Field(strict=False, min_length=1)]
    start: StartResult | None
    rounds: Annotated[tuple[RoundResult, ...], Field(strict=False, min_length=1)]
    kept_round: Annotated[int, Field(ge=1)] | None = None
    final: FinalResult
    hold_out: HoldOutDeclared | None = None
    privacy: PrivacyStatement
    metrics: MetricsResult | None = None
    seconds: Annotated[float, Field(ge=0)]
    adapter_sha256: Sha256
    vector_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.private != self.privacy.is_private:
            raise ValueError(
                f"private must be {self.privacy.is_private} with mode {self.privacy.mode!r} and "
                f"seeded {self.privacy.seeded}, got {self.private}"
            )
        _check_claims(self)
        _check_distinct("sites", [site.name for site in self.sites])
        _check_distinct("final.classes", [row.label for row in self.final.classes])
        numbers = [row.round for row in self.rounds]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"rounds must be in ascending order, got {numbers[:20]}")
        if self.kept_round is not None and self.kept_round not in numbers:
            raise ValueError(f"kept_round must be one of the rounds, got {self.kept_round}")
        _check_quality(self)
        _check_metrics(self)
        return self

    @property
    def measure(self) -> str:
        """What ``score`` is a figure of."""
        return SCORES[self.task]

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of any site."""
        spent = [site.epsilon for site in self.sites if site.epsilon is not None]
        return max(spent, default=None)

    @property
    def bytes_up(self) -> int:
        """That all sites sent in all rounds."""
        return sum(row.bytes_up for row in self.rounds)

    @property
    def bytes_down(self) -> int | None:
        """That were sent to them; ``None`` where some round does not say."""
        sizes = [row.bytes_down for row in self.rounds if row.bytes_down is not None]
        return sum(sizes) if len(sizes) == len(self.rounds) else None

    @property
    def last_round(self) -> int:
        """Rounds that were closed."""
        return self.rounds[-1].round


def _check_claims(result: Result) -> None:
    """Each epsilon is given where something is promised, and null where there is no noise."""
    claims = [(f"sites.{site.name}", site.epsilon, site.delta) for site in result.sites]
    delta = result.privacy.delta
    claims += [(f"rounds.{row.round}", row.epsilon, delta) for row in result.rounds]
    for where, epsilon, at in claims:
        if result.privacy.mode == "none" and (epsilon, at) != (None, None):
            raise ValueError(f"{where}.epsilon must be null without privacy, got {epsilon}, {at}")
        if result.private and (epsilon is None or at is None):
            raise ValueError(f"{where}.epsilon must be given with privacy, got {epsilon}, {at}")


def _check_quality(result: Result) -> None:
    """Accuracy is a figure of texts, entity F1 one of words."""
    of_words = result.task == "token-cls"
    final = result.final
    if (final.entities is not None, final.entity_f1 is not None) != (of_words, of_words):
        rule = "given" if of_words else "null"
        raise ValueError(f"final.entities and entity_f1 must be {rule} with task {result.task!r}")
    if (final.accuracy is None) != of_words or final.macro_f1 is None:
        raise ValueError(f"final.accuracy and macro_f1 must be those of task {result.task!r}")


def _check_metrics(result: Result) -> None:
    """Counts are charged and stated where the job has them, and nowhere else."""
    has_noise = result.privacy.metrics_noise_multiplier is not None
    if has_noise != (result.metrics is not None):
        raise ValueError("metrics must be given with privacy.metrics_noise_multiplier alone")
    charged = {site.name for site in result.sites if site.counts}
    stated = result.metrics
    asked = {one.site for one in stated.sites} | set(stated.silent) if stated else set()
    if charged != asked:
        raise ValueError(f"sites.counts must be 1 where metrics names a site, got {charged}")


def _check_distinct(name: str, values: list[str]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must be distinct, got one of {len(values)} twice")


def hold_out_declared(job: Job) -> HoldOutDeclared:
    """What a job says of its public hold-out."""
    asked = job.evaluation
    return HoldOutDeclared(
        data=public_name(asked.data), split=asked.split, disjoint_because=asked.disjoint_because
    )


def privacy_statement(job: Job, *, seeded: bool) -> PrivacyStatement:
    """State a job's mechanism; ``seeded`` is true where noise or sampling came from a seed."""
    return PrivacyStatement(
        mode=job.privacy.mode,
        unit=job.privacy.unit,
        unit_cap=job.privacy.unit_cap,
        neighbours="add-or-remove-one",
        sampler="poisson",
        sampling_rate=job.privacy.sampling_rate,
        clip_norm=job.privacy.clip_norm,
        noise_multiplier=job.noise_multiplier,
        local_steps=job.training.local_steps,
        delta=job.privacy.delta,
        accountant="pld",
        accountant_version=f"dp-accounting {version('dp-accounting')}",
        seeded=seeded,
        metrics_noise_multiplier=(
            None if job.metrics_event is None else job.metrics_event.noise_multiplier
        ),
    )


def site_result(
    name: str, steps: int, privacy: PrivacyStatement, *, is_counted: bool = False
) -> SiteResult:
    """A site's line, its epsilon computed from the ``steps`` and counts charged to it."""
    counts = int(is_counted)
    epsilon = privacy.epsilon(steps, counts)
    return SiteResult(name=name, epsilon=epsilon, delta=privacy.delta, steps=steps, counts=counts)


def to_json(result: Result) -> str:
    """The file's text; a file of an earlier version is written as it was."""
    unsaid: dict[str, Any] = {} if result.hold_out is not None else {"hold_out": True}
    unsaid["rounds"] = {
        i: {"bytes_down"} for i, row in enumerate(result.rounds) if row.bytes_down is None
    }
    content = result.model_dump(mode="json", exclude=unsaid)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_result(result: Result, path: Path) -> None:
    """Write ``result.json`` so that a crash leaves the old file or the new one, whole.

    Raises:
        StorageFailed: the disk refused.
    """
    write_file(path, to_json(result).encode(), mode=0o644)


def read_result(path: Path) -> Result:
    """Read a ``result.json`` of at most 32 MiB.

    Raises:
        InvalidInput: missing, too large, no JSON, or not a result; every fault by its key.
    """
    return parse(Result, _read_table(path), path.name)


def _read_table(path: Path) -> dict[str, Any]:
    table = read_json(path, max_bytes=MAX_RESULT_BYTES)
    if not isinstance(table, dict):
        raise InvalidInput(f"{path.name} must be a JSON object, got {type(table).__name__}")
    return table


def schema() -> str:
    """The JSON schema of ``result.json``, as ``docs/result.schema.json`` holds it."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Result.model_json_schema(),
    }
    # ECMA-262, the dialect of JSON schema, has no \z; its $ is the very end already.
    return json.dumps(document, indent=2).replace("\\\\z", "$") + "\n"
