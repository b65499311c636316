"""``fl-client``: a site's commands.

What needs the model libraries or the accountant is imported by the command that needs it, so that
the others answer at once.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer
from rich.text import Text

from client import ledger_cli, membership_cli, screen
from client.config import default_home, load_home
from common import cli
from common.config import check_name

if TYPE_CHECKING:
    from client.config import SiteHome
    from client.enrolment import InstalledSite
    from common.job import Job

_SHOWN_LABELS = 5

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="A site of a federation: without a command, it takes part until stopped.",
)
data = typer.Typer(help="The site's own data.", rich_markup_mode=None)
app.add_typer(data, name="data")

JobName = Annotated[str, typer.Argument(help="A job's name, or the first characters of its id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The site that a command is for, and its folder."""

    site: str
    folder: Path

    @property
    def command(self) -> str:
        """How to call this program for the same site again."""
        is_default = self.folder == default_home(self.site).absolute()
        home = "" if is_default else f" --home {shlex.quote(str(self.folder))}"
        return f"fl-client --site {self.site}{home}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fl-client``; 0 done, 2 misuse."""
    return cli.run(app, argv, "fl-client")


@app.callback(invoke_without_command=True)
def _site(
    context: typer.Context,
    site: Annotated[
        str, typer.Option(metavar="SITE", help="The site's name; given before the command.")
    ] = "",
    home: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The site's folder, by default ~/.veiltune/sites/SITE."),
    ] = None,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log lines of JSON.")] = False,
) -> None:
    from common import log

    is_run = context.invoked_subcommand is None
    log.configure(level="info" if is_run else "warning", json_lines=json_log)
    if site:
        folder = home.expanduser() if home else default_home(site)
        context.obj = Chosen(check_name("site", site), folder.absolute())
    if is_run:
        _run(context)


def _run(context: typer.Context) -> None:
    home = _home(context)
    from client.serve import serve

    serve(home)


def _chosen(context: typer.Context) -> Chosen:
    if not isinstance(context.obj, Chosen):
        # Not a required option, so that ``fl-client status --help`` needs no site.
        raise click.UsageError("--site must be given before the command, got nothing", context)
    return context.obj


def _home(context: typer.Context) -> "SiteHome":
    chosen = _chosen(context)
    return load_home(chosen.folder, chosen.site)


app.add_typer(ledger_cli.make_app(_home), name="ledger")


@app.command()
def init(context: typer.Context) -> None:
    """Make this site's key, and the request that the operator needs."""
    from client.enrolment import init_site

    chosen = _chosen(context)
    made = init_site(chosen.folder, chosen.site)
    print(
        f"site {made.site} {'made' if made.is_new else 'was made before'} in {chosen.folder}\n"
        f"  request      {made.csr}\n"
        f"  its key      sha256 {made.key_sha256}\n"
        "next:\n"
        f"  1. send the request to the operator, for:  fl-server enroll {made.csr.name}\n"
        "  2. compare the key's sha256 with the one the operator sees, by telephone\n"
        f"  3. install what comes back:  {chosen.command} install {made.site}.bundle"
    )


@app.command()
def install(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The file that the operator sent back.")],
    max_epsilon: Annotated[
        float, typer.Option(help="The most epsilon that this site's data may ever spend.")
    ] = 8.0,
    max_delta: Annotated[float, typer.Option(help="The largest delta of a job.")] = 1e-5,
) -> None:
    """Put in place what the operator sent back.

    Writes site.toml if there is none; one that is there is left as it is.
    """
    from client.enrolment import install as install_bundle

    chosen = _chosen(context)
    made = install_bundle(
        chosen.folder, chosen.site, bundle, max_epsilon=max_epsilon, max_delta=max_delta
    )
    compare = "compare root and operator key with what the operator sees, by telephone"
    _tell_installed(chosen, made, (compare,))


