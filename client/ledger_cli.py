"""``fl-client ledger``: what this site has spent, and that its ledger is whole."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.config import SiteHome
    from client.spending import LedgerSpending

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MAX_EXTRACT_BYTES = 1 << 30


def make_app(home_of: Callable[[typer.Context], "SiteHome"]) -> typer.Typer:
    """The commands, for the site that ``home_of`` finds."""
    app = typer.Typer(help="The signed record of all that was spent.", rich_markup_mode=None)

    @app.command()
    def show(
        context: typer.Context,
        as_json: AsJson = False,
        plot: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Also write the curve as an SVG.")
        ] = None,
    ) -> None:
        """Show what is left, by job and over time."""
        from client.spending import spending

        found = spending(home_of(context))
        if plot is not None:
            _write_plot(plot, found)
        if as_json:
            typer.echo(json.dumps(_to_json(found), indent=2))
        else:
            _show(found)

    @app.command()
    def verify(
        context: typer.Context,
        extract: Annotated[
            Path | None, typer.Argument(help="An exported ledger; by default this site's own.")
        ] = None,
    ) -> None:
        """Check every entry, signature and byte."""
        home = home_of(context)
        typer.echo(_verify_own(home) if extract is None else _verify_extract(extract))

    @app.command()
    def export(
        context: typer.Context,
        file: Annotated[Path, typer.Argument(help="Where to; one that exists is kept.")],
    ) -> None:
        """Write the ledger and its head for an auditor."""
        from client.spending import open_account
        from common.files import write_file
        from common.privacy.extract import write_extract

        outbox = open_account(home_of(context))
        outbox.verify()
        head, rows = outbox.head(), outbox.journal.rows()
        write_file(file, write_extract(rows[: head.size], head), overwrite=False)
        typer.echo(f"ledger exported to {file}\n{_head_words(head.size, head.root)}")

    return app


def _verify_own(home: "SiteHome") -> str:
    from client.spending import open_account

    outbox = open_account(home)
    outbox.verify()
    head = outbox.head()
    return f"ledger of site {home.site} is whole\n{_head_words(head.size, head.root)}" + _key_words(
        outbox.journal.keys
    )


def _verify_extract(path: Path) -> str:
    from common.files import read_file
    from common.privacy.extract import read_extract, replay

    found = read_extract(read_file(path, max_bytes=MAX_EXTRACT_BYTES))
    account = replay(found)
    site = account.created.site if account.created else ""
    return (
        f"exported ledger of site {site} is whole\n"
        f"{_head_words(found.head.size, found.head.root)}{_key_words((found.head.public_key,))}"
    )


def _head_words(size: int, root: str) -> str:
    return f"  entries      {size}\n  root         sha256 {root}"


def _key_words(keys: tuple[str, ...]) -> str:
    """As ``fl-client init`` and the operator see the key."""
    shown = [hashlib.sha256(bytes.fromhex(key)).hexdigest() for key in keys]
    return "".join(f"\n  signed by    key sha256 {key}" for key in shown)


def _write_plot(path: Path, found: "LedgerSpending") -> None:
    from client.curve import svg
    from common.errors import InvalidInput
    from common.files import write_file

    if not found.history:
        raise InvalidInput("ledger must hold a charge to be plotted, got none")
    life = found.life
    title = f"Epsilon of site {found.site} at delta {life.delta:g}, unit {life.unit}"
    write_file(path, svg(found.history, life.max_epsilon, title).encode(), mode=0o644)


def _to_json(found: "LedgerSpending") -> dict[str, Any]:
    from common.strict_json import without_infinity

    shown = {**asdict(found.life), "left": found.life.left, **asdict(found)}
    del shown["life"]
    shown["decisions"] = [decision.model_dump() for decision in found.decisions]
    return dict(without_infinity(shown))


def _show(found: "LedgerSpending") -> None:
    from rich.text import Text

    from client import screen
    from client.curve import draw

    life = found.life
    facts: list[tuple[object, object]] = [
        ("site", found.site),
        ("ledger", f"{found.head.size} entries, root {found.head.root[:16]}"),
        ("unit", life.whose),
        ("lifetime", f"epsilon {life.max_epsilon:g} at delta {life.delta:g}, by {life.lifetime}"),
        ("by the cap", _by(life.charged, life.drawn) + f", {life.left:.3f} left"),
        ("by PLD", _by(life.epsilon, life.drawn_by_pld)),
    ]
    if life.uncovered_rounds:
        facts.append(("no privacy", f"{life.uncovered_rounds} rounds that no epsilon covers"))
    screen.show(screen.table(["", ""], [(Text(str(name), "dim"), fact) for name, fact in facts]))
    if found.jobs:
        screen.show(Text(""))
        names = ["job", "id", "state", "unit", "rounds", "steps", "of", "epsilon"]
        rows = [
            (
                job.name,
                job.sha256[:12],
                job.state,
                job.unit,
                job.rounds,
                job.steps,
                "" if job.planned_steps is None else job.planned_steps,
                "no privacy" if job.epsilon is None else f"{job.epsilon:.3f}",
            )
            for job in found.jobs
        ]
        screen.show(screen.table(names, rows, numbers="rounds steps of epsilon"))
    if found.history:
        words = f"epsilon (PLD) by time, at most {life.max_epsilon:g}; unit {life.unit}"
        screen.show(Text(f"\n{words}"))
        screen.show(Text(draw(found.history, life.max_epsilon)))


def _by(charged: float, drawn: float) -> str:
    return f"{charged:.3f} charged, {drawn:.3f} with what open jobs may still spend"
