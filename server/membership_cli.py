"""``fl-server invite``, ``invited`` and ``sites``: who may come in by a token, and who is in.

Not covered: ``enroll`` and ``revoke`` (server/cli.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.cli import AsJson, print_json
from server.home import command_of

if TYPE_CHECKING:
    from server.invitations import Invitation

SiteName = Annotated[str, typer.Argument(help="The site's name.")]


def add_commands(app: typer.Typer) -> None:
    """Add them to ``app``, whose context holds the server's home."""

    @app.command()
    def invite(
        context: typer.Context,
        site: SiteName,
        hours: Annotated[float, typer.Option(help="Until the token expires.")] = 24.0,
        replace: Annotated[
            bool, typer.Option("--replace", help="Revoke the site's certificate for another key.")
        ] = False,
    ) -> None:
        """Print a token by which a site enrols itself, once.

        The token is shown now and never again; the server keeps its hash.
        """
        from server.enrolment import invite as invite_site

        made = invite_site(context.obj, site, hours=hours, replace=replace)
        typer.echo(
            f"site {made.site} invited until {made.expires:%Y-%m-%d %H:%M} UTC\n"
            f"  address      {made.token.address}, open while the server runs and it stands\n"
            f"  root         sha256 {made.token.root_sha256}\n"
            "next:\n"
            "  1. send the site this token by a way that nobody else can read:\n"
            f"{made.token.to_text()}\n"
            f"  2. there:  fl-client --site {made.site} join -  (it asks for the token)"
        )

    @app.command()
    def invited(
        context: typer.Context,
        cancel: Annotated[
            str, typer.Option(metavar="SITE", help="End this site's invitation.")
        ] = "",
        as_json: AsJson = False,
    ) -> None:
        """List the invitations that stand."""
        from common.config import check_name
        from server.invitations import Invitations

        found = Invitations(context.obj)
        if cancel:
            count = found.cancel(check_name("site", cancel))
            typer.echo(f"site {cancel}: {'its invitation has ended' if count else 'none stood'}")
            return
        standing = [(one, _state(one)) for one in found.standing()]
        if as_json:
            print_json([_as_json(one, state) for one, state in standing])
            return
        for one, state in standing:
            typer.echo(f"{one.site}  until {one.expires:%Y-%m-%d %H:%M} UTC, {state}")
        if not standing:
            typer.echo("no invitation stands")

    app.command("sites")(_sites)


def _sites(context: typer.Context, as_json: AsJson = False) -> None:
    """List who is enrolled, until when, and who is connected."""
    from server.config import load_server_config
    from server.enrolment import ROSTER_FILE
    from server.roster import Roster
    from server.sites import listing, words

    home: Path = context.obj
    load_server_config(home)
    found = listing(Roster(home / ROSTER_FILE).sites(), _connected(home))
    if as_json:
        print_json(found)
        return
    width = max((len(line["site"]) for line in found), default=0)
    for line in found:
        typer.echo(f"{line['site']:<{width}}  {words(line)}")
    if not found:
        typer.echo(f"no sites yet (invite one with: {command_of(home)} invite SITE)")


def _connected(home: Path) -> list[str] | None:
    """Only the running server knows; the roster is there without it."""
    from common.errors import LinkDown
    from server.control import Request, ask

    try:
        return list(ask(home, Request(command="sites"))["connected"])
    except LinkDown:
        return None


def _state(one: "Invitation") -> str:
    if one.answer:
        return "used"
    return "being used" if one.key_sha256 else "open"


def _as_json(one: "Invitation", state: str) -> dict[str, str]:
    return {"site": one.site, "expires_at": f"{one.expires:%Y-%m-%dT%H:%M:%SZ}", "state": state}
