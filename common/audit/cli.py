"""``fl-audit``: check a privacy claim without trusting whoever made it.

Exit status: 0 when every claim passed, 1 when one failed, 2 on misuse.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.recompute import Claim, check_outcome
from common.cli import run
from common.privacy import accounting, group
from common.privacy.accounting import GaussianSteps
from common.result import Result

FAILED = 1

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

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("epsilon")
def epsilon_command(
    sampling_rate: Annotated[float, typer.Option(help="Poisson rate at which a record is drawn.")],
    noise_multiplier: Annotated[float, typer.Option(help="Noise deviation over clip norm.")],
    steps: Annotated[int, typer.Option(help="DP-SGD steps that were executed.")],
    delta: Annotated[float, typer.Option(help="Probability outside the guarantee.")],
    records: Annotated[
        int | None, typer.Option(help="Also for a person with this many records.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the epsilon of DP-SGD steps.

    For one record, added or removed, under Poisson sampling.
    """
    event = GaussianSteps(sampling_rate, noise_multiplier, steps)
    answer: dict[str, Any] = asdict(event) | {"delta": delta}
    alone = accounting.epsilon([event], delta)
    answer["pld"] = _finite(alone)
    if records is not None:
        answer["group"] = _group(event, delta, records, alone)
    if as_json:
        print(json.dumps(answer))
    else:
        _print_epsilon(answer)


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
        print(json.dumps(document, ensure_ascii=False))
    else:
        _print_claims(result, claims)
    if not passed:
        raise typer.Exit(FAILED)


def _group(event: GaussianSteps, delta: float, records: int, alone: float) -> dict[str, Any]:
    """What the mechanism promises a group, and what any mechanism of this epsilon would."""
    answer: dict[str, Any] = {
        "records": records,
        "pld": _finite(group.epsilon(event, delta, records)),
    }
    if math.isfinite(alone):
        chain = group.conservative(epsilon=alone, delta=delta, records=records)
        answer |= {"chain_epsilon": chain[0], "chain_delta": _finite(chain[1])}
    return answer


def _finite(value: float) -> float | None:
    """JSON has no infinity; null says that there is no bound."""
    return value if math.isfinite(value) else None


def _print_epsilon(answer: dict[str, Any]) -> None:
    figures = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    figures.add_row("epsilon (pld), one record", _bound(answer["pld"]))
    of_group = answer.get("group")
    if of_group:
        figures.add_row(f"epsilon (pld), {of_group['records']} records", _bound(of_group["pld"]))
        figures.add_row("  by group privacy alone", _chain(of_group))
    figures.add_row("delta", f"{answer['delta']:g}")
    Console().print(figures)


def _bound(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.4f}"


def _chain(of_group: dict[str, Any]) -> str:
    delta = of_group.get("chain_delta")
    if delta is None or delta >= 1:
        return "no promise (delta reaches 1)"
    return f"{of_group['chain_epsilon']:.4f} at delta {delta:.2g}"


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
