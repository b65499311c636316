"""A run on a terminal: a bar while it goes on, tables when it is over."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from common.config import SCORES
from common.job import Job
from common.result import Result
from simulations.sweep import Cell


class _Shown:
    """A bar on a terminal, while a block runs."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar

    def __enter__(self) -> Self:
        """Show it."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave it as it is."""
        self._bar.stop()


class Rounds(_Shown):
    """Progress by round: a bar on a terminal, a line a round elsewhere."""

    def __init__(self, console: Console, job: Job) -> None:
        columns = ("{task.description}", None, "round {task.completed:.0f}/{task.total:.0f}")
        super().__init__(console, _progress(console, *columns))
        self._job = job
        self._task = self._bar.add_task("training", total=job.training.rounds, score="")

    def __call__(self, round_: int, score: float | None) -> None:
        """Tell of a closed round."""
        said = "" if score is None else f"{SCORES[self._job.job.task]} {score:.3f}"
        self._bar.update(self._task, completed=round_, score=said)
        if not self._console.is_terminal:
            start = " (the untrained start)" if round_ == 0 else ""
            self._console.print(
                f"round {round_}/{self._job.training.rounds}  {said}{start}", highlight=False
            )


class Steps(_Shown):
    """Progress over runs: a bar on a terminal, a line a run elsewhere."""

    def __init__(self, console: Console, runs: int) -> None:
        columns = ("run {task.completed:.0f}/{task.total:.0f}", None, "{task.description}")
        super().__init__(console, _progress(console, *columns))
        self._runs, self._number = runs, 0
        self._task = self._bar.add_task("", total=runs, score="")

    def __call__(self, words: str) -> None:
        """Tell of the next run."""
        self._number += 1
        self._bar.update(self._task, completed=self._number, description=words, score="")
        if not self._console.is_terminal:
            self._console.print(f"run {self._number}/{self._runs}  {words}", highlight=False)

    def round(self, round_: int, score: float | None) -> None:
        """Tell of a closed round."""
        said = "" if score is None else f"round {round_}: {score:.3f}"
        self._bar.update(self._task, score=said)


class Cells(Steps):
    """Progress of a sweep."""

    def tell(self, cell: Cell, is_done: bool) -> None:
        """Tell of the next run, or that it is there already."""
        known = "  (there already)" if is_done else ""
        self(f"{cell.words or cell.scenario.job.job.name}, seed {cell.seed}{known}")


def _progress(console: Console, *columns: str | None) -> Progress:
    """A bar (where a column is ``None``) between texts, then the score and the time."""
    return Progress(
        *(BarColumn() if text is None else TextColumn(text) for text in columns),
        TextColumn("{task.fields[score]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def summary(result: Result, job: Job, out: Path, seconds: float) -> None:
    """Print rounds, sites, what the adapter reaches and where everything is."""
    console = Console()
    console.print(_rounds(result))
    console.print(_sites(result, job))
    console.print(_words(result, out, seconds), soft_wrap=True)


def _rounds(result: Result) -> Table:
    table = _table(
        "round", result.measure, "macro-F1", "epsilon", "bytes up", "bytes down", "seconds"
    )
    if result.start is not None:
        start = result.start
        table.add_row("start", _number(start.score, 3), _number(start.macro_f1, 3))
    for row in result.rounds:
        table.add_row(
            f"{row.round} (kept)" if row.round == result.kept_round else str(row.round),
            _number(row.score, 3),
            _number(row.macro_f1, 3),
            _number(row.epsilon, 3),
            f"{row.bytes_up:,}",
            "-" if row.bytes_down is None else f"{row.bytes_down:,}",
            f"{row.seconds:.1f}",
        )
    return table


def _sites(result: Result, job: Job) -> Table:
    table = _table("site", "declared population", "steps", "epsilon", "delta")
    for site in result.sites:
        table.add_row(
            site.name,
            f"{job.data.population[site.name]:,}",
            f"{site.steps:,}",
            _number(site.epsilon, 3),
            "-" if site.delta is None else f"{site.delta:g}",
        )
    return table


def _words(result: Result, out: Path, seconds: float) -> Text:
    of = f" of round {result.kept_round}" if result.kept_round else ""
    lines = [
        f"{result.measure} {_number(result.final.score, 3)}{of} on the public hold-out; "
        f"{seconds:.0f} s in all",
        f"report   {out / 'report.html'}",
        f"adapter  {out / 'adapter'}",
        f"result   {out / 'result.json'}",
    ]
    if not result.private:
        lines.insert(1, "this run promises no privacy to anybody")
    return Text("\n".join(lines))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
