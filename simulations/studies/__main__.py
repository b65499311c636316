"""``python -m simulations.studies methods --task banking77``: a study, from its first run.

Runs are kept in ``--out``, so that a study which was killed goes on where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from common import cli, log
from common.files import make_folder
from common.result import Result
from simulations import leaderboard, runs, sweep_page
from simulations.scenario import Scenario
from simulations.show import Cells
from simulations.studies import methods
from simulations.sweep import Cell, perform

app = typer.Typer(add_completion=False, rich_markup_mode=None)
console = Console(stderr=True, soft_wrap=True)

Out = Annotated[Path, typer.Option(help="Where runs and results go.")]
TaskName = Literal["banking77", "ade_corpus_v2"]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the module; the exit status."""
    return cli.run(app, argv, "simulations.studies")


@app.callback()
def _studies() -> None:
    """Studies on public data whose outcome is in docs/methods.md."""
    log.configure(level="error")


@app.command("methods")
def _methods(
    task: Annotated[TaskName, typer.Option(help="The data set.")] = "banking77",
    out: Out = Path("veiltune-study"),
) -> None:
    """Every method at epsilon 3, 8 and without privacy: screened, then told apart."""
    of = methods.TASKS[task]
    screened = _perform(methods.screening(of), out, f"{task}-screening", of.measure)
    _perform(methods.finals(of, screened), out, f"{task}-finals", of.measure)


def _perform(
    cells: Sequence[Cell], out: Path, name: str, measure: str
) -> list[tuple[Cell, Result]]:
    """Run what has not been run, and write where each setting stands."""
    make_folder(out)
    with Cells(console, len(cells)) as shown:

        def run(scenario: Scenario, work: Path) -> Path:
            return runs.stacked(scenario, work, shown.round)

        found = perform(cells, out / "runs", run, shown)
    best = leaderboard.standings(found, measure)
    leaderboard.write(best, measure, out / f"{name}.json")
    sweep_page.write_page(best, name, measure, out / f"{name}.html")
    Console().print(leaderboard.table(best, measure))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
