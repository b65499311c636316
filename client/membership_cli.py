"""``fl-client renew`` and ``roster``: how this site belongs to the federation.

Not covered: ``init`` and ``install`` (client/cli.py).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from client.config import SiteHome


def add_commands(app: typer.Typer, home_of: Callable[[typer.Context], "SiteHome"]) -> None:
    """Add them to ``app``, for the site that ``home_of`` finds."""

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

    @app.command()
    def roster(context: typer.Context) -> None:
        """Show who takes part, as the federation's root signed it."""
        from client.trust import read_roster
        from common.errors import InvalidInput

        found = read_roster(home_of(context))
        if found is None:
            raise InvalidInput("roster must have been shown by the server, got none yet")
        typer.echo(
            f"roster {found.sequence} of {found.federation}, signed {found.signed_at:%Y-%m-%d}"
        )
        typer.echo(f"  root         sha256 {found.root}")
        for site, keys in found.sites.items():
            typer.echo(f"  {site:<12} key sha256 {', '.join(keys)}")
        typer.echo(f"  {len(found.denied)} serial numbers denied")
