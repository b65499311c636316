"""Many runs of one scenario: every combination of some settings, each under several seeds.

A run is known by its job and records, so a sweep that was killed goes on where it stopped, and one
whose scenario was changed runs anew. Nothing is run before every combination has been found
possible.

Not covered: choosing the next setting by the results so far; on private data each run would be
charged.
"""

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InvalidInput, StorageFailed
from common.files import make_folder
from common.result import Result, read_result
from simulations.scenario import Options, Scenario, load_scenario, parse_value

MOST_RUNS = 10_000
EPSILON, NONE = "privacy.epsilon", "none"

Setting = tuple[tuple[str, object], ...]
# (scenario, where its homes go) -> the outcome folder.
Run = Callable[[Scenario, Path], Path]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: what is varied in it, the seed, and the scenario that follows."""

    setting: Setting
    seed: int
    scenario: Scenario

    @property
    def name(self) -> str:
        """Of its job, its records (another partition may give the same job) and who is away."""
        digest = hashlib.sha256(self.scenario.job.canonical)
        if not self.scenario.absence.is_nobody:
            digest.update(f"\n{self.scenario.absence} {self.seed}".encode())
        for site, records in sorted(self.scenario.records.items()):
            digest.update(f"\n{site}\n{records!r}".encode())
        return digest.hexdigest()[:16]

    @property
    def words(self) -> str:
        """The setting as people read it."""
        return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in self.setting)


def parse_axis(text: str) -> tuple[str, tuple[object, ...]]:
    """``SECTION.KEY=A,B,C`` as its name and values.

    >>> parse_axis("privacy.epsilon=1,8,none")
    ('privacy.epsilon', (1, 8, 'none'))

    Raises:
        InvalidInput: no ``=``, no value, or one twice.
    """
    name, _, listed = text.partition("=")
    parts = [part.strip() for part in listed.split(",")]
    if not listed or "" in parts or len(set(parts)) < len(parts):
        raise InvalidInput(f"--sweep must be SECTION.KEY=A,B,... of distinct values, got {text!r}")
    return name.strip(), tuple(parse_value(f"{name}={part}")[1] for part in parts)


def plan(path: Path, options: Options, axes: Sequence[str], seeds: int) -> list[Cell]:
    """Every run of the sweep, seed after seed, so that a sweep cut short has whole comparisons.

    Raises:
        InvalidInput: what is wrong with any combination, all of them at once.
    """
    if not 1 <= seeds <= MOST_RUNS:
        raise InvalidInput(f"--seeds must be 1 to {MOST_RUNS}, got {seeds}")
    named = [parse_axis(text) for text in axes]
    settings = list(_settings(named))
    if len(settings) * seeds > MOST_RUNS:
        raise InvalidInput(f"sweep must have at most {MOST_RUNS} runs, got {len(settings) * seeds}")
    first, cells, wrong = options.seed or 0, [], []
    for seed, setting in itertools.product(range(first, first + seeds), settings):
        try:
            cells.append(Cell(setting, seed, load_scenario(path, _with(options, setting, seed))))
        except InvalidInput as error:
            wrong.append(str(error))
    if wrong:
        raise InvalidInput("; ".join(dict.fromkeys(wrong)))
    return cells


def _settings(named: Sequence[tuple[str, tuple[object, ...]]]) -> Iterator[Setting]:
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise InvalidInput(f"--sweep must name each key once, got {', '.join(names)}")
    for values in itertools.product(*(values for _, values in named)):
        yield tuple(zip(names, values, strict=True))


def _with(options: Options, setting: Setting, seed: int) -> Options:
    values = {**options.values, **dict(setting)}
    is_without = values.get(EPSILON) == NONE
    if is_without:
        del values[EPSILON]
    no_privacy = options.no_privacy or is_without
    return replace(options, seed=seed, values=values, no_privacy=no_privacy)


def perform(
    cells: Sequence[Cell], out: Path, run: Run, told: Callable[[Cell, bool], None]
) -> list[tuple[Cell, Result]]:
    """Run what has no result under ``out`` yet; every cell with its result.

    Args:
        cells: of the sweep.
        out: where each run has a folder of its own.
        run: does one.
        told: of each cell, and whether its result was there already, before it is run.

    Raises:
        StorageFailed: the disk refused.
    """
    found = []
    for cell in cells:
        folder = out / cell.name
        is_done = (folder / "result.json").is_file()
        told(cell, is_done)
        if not is_done:
            _run_into(folder, cell, run)
        found.append((cell, read_result(folder / "result.json")))
    return found


def _run_into(folder: Path, cell: Cell, run: Run) -> None:
    """A run's result and report, which are there whole or not at all."""
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix="veiltune-") as work:
        outcome = run(cell.scenario, Path(work))
        aside = folder.with_suffix(".tmp")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name in ("report.html", "result.json"):
                shutil.copy(outcome / name, aside / name)
            os.replace(aside, folder)
        except OSError as error:
            raise StorageFailed(f"{folder} must be writable, got: {error.strerror}") from error
