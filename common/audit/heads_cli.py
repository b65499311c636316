"""``fl-audit heads``: the history of ledger heads in a site's home.

Not covered: how heads were judged (client/heads.py, client/peers.py): the site's own word.
"""

import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.epsilon_cli import FAILED
from common.cli import AsJson, one_line, print_json
from common.errors import InvalidInput
from common.heads import Alarm, HeadRow, alarms, history
from common.sqlite_file import is_being_written

ACCOUNT = "account.db"


def heads_command(
    home: Annotated[Path, typer.Argument(help="A site's home, or its account.db.")],
    site: Annotated[str, typer.Option(help="Heads of this site alone.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the ledger heads that a site keeps.

    They are its own, which the server confirmed, and its peers'.

    Exit status 1 when a ledger forked or shrank, or a receipt was not as it must be.
    """
    rows, raised = read_heads(home, site)
    if as_json:
        print_json(
            {
                "passed": not raised and not any(row.is_bad for row in rows),
                "heads": [asdict(row) for row in rows],
                "alarms": [asdict(alarm) for alarm in raised],
            }
        )
    else:
        _show(rows, raised)
    if raised or any(row.is_bad for row in rows):
        raise typer.Exit(FAILED)


def read_heads(home: Path, site: str = "") -> tuple[list[HeadRow], list[Alarm]]:
    """The history in a home's account, in order, and the alarms; the file is left as it is.

    Raises:
        InvalidInput: there is no account, or it cannot be read now.
    """
    path = home / ACCOUNT if home.is_dir() else home
    if not path.is_file():
        raise InvalidInput(f"home must be a site's, with an {ACCOUNT}, got {str(home)!r}")
    if is_being_written(path):
        raise InvalidInput(f"{ACCOUNT} must be at rest to be read, got a write under way (again?)")
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, 30.0, uri=True)) as db:
            return list(history(db, site)), [a for a in alarms(db) if site in ("", a.site)]
    except (sqlite3.Error, UnicodeDecodeError, TypeError) as error:
        raise InvalidInput(f"{ACCOUNT} must be a site's account, got: {error}") from error


def _show(rows: list[HeadRow], raised: list[Alarm]) -> None:
    console = Console()
    if not rows:
        print("no head was confirmed or seen yet")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("site", "size", "root", "when (UTC)", "job/round", "confirmed by"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    table.add_column("goes on", no_wrap=True)
    for row in rows:
        by = row.confirmed_by[:8] if " " not in row.confirmed_by else row.confirmed_by
        style = "bold red" if row.is_bad else "yellow" if row.state == "unproven" else ""
        when, place = row.at.replace("T", " ").rstrip("Z"), f"{row.job_sha256[:8]}/{row.round}"
        words = (row.site, str(row.size), row.root[:10], when, place, by)
        table.add_row(*(Text(one_line(word)) for word in words), Text(one_line(row.state), style))
    if rows:
        console.print(table)
    for alarm in raised:
        console.print(Text(one_line(f"ALARM {alarm.at}: {alarm.words}"), "bold red"))
