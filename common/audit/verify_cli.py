"""``fl-audit verify``: a bundle of evidence, checked offline from its bytes and a root.

Not covered: what the claims are (common/audit/verify.py).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.adapter_file import MAX_ADAPTER_BYTES
from common.audit.epsilon_cli import FAILED
from common.audit.evidence import MAX_BUNDLE_BYTES
from common.audit.verify import Report, verify
from common.certificates import read_certificate
from common.cli import AsJson, one_line, print_json
from common.files import read_file

UNROOTED = 3  # nothing fails, and nobody knows whose word it is

_STYLES = {"pass": ("pass", "green"), "fail": ("FAIL", "bold red"), "not checkable": ("-", "dim")}


def verify_command(
    file: Annotated[Path, typer.Argument(help="As written by: fl-server export JOB --bundle FILE")],
    root: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="The federation's root certificate, from elsewhere."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="adapter_model.safetensors, held against the rounds."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every claim of a job's evidence, offline.

    Ends with 0 when no claim fails under the root, 1 when one fails, and 3 when none fails but
    no root was given.
    """
    data = read_file(file, max_bytes=MAX_BUNDLE_BYTES)
    weights = None if adapter is None else read_file(adapter, max_bytes=MAX_ADAPTER_BYTES)
    report = verify(data, None if root is None else read_certificate(root), weights)
    if as_json:
        print_json(to_json(report))
    else:
        _show(report)
    if report.failed:
        raise typer.Exit(FAILED)
    if not report.is_rooted:
        raise typer.Exit(UNROOTED)


def to_json(report: Report) -> dict[str, Any]:
    """The report as ``--json`` prints it."""
    manifest = report.manifest
    return {
        "passed": not report.failed and report.is_rooted,
        "kind": manifest.kind if manifest else None,
        "job_sha256": manifest.job_sha256 if manifest else None,
        "made_at": manifest.made_at if manifest else None,
        "claims": [asdict(claim) for claim in report.claims],
        "not_checked": list(report.not_checked),
    }


def _show(report: Report) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "claim", "site", "found"):
        table.add_column(heading, overflow="fold")
    for claim in report.claims:
        cells = (claim.name, claim.subject, claim.found)
        table.add_row(Text(*_STYLES[claim.status]), *(Text(one_line(cell)) for cell in cells))
    console.print(table)
    count = {s: sum(claim.status == s for claim in report.claims) for s in _STYLES}
    console.print(
        f"{count['pass']} claims pass, {count['fail']} fail, "
        f"{count['not checkable']} cannot be checked",
        highlight=False,
    )
    if report.manifest is not None and report.manifest.kind == "SIMULATION":
        console.print("SIMULATION: its noise can be repeated, and nothing is promised.")
    console.print("\nNot checked:", highlight=False)
    for sentence in report.not_checked:
        console.print(f"- {sentence}", highlight=False, markup=False)
