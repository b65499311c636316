"""``fl-server roster``: the list of who takes part, signed by the root.

Where the root's key is kept on another machine, ``draft`` writes what is to be signed, ``sign``
(which needs no server's home) signs it there, and ``publish`` shows it to the sites.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from common.signed import SignedRoster

app = typer.Typer(help="Who takes part, as the root signs it for the sites.", rich_markup_mode=None)

SignWith = Annotated[Path, typer.Option("--sign-with", metavar="KEY", help="The root's key.")]


@app.callback(invoke_without_command=True)
def _all_at_once(
    context: typer.Context,
    sign_with: Annotated[
        Path | None,
        typer.Option(
            "--sign-with", metavar="KEY", help="The root's key: draft, sign and publish in one."
        ),
    ] = None,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from server.publication import draft, publish, published, sign_draft

    if sign_with is None:
        if (found := published(context.obj)) is None:
            typer.echo("no roster published yet (sign one with: fl-server roster --sign-with KEY)")
        else:
            _tell("published", found)
        return
    from common.keys import read_key

    signed = sign_draft(draft(context.obj), read_key(sign_with))
    _tell("published", publish(context.obj, signed))


@app.command()
def draft(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to; one that exists is kept.")],
) -> None:
    """Write what is to be signed."""
    from common.files import write_file
    from server.publication import draft as make_draft

    made = make_draft(context.obj)
    write_file(file, made.to_bytes(), mode=0o644, overwrite=False)
    typer.echo(f"roster {made.sequence} of {made.federation} drafted in {file}")
    _tell_sites(made.sites, made.denied)
    typer.echo(
        "next, where the root's key is kept:\n"
        f"  fl-server roster sign {file.name} roster.signed --sign-with root.key\n"
        "and here again:\n"
        "  fl-server roster publish roster.signed"
    )


@app.command()
def sign(
    drafted: Annotated[Path, typer.Argument(metavar="DRAFT", help="What draft wrote.")],
    file: Annotated[Path, typer.Argument(help="Where to; one that exists is kept.")],
    sign_with: SignWith,
) -> None:
    """Sign a draft; needs no server, only the key.

    It says what it signs: compare that with whom you know.
    """
    from common.files import write_file
    from common.keys import read_key
    from common.signed import SignedRoster, read
    from server.publication import read_draft, sign_draft

    data = sign_draft(read_draft(drafted), read_key(sign_with))
    write_file(file, data, mode=0o644, overwrite=False)
    _tell(f"signed in {file}", read(SignedRoster, data))


@app.command()
def publish(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What sign wrote.")],
) -> None:
    """Show a signed roster to the sites."""
    from common.files import read_file
    from common.signed import MAX_DOCUMENT_BYTES
    from server.publication import publish as show

    _tell("published", show(context.obj, read_file(file, max_bytes=MAX_DOCUMENT_BYTES)))


def _tell(done: str, roster: "SignedRoster") -> None:
    when = f"{roster.signed_at:%Y-%m-%d %H:%M} UTC"
    typer.echo(f"roster {roster.sequence} of {roster.federation} {done}, signed {when}")
    typer.echo(f"  root sha256 {roster.root}")
    _tell_sites(roster.sites, roster.denied)


def _tell_sites(sites: Mapping[str, Sequence[str]], denied: Sequence[str]) -> None:
    from common.words import counted

    width = max(map(len, sites), default=0)
    for site, keys in sites.items():
        typer.echo(f"  {site:<{width}} key sha256 {', '.join(keys)}")
    typer.echo(f"  {counted(len(denied), 'certificate')} denied")
