"""``fl-client ledger``: what this site has spent, and that its ledger is whole.

``rekey`` alone writes; the others leave the account as they find it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.cli import AsJson, print_json

if TYPE_CHECKING:
    from client.config import SiteHome
    from client.outbox import Outbox
    from client.spending import LedgerSpending
    from common.privacy.entries import Rekeyed

MAX_EXTRACT_BYTES = 1 << 30
MAX_PLOT_BYTES = 1 << 24


def make_app(home_of: Callable[[typer.Context], "SiteHome"]) -> typer.Typer:
    """The commands, for the site that ``home_of`` finds."""
    app = typer.Typer(help="The signed record of all that was spent.", rich_markup_mode=None)

    @app.command()
    def show(
        context: typer.Context,
        as_json: AsJson = False,
        plot: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                help="Also write the curve as an SVG; of what exists, only an SVG is replaced.",
            ),
        ] = None,
    ) -> None:
        """Show what is left, by job and over time."""
        from client.spending import spending

        found = spending(home_of(context))
        if plot is not None:
            _write_plot(plot, found)
        if as_json:
            print_json(_to_json(found))
        else:
            _show(found)

    @app.command()
    def verify(
        context: typer.Context,
        extract: Annotated[
            Path | None, typer.Argument(help="An exported ledger; by default this site's own.")
        ] = None,
        as_json: AsJson = False,
    ) -> None:
        """Check every entry, signature and byte."""
        home = home_of(context)
        found = _verify_own(home) if extract is None else _verify_extract(extract)
        if as_json:
            print_json(found.to_json())
        else:
            typer.echo(found.words)

    @app.command()
    def export(
        context: typer.Context,
        file: Annotated[Path, typer.Argument(help="Where to; one that exists is kept.")],
    ) -> None:
        """Write the ledger and its head for an auditor."""
        typer.echo(_export(home_of(context), file))

    _add_rekey(app, home_of)
    return app


def _add_rekey(app: typer.Typer, home_of: Callable[[typer.Context], "SiteHome"]) -> None:
    @app.command()
    def rekey(
        context: typer.Context,
        old_key: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="The key before (PEM): it hands over to this one."),
        ] = None,
        yes: Annotated[
            bool, typer.Option("--yes", help="Accept what was said without it.")
        ] = False,
        by: Annotated[str, typer.Option("--by", help="Who accepts, if not who is logged in.")] = "",
    ) -> None:
        """Let this site's new key sign the ledger.

        Without --yes it says what that accepts, and changes nothing.
        """
        from client.approval import login_name

        typer.echo(_rekey(home_of(context), old_key, is_sure=yes, who=by or login_name()))


def _export(home: "SiteHome", file: Path) -> str:
    from client.spending import open_account
    from common.files import write_file
    from common.privacy.extract import write_extract

    outbox = open_account(home)
    outbox.verify()
    head, rows = outbox.head(), outbox.journal.rows()
    write_file(file, write_extract(rows[: head.size], head), overwrite=False)
    return f"ledger exported to {file}\n{_head_words(head.size, head.root)}"


def _rekey(home: "SiteHome", old_key: Path | None, *, is_sure: bool, who: str) -> str:
    from client.journal import key_words
    from client.outbox import Outbox
    from common.errors import InvalidInput
    from common.keys import load_key, read_key

    if not 0 < len(who) <= 200 or not who.isprintable():
        raise InvalidInput(f"who must be 1 to 200 printable characters, got {who[:80]!r}")
    outbox = Outbox.unclaimed(home, is_reader=True)
    outbox.verify()
    own, last = outbox.journal.own_key, outbox.journal.keys[-1]
    if own == last:
        return f"ledger of site {home.site} is signed by this site's key already"
    old = None if old_key is None else load_key(read_key(old_key))
    if old is None and not is_sure:
        typer.echo(_warning(home, outbox, own, last))
        raise InvalidInput("--yes must be given to accept this, got nothing")
    outbox.journal.rekey(who, old)
    how = "accepted without the key before" if old is None else "handed over by the key before"
    return (
        f"ledger of site {home.site} goes on under key sha256 {key_words(own)}\n  {how}, by {who}"
    )


def _warning(home: "SiteHome", outbox: "Outbox", own: str, last: str) -> str:
    from client.journal import key_words

    size = len(outbox.journal.rows())
    return (
        f"ledger of site {home.site}: {size} entries, the last of them signed by another key\n"
        f"  that key     sha256 {key_words(last)}\n"
        f"  this site's  sha256 {key_words(own)}\n"
        f"  root         sha256 {outbox.journal.root(size)}\n"
        f"It did not hand over. Whoever holds it, and can write here, may have written entries\n"
        f"of their own or left charges out: with --yes all {size} entries are taken as this\n"
        f"site's for good. Compare size and root with an export that you keep or the head that\n"
        f"the server witnessed. If you have the key, --old-key FILE lets it hand over instead."
    )


@dataclass(frozen=True)
class _Whole:
    """A ledger that was found whole."""

    what: str
    site: str
    entries: int
    root: str
    keys: Sequence[str]
    hand_overs: "Sequence[Rekeyed]"

    @property
    def words(self) -> str:
        """For a person."""
        return (
            f"{self.what} of site {self.site} is whole\n{_head_words(self.entries, self.root)}"
            f"{_keys_words(self.keys, self.hand_overs)}"
        )

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        from client.journal import key_words

        return {
            "site": self.site,
            "entries": self.entries,
            "root": self.root,
            "keys": [key_words(key) for key in self.keys],
            "hand_overs": [entry.words for entry in self.hand_overs],
        }


def _verify_own(home: "SiteHome") -> _Whole:
    from client.spending import open_account

    outbox = open_account(home)
    outbox.verify()
    head = outbox.head()
    keys, hand_overs = outbox.journal.keys, outbox.hand_overs()
    return _Whole("ledger", home.site, head.size, head.root, keys, hand_overs)


def _verify_extract(path: Path) -> _Whole:
    from common.files import read_file
    from common.privacy.extract import read_extract, replay

    found = read_extract(read_file(path, max_bytes=MAX_EXTRACT_BYTES))
    account = replay(found)
    site, head = account.created.site if account.created else "", found.head
    return _Whole("exported ledger", site, head.size, head.root, (head.public_key,), ())


def _head_words(size: int, root: str) -> str:
    return f"  entries      {size}\n  root         sha256 {root}"


def _keys_words(keys: Sequence[str], hand_overs: "Sequence[Rekeyed]") -> str:
    """Each key, and by whose word it followed the one before."""
    from client.journal import key_words

    shown = [f"\n  signed by    key sha256 {key_words(key)}" for key in keys]
    words = ["", *(f" ({entry.words})" for entry in hand_overs)]
    return "".join(key + how for key, how in zip(shown, words, strict=False))


def _write_plot(path: Path, found: "LedgerSpending") -> None:
    from client.curve import svg
    from common.errors import InvalidInput
    from common.files import exists, read_file, write_file

    if not found.history:
        raise InvalidInput("ledger must hold a charge to be plotted, got none")
    if exists(path) and read_file(path, max_bytes=MAX_PLOT_BYTES)[:4] != b"<svg":
        raise InvalidInput(f"{str(path)!r} must be an SVG to be replaced, got another file")
    life = found.life
    title = f"Epsilon of site {found.site} at delta {life.delta:g}, unit {life.unit}"
    write_file(path, svg(found.history, life.max_epsilon, title).encode(), mode=0o644)


def _to_json(found: "LedgerSpending") -> dict[str, Any]:
    shown = {**asdict(found.life), "left": found.life.left, **asdict(found)}
    del shown["life"]
    shown["decisions"] = [decision.model_dump() for decision in found.decisions]
    return shown


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
        names = ["job", "id", "state", "unit", "rounds", "steps", "of", "counts", "epsilon"]
        rows = [
            (
                job.name,
                job.sha256[:12],
                job.state,
                job.unit,
                job.rounds,
                job.steps,
                "" if job.planned_steps is None else job.planned_steps,
                job.counts or "",
                "no privacy" if job.epsilon is None else f"{job.epsilon:.3f}",
            )
            for job in found.jobs
        ]
        screen.show(screen.table(names, rows, numbers="rounds steps of counts epsilon"))
    if found.history:
        words = f"epsilon (PLD) by time, at most {life.max_epsilon:g}; unit {life.unit}"
        screen.show(Text(f"\n{words}"))
        screen.show(Text(draw(found.history, life.max_epsilon)))


def _by(charged: float, drawn: float) -> str:
    return f"{charged:.3f} charged, {drawn:.3f} with what open jobs may still spend"
