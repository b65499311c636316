"""``fl-audit``: check a privacy claim without trusting whoever made it.

Exit status: 0 when every claim passed, 1 when one failed, 2 on misuse; ``verify`` without a root
ends with 3 where none failed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.epsilon_cli import (
    FAILED,
    calibrate_command,
    compose_command,
    epsilon_command,
)
from common.audit.heads_cli import heads_command
from common.audit.ledger_cli import ledger_command
from common.audit.recompute import Claim, check_outcome
from common.audit.verify_cli import verify_command
from common.cli import AsJson, print_json, run
from common.result import Result

NOT_CHECKED = (
    "that the sites really ran these steps, with this noise, clip and sampler: nothing in this "
    "folder is signed, and who wrote it could have written other steps with their epsilon",
    "that this is the job that was agreed: compare job_sha256 with the job that you hold",
    "accuracy and F1: the hold-out is not in the folder",
)

app = typer.Typer(
    name="fl-audit",
    help="Check a privacy claim without trusting whoever made it.",
    add_completion=False,
    rich_markup_mode=None,
)


app.command("epsilon")(epsilon_command)
app.command("calibrate")(calibrate_command)
app.command("compose")(compose_command)
app.command("ledger")(ledger_command)
app.command("verify")(verify_command)
app.command("heads")(heads_command)


@app.command("result")
def result_command(
    folder: Annotated[Path, typer.Argument(help="A run's outcome: result.json and adapter/.")],
    as_json: AsJson = False,
) -> None:
    """Recompute an outcome's epsilons and its adapter's hash."""
    result, claims = check_outcome(folder)
    passed = all(claim.passed for claim in claims)
    if as_json:
        document = {
            "job_sha256": result.job_sha256,
            "private": result.private,
            "passed": passed,
            "claims": [asdict(claim) for claim in claims],
            "not_checked": NOT_CHECKED,
        }
        print_json(document)
    else:
        _print_claims(result, claims)
    if not passed:
        raise typer.Exit(FAILED)


def _print_claims(result: Result, claims: list[Claim]) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "subject", "claim", "stated", "recomputed"):
        table.add_column(heading, overflow="fold")
    for claim in _shortened(claims):
        verdict = Text("pass", "green") if claim.passed else Text("FAIL", "bold red")
        words = (claim.subject, claim.claim, claim.stated, claim.found)
        table.add_row(verdict, *(Text(word) for word in words))
    console.print(table)
    failed = sum(not claim.passed for claim in claims)
    console.print(f"{len(claims) - failed} of {len(claims)} claims pass", highlight=False)
    if not result.private:
        console.print("This run states no privacy guarantee.", highlight=False)
    console.print("\nNot checked:", highlight=False)
    for sentence in NOT_CHECKED:
        console.print(f"- {sentence}", highlight=False, markup=False)


def _shortened(claims: list[Claim]) -> list[Claim]:
    """Fold rounds that pass into one line; whoever wants each of them asks for --json."""
    rounds = [claim for claim in claims if claim.subject.startswith("round ") and claim.passed]
    if len(rounds) < 4:
        return claims
    first, last = rounds[0], rounds[-1]
    folded = Claim(
        subject=f"{len(rounds)} rounds",
        claim="epsilon",
        stated=f"{first.stated} … {last.stated}",
        found=f"the same, {first.subject} to {last.subject.removeprefix('round ')}",
        passed=True,
    )
    shown = [claim for claim in claims if claim not in rounds]
    return [*shown[:-1], folded, shown[-1]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fl-audit``."""
    return run(app, argv, "fl-audit")
