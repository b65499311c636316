"""``python -m simulations.studies methods --task banking77``: a study, from its first run.

Runs are kept in ``--out``, so that a study which was killed goes on where it stopped.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from common import cli, log
from common.files import make_folder, write_file
from simulations import leaderboard, runs, sweep_page
from simulations.scenario import Scenario
from simulations.show import Cells, Steps
from simulations.studies import accuracy, linear_head, methods, poisoning
from simulations.sweep import Cell, Outcome, perform

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
    screened = _screen(task, methods.pairs(), out, f"{task}-screening")
    of = methods.TASKS[task]
    _perform(methods.finals(of, screened), out, f"{task}-finals", of.measure)


@app.command("accuracy")
def _accuracy(
    task: Annotated[TaskName, typer.Option(help="The data set.")] = "banking77",
    out: Out = Path("veiltune-study"),
) -> None:
    """One method at four sites beside central training: what federation and privacy cost."""
    screened = _screen(task, accuracy.PAIRS, out, f"{task}-accuracy-screening")
    of = methods.TASKS[task]
    _perform(accuracy.finals(of, screened), out, f"{task}-accuracy", of.measure)


@app.command("linear-head")
def _linear_head(
    task: Annotated[TaskName, typer.Option(help="The data set.")] = "banking77",
    out: Out = Path("veiltune-study"),
) -> None:
    """A private linear head on frozen features, in the place of a method."""
    make_folder(out)
    trials = methods.TRIALS * len(set(methods.SCREENED.values()))
    with Steps(console, trials + len(methods.EPSILONS) * len(methods.SEEDS)) as shown:
        found = linear_head.study(methods.TASKS[task], out / "linear-head", shown)
    content = json.dumps([asdict(run) for run in found], indent=2).encode()
    write_file(out / f"{task}-linear-head.json", content, mode=0o644)
    Console().print(_by_epsilon(found))


def _by_epsilon(found: Sequence[linear_head.Run]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("epsilon", "rate", "accuracy", "macro-F1"):
        shown.add_column(name, justify="right")
    for epsilon in methods.EPSILONS:
        runs_of = [run for run in found if run.epsilon == epsilon]
        means = (
            statistics.fmean(getattr(run.score, measure) for run in runs_of)
            for measure in ("accuracy", "macro_f1")
        )
        words = "none" if epsilon is None else f"{epsilon:g}"
        shown.add_row(words, f"{runs_of[0].rate:g}", *(f"{mean:.3f}" for mean in means))
    return shown


@app.command("poisoning")
def _poisoning(out: Out = Path("veiltune-study")) -> None:
    """Two dishonest sites of ten, under every rule: accuracy, and how often a trigger works."""
    make_folder(out)
    with Steps(console, len(poisoning.ATTACKS) * len(poisoning.RULES)) as shown:
        found = poisoning.study(out / "runs", shown, shown.round)
    content = json.dumps([asdict(outcome) for outcome in found], indent=2).encode()
    write_file(out / "poisoning.json", content, mode=0o644)
    for measure in ("accuracy", "success"):
        Console().print(_crossed(found, measure))


def _crossed(found: Sequence[poisoning.Outcome], measure: str) -> Table:
    """A row a rule, a column an attack."""
    shown = Table(title=measure, box=None, pad_edge=False, header_style="bold")
    shown.add_column("rule")
    for attack in poisoning.ATTACKS:
        shown.add_column(attack, justify="right")
    cells = {(one.rule, one.attack): f"{getattr(one, measure):.3f}" for one in found}
    for rule in poisoning.RULES:
        shown.add_row(rule, *(cells[rule, attack] for attack in poisoning.ATTACKS))
    return shown


def _screen(task: TaskName, pairs: Sequence[methods.Pair], out: Path, name: str) -> methods.Found:
    """Every trial of each pair; where the later ones lie, the earlier ones say."""
    of = methods.TASKS[task]
    cells = methods.screening(of, pairs)
    found = _perform(cells, out, name, of.measure)
    for _ in range(len(methods.RATES), methods.TRIALS):
        cells += methods.further(of, pairs, found)
        found = _perform(cells, out, name, of.measure)
    return found


def _perform(
    cells: Sequence[Cell], out: Path, name: str, measure: str
) -> list[tuple[Cell, Outcome]]:
    """Run what has not been run, and write where each setting stands."""
    make_folder(out)
    with Cells(console, len(cells)) as shown:

        def run(scenario: Scenario, work: Path) -> Path:
            return runs.stacked(scenario, work, shown.round)

        found = perform(cells, out / "runs", run, shown.tell)
    best, failed = leaderboard.standings(found, measure), leaderboard.failures(found)
    leaderboard.write(best, measure, out / f"{name}.json", failed)
    sweep_page.write_page(best, name, measure, out / f"{name}.html", failed)
    Console().print(leaderboard.table(best, measure, failed))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
