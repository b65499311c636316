"""Run a whole federation on one machine: ``python simulations/simulate.py [scenario.toml]``.

The two apps are those of a deployment; only the grid between them differs. With ``--grid link``
everything is real processes over mutually authenticated TLS.
"""

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: import the packages of this checkout, not modules beside this file.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from common import cli, log
from common.config import SCORES
from common.errors import InvalidInput, Refusal, StorageFailed
from common.files import make_folder
from common.result import Result, read_result
from common.words import counted
from simulations.scenario import (
    DEFAULT,
    Options,
    Scenario,
    load_scenario,
    parse_value,
    require_declared_truly,
    shared_with_hold_out,
)
from simulations.show import Cells, Rounds, summary
from simulations.sweep import Cell, perform, plan

# round, what the task is judged by
Observe = Callable[[int, float | None], None]

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(stderr=True, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the script; the exit status."""
    return cli.run(app, argv, "simulate.py")


@app.command()
def simulate(
    scenario: Annotated[
        Path, typer.Argument(help="A job file with a [simulation] table.")
    ] = DEFAULT,
    grid: Annotated[
        Literal["stacked", "ray", "inprocess", "link"],
        typer.Option(
            help="All sites in one pass, in one a Ray actor, one by one, or real ones over TLS."
        ),
    ] = "stacked",
    sites: Annotated[int | None, typer.Option(help="How many sites.")] = None,
    data: Annotated[
        str | None, typer.Option(help="builtin:wards, banking77, ... or a file.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="natural, iid, dirichlet:ALPHA, quantity:ALPHA or shards:K.")
    ] = None,
    records: Annotated[
        int | None, typer.Option(help="Take so many of the data's, evenly; all by default.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="privacy.epsilon")] = None,
    rounds: Annotated[int | None, typer.Option(help="training.rounds")] = None,
    local_steps: Annotated[int | None, typer.Option(help="training.local_steps")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="model.dtype: what the base computes in."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of data, partition and initialisation.")] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="No noise, no clipping, repeatable batches.")
    ] = False,
    seeded_noise: Annotated[
        bool,
        typer.Option("--seeded-noise", help="Noise from the seed too: repeatable, not private."),
    ] = False,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.KEY=VALUE of the job; repeatable.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="SECTION.KEY=A,B,...: run each; repeatable. Epsilon may be none; A+OTHER.KEY=X "
            "sets that with A."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Run each setting under so many seeds.")] = None,
    out: Annotated[Path, typer.Option(help="Where the outcome goes.")] = Path("veiltune-out"),
    work: Annotated[
        Path | None, typer.Option(help="Keep the homes of server and sites here.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what happens.")] = False,
) -> None:
    """Fine-tune one model at several simulated sites, and report what came of it."""
    log.configure(level="info" if verbose else "error")
    given = {
        "privacy.epsilon": epsilon,
        "training.rounds": rounds,
        "training.local_steps": local_steps,
        "model.dtype": dtype,
    }
    values = {name: value for name, value in given.items() if value is not None}
    options = Options(
        sites=sites,
        data=data,
        partition=partition,
        seed=seed,
        records=records,
        no_privacy=no_privacy,
        values=values | dict(parse_value(text) for text in setting or []),
    )
    if seeded_noise and grid == "link":
        raise InvalidInput("--seeded-noise must be used in one process, got --grid link")
    begun = time.monotonic()
    if sweep or seeds is not None:
        if work is not None:
            raise InvalidInput(f"--work must be absent with --sweep and --seeds, got {work}")
        # The stacked grid and Ray's have no noise but the seed's.
        how = f"{grid}, seeded noise" if seeded_noise and grid == "inprocess" else grid
        cells = plan(scenario, options, sweep or (), 1 if seeds is None else seeds, how)
        _warn(cell.scenario for cell in cells)
        _sweep(cells, grid, out, seeded_noise)
        return
    loaded = load_scenario(scenario, options)
    _introduce(loaded, grid)
    _warn([loaded])
    with _Work(work) as folder:
        result = _run(loaded, grid, folder, out, seeded_noise)
    summary(result, loaded.job, out, time.monotonic() - begun)


def _warn(scenarios: Iterable[Scenario]) -> None:
    """Tell of records that are in the hold-out as well, looking at each data set once.

    Raises:
        InvalidInput: a job declares that there are none.
    """
    found: dict[tuple[object, ...], int] = {}
    told: set[int] = set()
    for scenario in scenarios:
        key = _data(scenario)
        if key not in found:
            found[key] = shared_with_hold_out(scenario)
        require_declared_truly(scenario, shared := found[key])
        if shared and shared not in told:
            told.add(shared)
            console.print(
                f"[bold]hold-out[/bold]: {counted(shared, 'record')} of it at a site as well, so "
                "its scores flatter the adapter"
            )


def _data(scenario: Scenario) -> tuple[object, ...]:
    """What records of a scenario are compared by, however they are dealt out."""
    job = scenario.job
    records = frozenset(record for rows in scenario.records.values() for record in rows)
    held = job.evaluation.data, job.evaluation.split, job.hold_out_columns
    return *held, job.privacy.unit, records


def _introduce(scenario: Scenario, grid: str) -> None:
    job, privacy = scenario.job, scenario.job.privacy
    promise = (
        f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g}, "
        f"noise multiplier {job.noise_multiplier:.3f}"
        if job.is_private
        else "no privacy"
    )
    counts = ", ".join(f"{site} {len(rows)}" for site, rows in scenario.records.items())
    sites = counts if len(job.sites) <= 8 else f"{len(job.sites)} sites"
    console.print(
        f"[bold]{escape(job.job.name)}[/bold] ({grid}): {escape(sites)} records; {promise}",
        highlight=False,
    )


def _outcome(
    scenario: Scenario,
    grid: str,
    work: Path,
    observe: Observe,
    seeded: bool,
) -> Path:
    """Run the scenario on a grid; the outcome folder below ``work``."""
    from simulations import runs

    if grid == "link":
        return runs.over_link(scenario, work, observe)
    if grid == "stacked":
        return runs.stacked(scenario, work, observe)
    if grid == "ray":
        return runs.on_ray(scenario, work, observe)
    return runs.in_process(scenario, work, observe, seeded=seeded)


def _run(scenario: Scenario, grid: str, work: Path, out: Path, seeded: bool) -> Result:
    make_folder(out)
    with Rounds(console, scenario.job) as rounds:
        outcome = _outcome(scenario, grid, work, rounds, seeded)
    try:
        shutil.copytree(outcome, out, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise StorageFailed(f"outcome must be written to {out}, got: {error}") from error
    return read_result(out / "result.json")


def _sweep(cells: Sequence[Cell], grid: str, out: Path, seeded: bool) -> None:
    """Run every cell that has no outcome yet, and show where each setting stands.

    Raises:
        Refusal: no run came to a result.
    """
    from simulations import leaderboard, sweep_page

    make_folder(out)
    with Cells(console, len(cells)) as shown:

        def run(scenario: Scenario, work: Path) -> Path:
            return _outcome(scenario, grid, work, shown.round, seeded)

        found = perform(cells, out / "runs" / grid, run, shown.tell)
    job = cells[0].scenario.job.job
    measure, failed = SCORES[job.task], leaderboard.failures(found)
    best = leaderboard.standings(found)
    leaderboard.write(best, measure, out / "sweep.json", failed)
    sweep_page.write_page(best, job.name, measure, out / "sweep.html", failed)
    Console().print(leaderboard.table(best, measure, failed))
    for failure in failed:
        console.print(f"[bold]failed[/bold]   {escape(f'{failure.words}: {failure.reason}')}")
    console.print(f"page     {out / 'sweep.html'}\nresults  {out / 'sweep.json'}", highlight=False)
    if not best:
        raise Refusal(f"sweep must have a run that ends, got {counted(len(failed), 'failed run')}")


class _Work:
    """The folder of all homes: the caller's, which stays, or a temporary one, which goes."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def __enter__(self) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="veiltune-")
            return Path(self._temporary.name)
        if self._folder.exists() and any(self._folder.iterdir()):
            raise InvalidInput(f"--work must be an empty or new folder, got {self._folder}")
        make_folder(self._folder)
        return self._folder.resolve()

    def __exit__(self, *_: object) -> None:
        if self._folder is None:
            self._temporary.cleanup()


if __name__ == "__main__":
    raise SystemExit(main())
