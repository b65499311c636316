"""``fl-audit ledger``: a site's exported ledger, checked without the site.

Not covered: what the checks are (common/audit/ledger.py).
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.epsilon_cli import FAILED
from common.audit.ledger import JobSpent, LedgerReport, check_ledger, read_public
from common.cli import AsJson, one_line, print_json
from common.errors import LedgerBroken
from common.privacy.extract import read_head
from common.strict_json import read_json

_MAX_HEAD_BYTES = 4096


def ledger_command(
    file: Annotated[Path, typer.Argument(help="As written by: fl-client ledger export FILE")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="PEM", help="The site's certificate or public key, which must have signed last."
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="An earlier head that the ledger must continue."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an exported ledger and compute what each job spent.

    Entries, signatures, tree head and order are checked; epsilons are computed from the charges.
    """
    public_key = "" if key is None else read_public(key)
    witnessed = None if head is None else read_head(read_json(head, max_bytes=_MAX_HEAD_BYTES))
    unchecked = _not_checked(has_key=bool(public_key), has_head=witnessed is not None)
    try:
        report = check_ledger(file, public_key, witnessed)
    except LedgerBroken as error:
        if as_json:
            print_json({"passed": False, "fault": one_line(str(error))})
        else:
            print(f"FAIL: {one_line(str(error))}")
        raise typer.Exit(FAILED) from error
    if as_json:
        print_json(_to_json(report) | {"not_checked": unchecked})
    else:
        _show(report, unchecked)
    if not report.is_within:
        raise typer.Exit(FAILED)


def _not_checked(*, has_key: bool, has_head: bool) -> list[str]:
    said = ["that the site ran what it recorded, with this noise and sampler"]
    if not has_key:
        said.append("whose keys these are: compare the last with the site's certificate (--key)")
    if not has_head:
        said.append("that nothing is missing at the end: a head that was kept elsewhere (--head)")
    return said


def _to_json(report: LedgerReport) -> dict[str, Any]:
    return {
        "passed": report.is_within,
        "site": report.site,
        "entries": report.size,
        "root": report.root,
        "keys": [_sha256(key) for key in report.keys],
        "hand_overs": [entry.words for entry in report.hand_overs],
        "lifetime": {
            "accountant": report.cap.name,
            "max_epsilon": report.cap.max_epsilon,
            "delta": report.cap.delta,
            "epsilon": report.epsilon,
            "epsilon_by_pld": report.epsilon_by_pld,
        },
        "uncovered_rounds": report.uncovered_rounds,
        "jobs": [asdict(job) for job in report.jobs],
    }


def _show(report: LedgerReport, unchecked: list[str]) -> None:
    cap, console = report.cap, Console()
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    words = ["", *(f", {entry.words}" for entry in report.hand_overs)]
    rows = [
        ("site", report.site),
        ("ledger", f"whole: {report.size} entries, all signed"),
        ("root", f"sha256 {report.root}"),
        *(
            ("signed by", f"key sha256 {_sha256(key)}{how}")
            for key, how in zip(report.keys, words, strict=True)
        ),
        ("cap", f"epsilon {cap.max_epsilon:g} at delta {cap.delta:g}, by {cap.name}"),
        ("charged", f"{_bound(report.epsilon)} by it, {_bound(report.epsilon_by_pld)} by PLD"),
        ("verdict", "within the cap" if report.is_within else "FAIL: more than the cap allows"),
    ]
    if report.uncovered_rounds:
        rows.append(("no privacy", f"rounds that no epsilon covers: {report.uncovered_rounds}"))
    for name, fact in rows:
        facts.add_row(Text(name, "dim"), Text(one_line(fact), overflow="fold"))
    console.print(facts)
    if report.jobs:
        console.print(_jobs(report.jobs))
    console.print("Not checked:", highlight=False)
    for sentence in unchecked:
        console.print(f"- {sentence}", highlight=False, markup=False)


def _jobs(jobs: tuple[JobSpent, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "job",
        "id",
        "state",
        "unit",
        "rounds",
        "steps",
        "of",
        "counts",
        "delta",
        "epsilon",
    ):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        cells = (
            job.name,
            job.job_sha256[:12],
            job.state,
            job.unit,
            str(job.rounds),
            str(job.steps),
            "" if job.planned_steps is None else str(job.planned_steps),
            str(job.counts or ""),
            f"{job.delta:g}",
            _bound(job.epsilon),
        )
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    return table


def _bound(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.4f}"


def _sha256(key: str) -> str:
    """As ``fl-client init`` and the operator see it."""
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()