def _tell_installed(
    chosen: membership_cli.Chosen, made: "InstalledSite", first: Sequence[str] = ()
) -> None:
    config = chosen.folder / "site.toml"
    kept = "" if made.is_new else " (kept as it was, with its limits)"
    steps = (
        *first,
        f"map your data in {config.name}, then:  {chosen.command} data check",
        f"take part:  {chosen.command}",
    )
    numbered = "\n".join(f"  {number}. {step}" for number, step in enumerate(steps, 1))
    print(
        f"site {made.site} installed, for {made.days_left} days\n"
        f"  server       {made.server}\n"
        f"  root         sha256 {made.root_sha256}\n"
        f"  certificate  sha256 {made.certificate_sha256}\n"
        f"  operator key {made.operator}\n"
        f"  settings     {config}{kept}\n"
        f"next:\n{numbered}"
    )


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the link or why it is down, jobs, and what they have cost."""
    from client import status as standing

    found = standing.status(_home(context))
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        standing.show(found)


@app.command()
def jobs(context: typer.Context, as_json: AsJson = False) -> None:
    """List the jobs that this site takes or took part in."""
    from client import status as standing

    found = standing.jobs(_home(context))
    if as_json:
        print(json.dumps([standing.as_json(job) for job in found], indent=2))
    elif found:
        standing.show_jobs(found)
    else:
        print("no jobs yet (the operator submits them; this site must be running)")


By = Annotated[str, typer.Option("--by", help="Who decides, if not who is logged in.")]


@app.command()
def approve(context: typer.Context, job: JobName, by: By = "") -> None:
    """Say yes to a job that waits for a person.

    The ledger keeps who said so and when.
    """
    _decide(context, job, "approve", by)


@app.command()
def refuse(context: typer.Context, job: JobName, by: By = "") -> None:
    """Say no to a job, also to one that runs.

    That ends it here, for ever: its charges stay, what it held of the budget is
    let go. The ledger keeps who said so and when.
    """
    _decide(context, job, "refuse", by)


def _decide(
    context: typer.Context, job: str, decision: Literal["approve", "refuse"], by: str
) -> None:
    home = _home(context)
    from client import approval

    who = by or approval.login_name()
    offer = approval.decide(home, job, decision, who)
    print(f"job {offer.name} ({offer.sha256[:12]}) {offer.state} by {who}")


@app.command()
def preflight(
    context: typer.Context,
    job: Annotated[
        str,
        typer.Argument(help="A job's file, or the name or id of one that waits for approval."),
    ],
    as_json: AsJson = False,
) -> None:
    """Predict a job's verdict, epsilon, bytes, memory and time.

    Nothing is sent or charged, and no record is read: it measures on public random tokens.
    """
    home = _home(context)
    from client import preflight as flight

    found = flight.preflight(home, flight.read_job(home, job))
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        flight.show(found)
    found.require_admitted()


@data.command()
def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A data set of site.toml; by default all.")] = "",
    job: Annotated[
        Path | None, typer.Option(help="A job's file: count in its labels and tokens.")
    ] = None,
) -> None:
    """Count records, labels, duplicates, empty and over-long texts.

    For this site's eyes: nothing of it is sent.
    """
    from client import datacheck

    home = _home(context)
    manifest = datacheck.read_job(job)
    for wanted in datacheck.names_of(home, name, manifest):
        _check(home, wanted, manifest)


def _check(home: "SiteHome", name: str, job: "Job | None") -> None:
    from client import datacheck
    from common.data.check import table

    report = datacheck.inspect(home, name, job)
    screen.show(Text(f"{name}: {home.path(home.data_set(name).path)}"))
    screen.show(table(report))
    if job is None:
        print("lengths are counted in words: --job job.toml counts in a job's tokens and labels")
    else:
        datacheck.require_public_labels(home, name, job)


@app.command()
def fetch(context: typer.Context, job: JobName) -> None:
    """Fetch a finished job's final adapter, verify it and keep it."""
    home = _home(context)
    from client.export import WEIGHTS, fetch_adapter
    from common.model import file_sha256

    folder, kept = fetch_adapter(home, job)
    print(
        f"adapter kept in {folder}\n"
        f"  vector sha256 {kept.adapter_sha256}\n"
        f"  file sha256   {file_sha256(folder / WEIGHTS)}  ({WEIGHTS})"
    )
    if kept.hash_from == "closing message":
        print("  vector: the same as in the message that closed the job")
    else:
        print(
            "  this site was away when the job closed: that this is its final adapter\n"
            "  is the server's word alone (compare the vector's sha256 with another site's)"
        )


@app.command()
def predict(
    context: typer.Context,
    job: JobName,
    text: Annotated[
        str,
        typer.Argument(
            help="The text, or - to read it from standard input, which other users cannot see."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Try a kept adapter on a text: its likeliest labels."""
    home = _home(context)
    from client import export

    found = export.predict(home, job, sys.stdin.read() if text == "-" else text)
    if as_json:
        print(json.dumps([{"label": label, "probability": p} for label, p in found], indent=2))
        return
    rows = [(label, f"{probability:.3f}") for label, probability in found[:_SHOWN_LABELS]]
    screen.show(screen.table(["label", "probability"], rows, numbers="probability"))


membership_cli.add_commands(app, _chosen, _home, _tell_installed)
