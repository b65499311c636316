"""``fl-audit epsilon``, ``calibrate`` and ``compose``: figures from a mechanism's parameters.

Every figure is PLD's, which is reported, beside PRV's and RDP's, which check it. Where they do not
agree, or one of them gives no figure, the command says so and ends with 1.
"""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from common.audit.events import read_events
from common.cli import AsJson, print_json
from common.errors import InvalidInput
from common.privacy import accounting, crosscheck, group
from common.privacy.event import GaussianSteps
from common.privacy.rdp_filter import RdpFilter
from common.words import counted

FAILED = 1

Rate = Annotated[float, typer.Option(help="Poisson rate at which a unit is drawn.")]
Steps = Annotated[int, typer.Option(help="DP-SGD steps that were executed.")]
Delta = Annotated[float, typer.Option(help="Probability outside the guarantee.")]


def epsilon_command(
    sampling_rate: Rate,
    noise_multiplier: Annotated[float, typer.Option(help="Noise deviation over clip norm.")],
    steps: Steps,
    delta: Delta,
    records: Annotated[
        int | None, typer.Option(help="Also for a person with this many records.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute the epsilon of DP-SGD steps by three accountants.

    For one unit, added or removed, under Poisson sampling.
    """
    event = GaussianSteps(sampling_rate, noise_multiplier, steps)
    found = crosscheck.compare(event, delta)
    answer: dict[str, Any] = asdict(event) | {"delta": delta} | _figures(found)
    if records is not None:
        answer["group"] = _group(event, delta, records, found.pld)
    if as_json:
        print_json(answer)
    else:
        _print_epsilon(answer)
    _end(found.doubt)


def calibrate_command(
    epsilon: Annotated[float, typer.Option(help="Target, by PLD.")],
    delta: Delta,
    sampling_rate: Rate,
    steps: Annotated[int, typer.Option(help="DP-SGD steps of the whole job.")],
    cap_epsilon: Annotated[
        float | None, typer.Option(help="Also fit a lifetime's cap by a Renyi filter.")
    ] = None,
    cap_delta: Annotated[float | None, typer.Option(help="The lifetime's delta.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the least noise for a target epsilon and a cap."""
    if (cap_epsilon is None) != (cap_delta is None):
        raise InvalidInput("--cap-epsilon and --cap-delta must be given together, got one")
    target: dict[str, Any] = {
        "epsilon": epsilon,
        "delta": delta,
        "sampling_rate": sampling_rate,
        "steps": steps,
    }
    if cap_epsilon is None or cap_delta is None:
        row, doubt = _calibrated(target, None)
        answer = target | row
    else:
        cap = RdpFilter.for_cap(cap_epsilon, cap_delta)
        (row, doubt), (fitting, other) = _calibrated(target, None), _calibrated(target, cap)
        doubt = doubt or other
        row["by_filter"] = _by_filter(cap, target, row)
        fitting["by_filter"] = _by_filter(cap, target, fitting)
        limits = {"name": cap.name, "epsilon": cap_epsilon, "delta": cap_delta}
        answer = target | row | {"filter": limits | fitting}
    if as_json:
        print_json(answer)
    else:
        _print_calibration(answer)
    _end(doubt)


def _calibrated(target: dict[str, Any], cap: RdpFilter | None) -> tuple[dict[str, Any], str]:
    """The least noise and its epsilons; and what is in doubt about them."""
    noise_multiplier = accounting.calibrate(**target, rdp_filter=cap)
    event = GaussianSteps(target["sampling_rate"], noise_multiplier, target["steps"])
    found = crosscheck.compare(event, target["delta"])
    return {"noise_multiplier": noise_multiplier} | _figures(found), found.doubt


def _by_filter(cap: RdpFilter, target: dict[str, Any], row: dict[str, Any]) -> float | None:
    event = GaussianSteps(target["sampling_rate"], row["noise_multiplier"], target["steps"])
    return _finite(cap.epsilon([event]))


def compose_command(
    events: Annotated[Path, typer.Argument(help="JSON list of executed steps.")],
    delta: Delta,
    prv: Annotated[
        bool, typer.Option("--prv", help="Check by PRV as well: a minute for many jobs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the epsilon of several jobs together.

    Each entry of the list holds sampling_rate, noise_multiplier and steps, and may hold unit and
    job. The composition is that of jobs fixed beforehand.
    """
    listed = read_events(events)
    steps = listed.steps()
    answer: dict[str, Any] = {
        "events": len(steps),
        "steps": sum(event.steps for event in steps),
        "unit": listed.unit,
        "delta": delta,
    }
    if prv:
        found = crosscheck.compare(steps, delta)
        answer |= _figures(found)
        doubt = found.doubt
    else:
        pld, rdp = accounting.epsilon(steps, delta), crosscheck.renyi_epsilon(steps, delta)
        answer |= {"pld": _finite(pld), "rdp": _finite(rdp)}
        doubt = "" if pld == math.inf else crosscheck.doubt_of_bound(pld, rdp)
    if as_json:
        print_json(answer)
    else:
        _print_composition(answer)
    _end(doubt)


def _end(doubt: str) -> None:
    if doubt:
        print(f"the figure is in doubt: {doubt}", file=sys.stderr)
        raise typer.Exit(FAILED)


def _figures(found: crosscheck.Epsilons) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in asdict(found).items()}


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
    figures = _plain_table()
    figures.add_row("epsilon (pld), one record", _bound(answer["pld"]))
    _add_checks(figures, answer)
    of_group = answer.get("group")
    if of_group:
        figures.add_row(f"epsilon (pld), {of_group['records']} records", _bound(of_group["pld"]))
        figures.add_row("  by group privacy alone", _chain(of_group))
    figures.add_row("delta", f"{answer['delta']:g}")
    Console().print(figures)


def _print_composition(answer: dict[str, Any]) -> None:
    figures = _plain_table()
    number = f"{counted(answer['events'], 'event')} of {counted(answer['steps'], 'step')} in all"
    figures.add_row(f"epsilon (pld), one {answer['unit']}", _bound(answer["pld"]))
    _add_checks(figures, answer)
    figures.add_row("delta", f"{answer['delta']:g}")
    figures.add_row("composed", number)
    Console().print(figures)


def _add_checks(figures: Table, answer: dict[str, Any]) -> None:
    if "prv" in answer:
        figures.add_row("  checked by prv (0.01 above)", _bound(answer["prv"]))
    figures.add_row("  bounded by rdp", _bound(answer["rdp"]))


def _print_calibration(answer: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("noise for", "multiplier", "pld", "prv", "rdp"):
        table.add_column(heading)
    rows = [(f"epsilon {answer['epsilon']:g} by pld", answer)]
    if "filter" in answer:
        table.add_column("by the filter")
        rows.append((answer["filter"]["name"], answer["filter"]))
    for name, row in rows:
        cells = [_bound(row[key]) for key in ("pld", "prv", "rdp", "by_filter") if key in row]
        table.add_row(name, f"{row['noise_multiplier']:.4f}", *cells)
    Console().print(table)


def _plain_table() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0))


def _bound(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.4f}"


def _chain(of_group: dict[str, Any]) -> str:
    delta = of_group.get("chain_delta")
    if delta is None or delta >= 1:
        return "no promise (delta reaches 1)"
    return f"{of_group['chain_epsilon']:.4f} at delta {delta:.2g}"
