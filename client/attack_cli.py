"""``fl-audit membership`` and ``inversion``: what attacks find, which is never an epsilon."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.audit_setting import PRIVATE_WORDS
from common.cli import AsJson, print_json
from common.errors import InvalidInput

if TYPE_CHECKING:
    from common.audit.inversion import Recovered
    from common.audit.membership import Attack

JobFile = Annotated[Path, typer.Argument(help="The job.toml that the adapter comes from.")]
SiteName = Annotated[str, typer.Option("--site", help="Whose declared population counts.")]
OutFile = Annotated[Path | None, typer.Option(help="Also write the result there, as JSON.")]

NO_EPSILON = "these rates are no epsilon and bound none: a stronger attack may find more"


def membership_command(
    job: JobFile,
    site: SiteName,
    adapter: Annotated[
        Path | None, typer.Option(help="The released adapter's folder; else one is trained here.")
    ] = None,
    members: Annotated[
        Path | None, typer.Option(help="Private records that the adapter was trained on.")
    ] = None,
    others: Annotated[
        Path | None, typer.Option(help="Records like them that it was not trained on.")
    ] = None,
    references: Annotated[int, typer.Option(help="Reference adapters, trained here.")] = 4,
    without_privacy: Annotated[
        bool,
        typer.Option("--without-privacy", help="Train here without clip and noise, to compare."),
    ] = False,
    out: OutFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell members from others by an adapter.

    By the loss and by RMIA, on public records with adapters trained here, or on the records given.
    """
    from client import membership_run

    if (adapter is None) != (members is None) or (members is None) != (others is None):
        raise InvalidInput("--adapter, --members and --others must be given together, got some")
    if not 1 <= references <= 64:
        raise InvalidInput(f"references must be 1 to 64, got {references}")
    given = None
    if adapter is not None and members is not None and others is not None:
        given = membership_run.Given(adapter, members, others)
    if given is not None and without_privacy:
        raise InvalidInput("--without-privacy must be left out with --adapter, got both")
    found = membership_run.perform(job, site, given, references, private=not without_privacy)
    answer: dict[str, Any] = {
        "job_sha256": found.job_sha256,
        "members": found.members,
        "others": found.others,
        "references": references,
        "records": "private" if given else "public",
        "trained_with_privacy": None if given else not without_privacy,
        "attacks": [asdict(attack) for attack in found.attacks],
        "says": NO_EPSILON,
    }
    _keep(out, answer)
    if as_json:
        print_json(answer)
    else:
        _show_attacks(found.attacks, answer)


def _keep(out: Path | None, answer: dict[str, Any]) -> None:
    import json

    from common.files import write_file

    if out is not None:
        write_file(out, json.dumps(answer, indent=2).encode() + b"\n", overwrite=False)


def _show_attacks(attacks: "list[Attack]", answer: dict[str, Any]) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("attack", "AUC", "false alarms", "95 %", "members", "95 %"):
        table.add_column(heading)
    for attack in attacks:
        name, auc = attack.name, f"{attack.auc:.3f}"
        for rate in attack.rates:
            alarms = _between(rate.false_positives_low, rate.false_positives_high)
            found = (f"{rate.found:.2%}", _between(rate.low, rate.high))
            table.add_row(name, auc, f"{rate.false_positives:.1%}", alarms, *found)
            name = auc = ""
        if not attack.rates:
            table.add_row(name, auc, "-", "", "too few others", "")
    console.print(table)
    told = f"{answer['members']} members, {answer['others']} others; {NO_EPSILON}"
    console.print(Text(told))
    if answer["others"] < 1000:
        console.print(Text("0.1 % needs 1000 others at the least"))
    if answer["records"] == "private":
        console.print(Text(f"records: {PRIVATE_WORDS}"))


def _between(low: float, high: float) -> str:
    return f"{100 * low:.2f} to {100 * high:.2f}%"


def inversion_command(
    job: JobFile,
    site: SiteName,
    out: Annotated[Path, typer.Option(help="Where to draw the picture, as SVG.")],
    record: Annotated[int, typer.Option(help="Which public record is attacked.")] = 0,
    rank: Annotated[int, typer.Option(help="The adapter's; it bounds what can be read.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Read a record off one site's update.

    The attacker's best case, with and without the job's clip and noise, on a public record.
    """
    from client import inverting
    from common.audit.inversion import picture
    from common.files import write_file
    from common.job import load_job

    known = load_job(job)
    one = inverting.victim(known, site, record, rank)
    updates = [inverting.update_of(one, private=private) for private in (False, True)]
    found = inverting.invert(one, updates)
    truth = one.record.input_ids
    answer: dict[str, Any] = {
        "job_sha256": known.sha256,
        "noise_multiplier": one.trainer.mechanism.noise_multiplier,
        "changed": one.changes,
        "tokens": len(truth),
        "recovered_without_privacy": found[0].right(truth),
        "recovered_with_privacy": found[1].right(truth),
    }
    rows = _rows(one.trainer.adapter.tokenizer, truth, found)
    note = f"The attacker's best case: {one.changes}."
    title = "What one site's update says of a record"
    write_file(out, picture(title, rows, note).encode(), overwrite=False)
    if as_json:
        print_json(answer)
        return
    for row in rows:
        print(f"{row.heading}\n  {' '.join(row.words)}")
    print(f"picture: {out}")


def _rows(
    tokenizer: Any,  # noqa: ANN401 -- transformers is untyped
    truth: tuple[int, ...],
    found: "list[Recovered]",
) -> list[Any]:
    from common.audit.inversion import Row

    every = tokenizer.convert_ids_to_tokens(list(truth))
    rows = [Row("The record (public, synthetic)", every, [False] * len(every))]
    for what, one in zip(("without privacy", "with the job's clip and noise"), found, strict=True):
        words = tokenizer.convert_ids_to_tokens(one.tokens.tolist())
        right = [int(a) == b for a, b in zip(one.tokens, truth, strict=True)]
        heading = f"Read off the update {what}: {sum(right)} of {len(truth)} tokens"
        rows.append(Row(heading, words, right))
    return rows
