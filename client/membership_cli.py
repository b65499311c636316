"""``fl-client join``, ``renew`` and ``roster``: how this site belongs to the federation.

Not covered: ``init`` and ``install`` (client/cli.py).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from common.cli import AsJson, print_json

if TYPE_CHECKING:
    from client.config import SiteHome
    from client.enrolment import InstalledSite


class Chosen(Protocol):
    """The site that a command is for, its folder, and how to call it again."""

    @property
    def site(self) -> str: ...  # noqa: D102
    @property
    def folder(self) -> Path: ...  # noqa: D102
    @property
    def command(self) -> str: ...  # noqa: D102


def add_commands(
    app: typer.Typer,
    chosen_of: Callable[[typer.Context], Chosen],
    home_of: Callable[[typer.Context], "SiteHome"],
    tell: Callable[[Chosen, "InstalledSite"], None],
) -> None:
    """Add them to ``app``, for the site and home found; ``tell`` says what was installed."""
    _add_join(app, chosen_of, tell)
    _add_renew(app, home_of)
    _add_roster(app, home_of)


def _add_join(
    app: typer.Typer,
    chosen_of: Callable[[typer.Context], Chosen],
    tell: Callable[[Chosen, "InstalledSite"], None],
) -> None:
    @app.command()
    def join(
        context: typer.Context,
        token: Annotated[
            str,
            typer.Argument(
                help="What the operator sent, or - to be asked: other users see no argument then."
            ),
        ],
        max_epsilon: Annotated[
            float, typer.Option(help="The most epsilon that this site's data may ever spend.")
        ] = 8.0,
        max_delta: Annotated[float, typer.Option(help="The largest delta of a job.")] = 1e-5,
    ) -> None:
        """Join a federation by a token, in place of init and install.

        The server is checked by the token before the token's secret is sent. Writes site.toml if
        there is none; one that is there is left as it is.
        """
        from client.joining import join as join_federation
        from common.invitation import read_token

        chosen = chosen_of(context)
        word = _asked() if token == "-" else token
        made = join_federation(
            chosen.folder,
            chosen.site,
            read_token(word),
            max_epsilon=max_epsilon,
            max_delta=max_delta,
        )
        tell(chosen, made)


def _add_renew(app: typer.Typer, home_of: Callable[[typer.Context], "SiteHome"]) -> None:
    @app.command()
    def renew(context: typer.Context) -> None:
        """Renew this site's certificate now, for the key it has.

        A running site does so by itself when two thirds of its life are over, and takes up what
        this puts in place.
        """
        from client.renewal import renew as renew_certificate
        from common.pki import fingerprint

        home = home_of(context)
        made = renew_certificate(home)
        typer.echo(
            f"site {home.site} has a certificate for {made.days_left} days\n"
            f"  certificate  sha256 {fingerprint(made.certificate)}"
        )


def _add_roster(app: typer.Typer, home_of: Callable[[typer.Context], "SiteHome"]) -> None:
    @app.command()
    def roster(context: typer.Context, as_json: AsJson = False) -> None:
        """Show who takes part, as the federation's root signed it."""
        from client.trust import read_roster
        from common.errors import InvalidInput

        found = read_roster(home_of(context))
        if found is None:
            raise InvalidInput("roster must have been shown by the server, got none yet")
        if as_json:
            print_json(found.model_dump(mode="json"))
            return
        typer.echo(
            f"roster {found.sequence} of {found.federation}, signed {found.signed_at:%Y-%m-%d}"
        )
        typer.echo(f"  root         sha256 {found.root}")
        for site, keys in found.sites.items():
            typer.echo(f"  {site:<12} key sha256 {', '.join(keys)}")
        typer.echo(f"  {len(found.denied)} serial numbers denied")


def _asked() -> str:
    """The token from standard input; a terminal does not show it."""
    if sys.stdin.isatty():
        return str(typer.prompt("token", hide_input=True))
    return sys.stdin.readline()
