"""A scenario: a job file, and how public data is dealt out to the sites that it names.

A scenario is a job (what ``fl-server submit`` takes) with an optional ``[simulation]`` table. Data
that has no groups of its own for the job's sites is dealt out anew; labels and populations are then
counted from it, which nobody's privacy hangs on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from common.config import RECORD, Section, parse, parse_toml, read_toml
from common.data import catalogue, wards
from common.data.records import Record
from common.data.tagging import tag_set
from common.data.units import privacy_units
from common.errors import InvalidInput
from common.job import Job, with_absolute_paths
from common.model import content_hash
from common.words import counted
from simulations.absence import NOBODY, Absence
from simulations.partitions import MAX_SITES, partition, site_names

WARDS = "builtin:wards"
NATURAL = "natural"
FOLDER = Path(__file__).resolve().parent / "scenarios"
DEFAULT = FOLDER / "hospital.toml"
_SIMULATION = "simulation."
SEEDS = frozenset({"adapter.seed", "simulation.seed"})  # that --seed sets both


class SimulationSection(Section):
    """What a deployment's sites bring and a simulation must make."""

    data: str = WARDS
    partition: str = ""
    seed: int = Field(default=0, ge=0)
    records: int | None = Field(default=None, ge=1)
    participation: float = Field(default=1.0, gt=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    stragglers: float = Field(default=0.0, ge=0, lt=1)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line changes in a scenario; ``None`` leaves it."""

    sites: int | None = None
    data: str | None = None
    partition: str | None = None
    seed: int | None = None
    records: int | None = None
    no_privacy: bool = False
    values: Mapping[str, object] = field(default_factory=dict)  # "section.key" -> value


@dataclass(frozen=True)
class Scenario:
    """A job, the records of each of its sites, and who of them is away when."""

    job: Job
    records: dict[str, list[Record]]
    seed: int
    absence: Absence = NOBODY


def load_scenario(path: Path, options: Options) -> Scenario:
    """Read a scenario and deal its data out.

    Raises:
        InvalidInput: every fault of the file or the options.
    """
    raw = with_absolute_paths(read_toml(path), path.resolve().parent)
    section = parse(SimulationSection, _simulation(raw, options), path.name)
    table = _table(raw, "data")
    names = _names(table, options)
    records, is_natural = _deal(section, names)
    _apply(raw, options, len(names))
    unit = str(_table(raw, "privacy").get("unit", RECORD))
    if (
        options.sites
        or options.data
        or unit != RECORD
        or not is_natural
        or "population" not in table
    ):
        table["population"] = {
            name: len(privacy_units(rows, unit)) for name, rows in records.items()
        }
    task = str(_table(raw, "job").get("task", "seq-cls"))
    if options.data or "job.task" in options.values or "labels" not in table:
        table["labels"] = _labels(section.data, task, records)
    job = parse(Job, raw, path.name)
    return Scenario(job, records, section.seed, _absence(section, job))


def _absence(section: SimulationSection, job: Job) -> Absence:
    absence = Absence(section.participation, section.dropout, section.stragglers)
    asked, quorum = absence.asked(len(job.sites)), job.training.quorum
    if quorum > asked:
        raise InvalidInput(
            f"training.quorum must be at most the {asked} sites that simulation.participation "
            f"{absence.participation:g} asks, got {quorum}"
        )
    return absence


def hold_out_sha256(job: Job) -> str:
    """Of the file that the public hold-out is read from; empty where this code makes or pins it.

    Raises:
        InvalidInput: the file cannot be read.
    """
    data = job.evaluation.data
    is_named = data in catalogue.names()
    path = catalogue.local_path(data, job.evaluation.split) if is_named else Path(data).expanduser()
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(f"hold-out must be a file, got {path}: {error.strerror}") from error


def shared_with_hold_out(scenario: Scenario) -> int:
    """How many records of the public hold-out are a site's as well, word by word or by their unit.

    Both are public here, so their hashes may be compared. Of private records nobody may: whether
    one of them is in a public set is a fact about it.
    """
    job = scenario.job
    held = catalogue.load(job.evaluation.data, job.evaluation.split, job.hold_out_columns)
    records = [record for rows in scenario.records.values() for record in rows]
    at_sites = {_digest(record) for record in records}
    units = {record.unit for record in records if job.privacy.unit != RECORD} - {""}
    return sum(_digest(record) in at_sites or record.unit in units for record in held)


def require_declared_truly(scenario: Scenario, shared: int) -> None:
    """Check that the declaration of a disjoint hold-out is true, as only a simulation can.

    Raises:
        InvalidInput: ``shared`` of its records are a site's as well.
    """
    if shared and scenario.job.evaluation.disjoint_because is not None:
        raise InvalidInput(
            "evaluation.disjoint_because must be absent where the hold-out shares a unit with a "
            f"site, got it with {counted(shared, 'record')} in both"
        )


def _digest(record: Record) -> bytes:
    # Of words too the text is all of them; made notes have both, a file's one or the other.
    return hashlib.sha256(record.text.encode()).digest()


def _simulation(raw: dict[str, Any], options: Options) -> dict[str, Any]:
    """The ``[simulation]`` table with its defaults from the job, and the options over it."""
    given = raw.pop("simulation", {})
    if not isinstance(given, dict):
        raise InvalidInput(f"simulation must be a table, got {given!r}")
    section = {"data": _table(raw, "evaluation").get("data", WARDS), **given}
    for key in ("data", "partition", "seed", "records"):
        if getattr(options, key) is not None:
            section[key] = getattr(options, key)
    section |= {
        name.removeprefix(_SIMULATION): value
        for name, value in options.values.items()
        if name.startswith(_SIMULATION)
    }
    if options.data:
        _table(raw, "evaluation")["data"] = options.data
    if options.data or {"evaluation.data", "evaluation.split"} & set(options.values):
        _table(raw, "evaluation").pop(
            "disjoint_because", None
        )  # the file's words are of its own set
    return section


def _table(raw: dict[str, Any], name: str) -> dict[str, Any]:
    table = raw.setdefault(name, {})
    if not isinstance(table, dict):
        raise InvalidInput(f"{name} must be a table, got {table!r}")
    return table


def _names(table: Mapping[str, Any], options: Options) -> tuple[str, ...]:
    if options.sites is not None:
        if not 1 <= options.sites <= MAX_SITES:
            raise InvalidInput(f"sites must be 1 to {MAX_SITES}, got {options.sites}")
        return site_names(options.sites)
    population = table.get("population")
    return tuple(population) if isinstance(population, dict) and population else site_names(3)


def _deal(section: SimulationSection, names: Sequence[str]) -> tuple[dict[str, list[Record]], bool]:
    """Records by site, and whether they are the sites' own by nature."""
    records, has_groups = _records(section, names)
    how = section.partition or (NATURAL if has_groups else "dirichlet:0.5")
    return partition(records, how, names, section.seed), how == NATURAL


def _records(section: SimulationSection, names: Sequence[str]) -> tuple[list[Record], bool]:
    """The training records, and whether each of ``names`` is a group of its own among them."""
    natural = section.data == WARDS and len(names) <= len(wards.HOSPITALS)
    records: Sequence[Record]
    if section.data == WARDS:
        records = _notes(section.seed, tuple(names) if natural else tuple(wards.HOSPITALS))
    elif section.data in catalogue.names():
        records = _published(section.data, catalogue.local_path(section.data, "train"))
    else:
        records = catalogue.load(section.data, "train")
    if section.records is not None and section.records < len(records):
        step = len(records) / section.records
        records = [records[int(i * step)] for i in range(section.records)]
    return list(records), natural


@lru_cache(maxsize=4)
def _notes(seed: int, hospitals: tuple[str, ...]) -> tuple[Record, ...]:
    """Made once for a sweep's settings under a seed, which then share them in memory."""
    return tuple(wards.generate("train", seed=seed, hospitals=hospitals))


@lru_cache(maxsize=4)
def _published(data: str, path: Path | None) -> tuple[Record, ...]:
    """A set that does not change, read once where it lies at ``path`` (``None``: not here yet)."""
    del path
    return tuple(catalogue.load(data, "train"))


def _labels(data: str, task: str, records: Mapping[str, list[Record]]) -> list[str]:
    if data == WARDS:
        return list(wards.TAG_SET if task == "token-cls" else wards.LABELS)
    if task != "token-cls":
        return sorted({record.label for rows in records.values() for record in rows})
    tags = {tag for rows in records.values() for record in rows for tag in record.tags}
    return list(tag_set(sorted({tag[2:] for tag in tags} - {""})))


def _apply(raw: dict[str, Any], options: Options, sites: int) -> None:
    """Put the options into the job, and what follows from them."""
    for dotted, value in options.values.items():
        if dotted.startswith(_SIMULATION):
            continue
        section, _, key = dotted.partition(".")
        if not key:
            raise InvalidInput(f"option must be SECTION.KEY=VALUE, got {dotted!r}")
        _table(raw, section)[key] = value
    if options.values.get("privacy.unit") == RECORD:
        _table(raw, "privacy").pop("unit_cap", None)  # of another unit, as the file has it
    if options.seed is not None and "adapter.seed" not in options.values:
        _table(raw, "adapter")["seed"] = options.seed
    if options.no_privacy:
        privacy = _table(raw, "privacy")
        privacy["mode"] = "none"
        for key in ("epsilon", "delta", "clip_norm"):
            privacy.pop(key, None)
        raw.pop("metrics", None)  # counts leave with noise or not at all
    training = _table(raw, "training")
    if isinstance(training.get("quorum"), int):
        training["quorum"] = min(training["quorum"], sites)
    model = _table(raw, "model")
    if "sha256" not in model and isinstance(model.get("base"), str):
        model["sha256"] = content_hash(model["base"], str(model.get("revision", "")))


def parse_value(text: str) -> tuple[str, object]:
    """``SECTION.KEY=VALUE`` as its name and its TOML value; a bare word is a string.

    Raises:
        InvalidInput: there is no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"option must be SECTION.KEY=VALUE, got {text!r}")
    try:
        written = f"value = {value}".encode(errors="surrogateescape")
        return name.strip(), parse_toml(written, name)["value"]
    except InvalidInput:
        return name.strip(), value
