"""A job on an operator's terminal: rounds as they close, tables at the end.

Progress goes to stderr and tables to stdout, so that ``fl-server jobs | grep`` sees what it wants.
What comes from the server is printed as text, never as markup.

Not covered: the meaning of the numbers (server/views.py).
"""

import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from common.config import SCORES
from common.words import counted
from server.control import Line

_WIDTH = 160  # of a file or a pipe, which has none
# What a job allows, apart from what was spent; what a site declares, apart from what it has.
_LABELS = {
    "epsilon": "agreed epsilon",
    "delta": "agreed delta",
    "population": "declared records",
}


def follow_rounds(lines: Iterator[Line], name: str, rounds: int) -> Line:
    """Show a watched job's rounds as they close; return the answer that ends the watch."""
    shown = _bar(lines, name, rounds) if sys.stderr.isatty() else _plain(lines, rounds)
    *_, answer = shown
    return answer


def jobs_table(jobs: Sequence[Line]) -> None:
    """Print one line a job."""
    rows = [
        (
            job["name"],
            job["sha256"][:12],
            job["state"],
            f"{job['round']}/{job['rounds']}",
            _scored(job),
            job["submitted_at"],
            job["reason"],
        )
        for job in jobs
    ]
    _print(_table(["job", "id", "state", "round", "score", "submitted", "reason"], rows))


def job_tables(shown: Line) -> None:
    """Print a job's constants, rounds and what each site has spent."""
    constants = shown["constants"]
    facts = [
        ("job", f"{shown['name']} ({shown['sha256']})"),
        ("state", shown["state"] + (f": {shown['reason']}" if shown["reason"] else "")),
        ("submitted", shown["submitted_at"]),
    ]
    agreed = [(_LABELS.get(key, key), _fact(value)) for key, value in constants.items()]
    _print(_table(["", ""], facts))
    _section("agreed in the job", _table(["", ""], agreed))
    _section("rounds", rounds_table(shown["closed"]))
    _section("sites, by what was recorded", sites_table(shown["spent"]))
    if shown.get("metrics"):
        _section("on the sites' own held-out records", measured_table(shown["metrics"]))
    if shown["outcome"]:
        _print(Text(f"\noutcome: {shown['outcome']}"))


def outcome_tables(shown: Line) -> None:
    """Print what a finished job came to."""
    last = shown["closed"][-1]
    wanted = shown.get("kept_round") or last["round"]
    kept = next(record for record in shown["closed"] if record["round"] == wanted)
    best = "" if kept is last else f" (the best: round {kept['round']})"
    _print(sites_table(shown["spent"]))
    if shown.get("metrics"):
        _print(measured_table(shown["metrics"]))
    seconds = sum(record["seconds"] for record in shown["closed"])
    _print(
        Text(
            f"{_scored(kept)}, macro F1 {_number(kept['macro_f1'])}{best} "
            f"after {counted(last['round'], 'round')} in {seconds:.1f} s\n"
            f"outcome: {shown['outcome']}"
        )
    )


def rounds_table(closed: Sequence[Line]) -> Table:
    """One line a closed round; the untrained start is none."""
    rows = [
        (
            record["round"] or "untrained start",
            _number(_score(record)),
            _number(record["macro_f1"]),
            f"{record['seconds']:.2f}",
            _size(record["bytes_up"]) if record["round"] else "",
            _size(record["bytes_down"]) if record["round"] and record.get("bytes_down") else "",
        )
        for record in closed
    ]
    measure = _measure(closed[-1]) if closed else "accuracy"
    return _table(["round", measure, "macro F1", "seconds", "bytes up", "bytes down"], rows)


def sites_table(spent: Sequence[Line]) -> Table:
    """One line a site: what it gave and what that cost."""
    rows = [
        (
            site["name"],
            site["updates"],
            site["steps"],
            site.get("counts") or "",
            "no privacy" if site["epsilon"] is None else f"{site['epsilon']:.3f}",
            "" if site["delta"] is None else f"{site['delta']:g}",
            _size(site["bytes_up"]),
        )
        for site in spent
    ]
    heads = ["site", "updates", "steps charged", "counts", "epsilon spent", "delta", "bytes up"]
    return _table(heads, rows)


def measured_table(metrics: Line) -> Table:
    """One line a share, all sites beside the worst of them."""
    rows = [
        (
            one["histogram"],
            one["row"],
            one["measure"],
            _interval(one["together"]),
            one["worst_site"],
            _interval(one["worst"]),
        )
        for one in metrics["estimates"]
    ]
    heads = ["counts", "of", "measure", "all sites (95 %)", "worst site", "there (95 % over all)"]
    return _table(heads, rows)


def _interval(share: Line) -> str:
    if share["value"] is None:
        return "-"  # noise drowns the counts
    return f"{_number(share['value'])} ({_number(share['low'])} to {_number(share['high'])})"


def _bar(lines: Iterator[Line], name: str, rounds: int) -> Iterator[Line]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn(
            "round {task.completed:.0f}/{task.total:.0f}  {task.fields[last]}", markup=False
        ),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=rounds, last="waiting for sites")
        for line in lines:
            if (record := line.get("round")) and isinstance(record, dict):
                progress.update(task, completed=record["round"], last=_said(record))
            yield line


def _plain(lines: Iterator[Line], rounds: int) -> Iterator[Line]:
    for line in lines:
        if (record := line.get("round")) and isinstance(record, dict):
            sys.stderr.write(f"round {record['round']}/{rounds}  {_said(record)}\n")
            sys.stderr.flush()
        yield line


def _said(record: Line) -> str:
    last = f"{_size(record['bytes_up'])} up" if record["round"] else "(the untrained start)"
    return f"{_scored(record)}  {record['seconds']:.2f} s  {last}"


def _score(record: Line) -> float | None:
    """What the job's task is judged by."""
    entity_f1 = record.get("entity_f1")
    found: float | None = record["accuracy"] if entity_f1 is None else entity_f1
    return found


def _measure(record: Line) -> str:
    return SCORES["seq-cls" if record.get("entity_f1") is None else "token-cls"]


def _scored(record: Line) -> str:
    return f"{record.get('measure') or _measure(record)} {_number(_score(record))}"


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(names))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table


def _print(content: Table | Text) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(content, soft_wrap=isinstance(content, Text))


def _section(heading: str, table: Table) -> None:
    _print(Text(f"\n{heading}", style="bold"))
    _print(table)


def _fact(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
