"""``fl-server rotate``: another root with a time of overlap, or another intermediate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.cli import AsJson, print_json

if TYPE_CHECKING:
    from server.rotation import Standing

app = typer.Typer(help="Change the root or the intermediate.", rich_markup_mode=None)

SignWith = Annotated[Path, typer.Option("--sign-with", metavar="KEY", help="The root's key.")]


@app.command()
def begin(context: typer.Context, sign_with: SignWith) -> None:
    """Begin to go over to a new root; the old one signs for it.

    Running sites take it up within minutes.
    """
    from common.keys import read_key
    from server import rotation
    from server.home import command_of

    found = rotation.begin(context.obj, read_key(sign_with))
    _tell(found)
    command = command_of(context.obj)
    key = context.obj / "pki" / "next" / "root.key"
    typer.echo(
        "next:\n"
        f"  1. move {key} to a medium that is kept elsewhere\n"
        f"  2. wait until no site is waiting:  {command} rotate status\n"
        f"  3. {command} rotate end --sign-with KEY  (the new root's)"
    )


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the roots in force, and which sites have gone over."""
    from server import rotation

    found = rotation.standing(context.obj)
    if as_json:
        print_json(
            {
                "root_sha256": found.current,
                "next_root_sha256": found.coming,
                "ready": sorted(found.ready),
                "waiting": sorted(found.waiting),
            }
        )
    else:
        _tell(found)


@app.command()
def end(
    context: typer.Context,
    sign_with: SignWith,
    force: Annotated[
        bool, typer.Option("--force", help="Cut off the sites that have not gone over.")
    ] = False,
) -> None:
    """Drop the old root; the new one signs that."""
    from common.keys import read_key
    from server import rotation
    from server.home import command_of

    found = rotation.end(context.obj, read_key(sign_with), force=force)
    _tell(found)
    if found.cut_off:
        again = f"{command_of(context.obj)} invite SITE"
        typer.echo(f"  cut off    {', '.join(found.cut_off)}\n  each comes back by:  {again}")
    key = context.obj / "pki" / "root.key"
    if key.exists():
        typer.echo(f"next:\n  move {key} to a medium that is kept elsewhere")


@app.command()
def intermediate(context: typer.Context, sign_with: SignWith) -> None:
    """Make another intermediate under the same root.

    What the one before signed stays good until it ends.
    """
    from common.keys import read_key
    from server import rotation

    days = rotation.renew_intermediate(context.obj, read_key(sign_with))
    typer.echo(f"new intermediate, for {days} days; the next certificates are signed by it")


def _tell(found: "Standing") -> None:
    if found.coming is None:
        typer.echo(f"root sha256 {found.current}, and no other")
        return
    typer.echo(f"two roots are accepted\n  old sha256 {found.current}\n  new sha256 {found.coming}")
    typer.echo(f"  gone over  {', '.join(found.ready) or 'no site'}")
    typer.echo(f"  waiting    {', '.join(found.waiting) or 'no site'}")
