"""``fl-audit heads``: the history of ledger heads, as a site's home or a bundle of evidence has it.

Not covered: how heads in a home were judged (client/heads.py, client/peers.py): the site's own
word. Those in a bundle are judged here (common/audit/bundle_heads.py).
"""

import sqlite3
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.audit.bundle_heads import heads_of_bundle
from common.audit.epsilon_cli import FAILED
from common.audit.evidence import MAX_BUNDLE_BYTES
from common.audit.verify_cli import UNROOTED
from common.certificates import read_certificate
from common.cli import AsJson, one_line, print_json
from common.errors import InvalidInput
from common.files import read_file
from common.heads import Alarm, HeadRow, alarms, history
from common.sqlite_file import is_being_written

ACCOUNT = "account.db"
_ZIP = b"PK\x03\x04"


def heads_command(
    place: Annotated[
        Path, typer.Argument(help="A site's home, its account.db, or a bundle of evidence.")
    ],
    site: Annotated[str, typer.Option(help="Heads of this site alone.")] = "",
    root: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="The federation's root, from elsewhere, for a bundle."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show ledger heads, of a site or of a bundle.

    A site keeps its own, which the server confirmed, and its peers'. A bundle has those of every
    site of the job, by round.

    Ends with 1 when a ledger forked or shrank, or something was not as it must be, and with 3 when
    a bundle was given without a root.
    """
    is_bundle = _is_bundle(place)
    if root is not None and not is_bundle:
        raise InvalidInput(f"root must come with a bundle of evidence, got {str(place)!r}")
    rows, raised = _of_bundle(place, root, site) if is_bundle else read_heads(place, site)
    is_good = not raised and not any(row.is_bad for row in rows)
    is_rooted = not is_bundle or root is not None
    if as_json:
        print_json(
            {
                "passed": is_good and is_rooted,
                "heads": [asdict(row) for row in rows],
                "alarms": [asdict(alarm) for alarm in raised],
            }
        )
    else:
        _show(rows, raised)
        if not is_rooted:
            print("no root was given (--root): whose word this is, nobody checked")
    if not is_good:
        raise typer.Exit(FAILED)
    if not is_rooted:
        raise typer.Exit(UNROOTED)


def _of_bundle(file: Path, root: Path | None, site: str) -> tuple[list[HeadRow], list[Alarm]]:
    trusted = None if root is None else read_certificate(root)
    return heads_of_bundle(read_file(file, max_bytes=MAX_BUNDLE_BYTES), trusted, site)


def _is_bundle(place: Path) -> bool:
    """Whether it begins as a ZIP does; an account begins otherwise."""
    with suppress(OSError):  # said when it is read whole
        if place.is_file():
            with place.open("rb") as file:
                return file.read(len(_ZIP)) == _ZIP
    return False


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("site", "size", "root", "when (UTC)", "job/round", "server"):
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
