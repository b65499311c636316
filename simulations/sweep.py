"""Many runs of one scenario: every combination of some settings, each under several seeds.

A run is known by all that its result follows from, so a sweep that was killed goes on where it
stopped, and one whose scenario, data or grid was changed runs anew. Nothing is run before every
combination has been found possible.

Not covered: choosing the next setting by the results so far; on private data each run would be
charged.
"""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from common.config import Section, parse
from common.errors import InvalidInput, Refusal, StorageFailed
from common.files import make_folder, write_file
from common.result import Result, read_result
from common.strict_json import read_json
from simulations.axes import EPSILON, MOST_RUNS, NONE, Setting, in_words, settings
from simulations.scenario import SEEDS, Options, Scenario, hold_out_sha256, load_scenario

# (scenario, where its homes go) -> the outcome folder.
Run = Callable[[Scenario, Path], Path]
_RESULT, _FAILED = "result.json", "failed.json"
_MOST_REASON = 64 * 1024  # bytes of a file that holds one


class Failed(Section):
    """Why a run came to no result: its job could not end."""

    reason: str


Outcome = Result | Failed


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: what is varied in it, the seed, the scenario that follows, and ``how``.

    ``how`` is the grid, and whose the noise is where the grid leaves that open.
    """

    setting: Setting
    seed: int
    scenario: Scenario
    how: str = "stacked"

    @cached_property
    def name(self) -> str:
        """Of all that its result follows from.

        That is its job, how it is run, the hold-out's file, who is away when, and its records
        (another partition may give the same job).
        """
        scenario = self.scenario
        digest = hashlib.sha256(scenario.job.canonical)
        digest.update(f"\n{self.how}\n{hold_out_sha256(scenario.job)}".encode())
        if not scenario.absence.is_nobody:
            digest.update(f"\n{scenario.absence} {self.seed}".encode())
        for site, records in sorted(scenario.records.items()):
            digest.update(f"\n{site}\n{records!r}".encode())
        return digest.hexdigest()[:16]

    @property
    def words(self) -> str:
        """The setting as people read it."""
        return ", ".join(
            f"{name.rpartition('.')[2]} {in_words(value)}" for name, value in self.setting
        )


def plan(
    path: Path, options: Options, axes: Sequence[str], seeds: int, how: str = "stacked"
) -> list[Cell]:
    """Every run of the sweep, seed after seed, so that a sweep cut short has whole comparisons.

    Raises:
        InvalidInput: what is wrong with any combination, all of them at once; two that are one.
    """
    if not 1 <= seeds <= MOST_RUNS:
        raise InvalidInput(f"--seeds must be 1 to {MOST_RUNS}, got {seeds}")
    if fixed := sorted(SEEDS & set(options.values)):
        raise InvalidInput(
            f"--set {fixed[0]} must be absent with --sweep and --seeds (--seed is the first of "
            f"them, and sets all that is drawn), got {options.values[fixed[0]]}"
        )
    found = settings(axes, seeds)
    if options.no_privacy and any(key == EPSILON for setting in found for key, _ in setting):
        raise InvalidInput(
            f"--sweep {EPSILON} must be absent with --no-privacy ({NONE} is one of its values), "
            "got both"
        )
    first, cells, wrong = options.seed or 0, [], []
    for seed, setting in itertools.product(range(first, first + seeds), found):
        try:
            loaded = load_scenario(path, _with(options, setting, seed))
            cells.append(Cell(setting, seed, loaded, how))
        except InvalidInput as error:
            wrong.append(str(error))
    if wrong:
        raise InvalidInput("; ".join(dict.fromkeys(wrong)))
    _require_distinct(cells)
    return cells


def _require_distinct(cells: Sequence[Cell]) -> None:
    """Check that no run is another one under a name of its own, as if both had been tried."""
    known: dict[str, Cell] = {}
    for cell in cells:
        same = known.setdefault(cell.name, cell)
        if same is not cell:
            raise InvalidInput(
                f"sweep must make every setting another run, got the same one for {same.words} and "
                f"{cell.words} (KEY=A+OTHER=B ties a key to a value)"
            )


def _with(options: Options, setting: Setting, seed: int) -> Options:
    values = {**options.values, **dict(setting)}
    is_without = values.get(EPSILON) == NONE
    if is_without:
        del values[EPSILON]
    no_privacy = options.no_privacy or is_without
    return replace(options, seed=seed, values=values, no_privacy=no_privacy)


def perform(
    cells: Sequence[Cell], out: Path, run: Run, told: Callable[[Cell, bool], None]
) -> list[tuple[Cell, Outcome]]:
    """Run what has no outcome under ``out`` yet; every cell with its own.

    A job that cannot end, as where updates diverge, is an outcome too, and kept like one.

    Args:
        cells: of the sweep.
        out: where each run has a folder of its own.
        run: does one.
        told: of each cell, and whether its outcome was there already, before it is run.

    Raises:
        StorageFailed: the disk refused.
    """
    found = []
    for cell in cells:
        folder = out / cell.name
        known = _read(folder)
        told(cell, known is not None)
        if known is None:
            _run_into(folder, cell, run)
            known = _read(folder)
        if known is None:
            raise StorageFailed(f"{folder} must hold a run's outcome, got none")
        found.append((cell, known))
    return found


def _read(folder: Path) -> Outcome | None:
    if (folder / _RESULT).is_file():
        return read_result(folder / _RESULT)
    if (folder / _FAILED).is_file():
        content = read_json(folder / _FAILED, max_bytes=_MOST_REASON)
        return parse(Failed, content if isinstance(content, dict) else {}, _FAILED)
    return None


def _run_into(folder: Path, cell: Cell, run: Run) -> None:
    """A run's result and report, or why there is none; whole or not at all."""
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix="veiltune-") as work:
        outcome, names = _attempt(cell, run, Path(work))
        aside = folder.with_suffix(".tmp")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for name in names:
                shutil.copy(outcome / name, aside / name)
            os.replace(aside, folder)
        except OSError as error:
            raise StorageFailed(f"{folder} must be writable, got: {error.strerror}") from error


def _attempt(cell: Cell, run: Run, work: Path) -> tuple[Path, tuple[str, ...]]:
    """Where what a run leaves is, and what of it is kept."""
    try:
        return run(cell.scenario, work), ("report.html", _RESULT)
    except Refusal as error:
        write_file(work / _FAILED, json.dumps({"reason": str(error)[:4000]}).encode(), mode=0o644)
        return work, (_FAILED,)
