"""``fl-client``: a site's commands.

What needs the model libraries or the accountant is imported by the command that needs it, so that
the others answer at once.
"""

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
from common.cli import AsJson
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
    """Run ``fl-client``; 0 done, 1 the doctor found a fault, 2 misuse."""
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
    log_file: Annotated[
        bool, typer.Option("--log-file", help="Log to logs/site.log in the folder as well.")
    ] = False,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Serve Prometheus metrics here, on loopback (127.0.0.1:9465)."
        ),
    ] = "",
) -> None:
    from common import log

    is_run = context.invoked_subcommand is None
    log.configure(level="info" if is_run else "warning", json_lines=json_log)
    if site:
        folder = home.expanduser() if home else default_home(site)
        context.obj = Chosen(check_name("site", site), folder.absolute())
    if is_run:
        _run(context, json_log=json_log, log_file=log_file, metrics=metrics)


def _run(context: typer.Context, *, json_log: bool, log_file: bool, metrics: str) -> None:
    home = _home(context)
    if log_file:
        from common import log

        log.configure(json_lines=json_log, file=home.folder / "logs" / "site.log")
    from client.serve import serve

    serve(home, metrics)


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
    has_run = (chosen.folder / "account.db").exists()
    rekey = (
        f"if the key is another than before, let it sign the ledger:  {chosen.command} ledger rekey"
    )
    check = f"map your data in {config.name}, then:  {chosen.command} data check"
    steps = (*first, rekey if has_run else check, f"take part:  {chosen.command}")
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
        cli.print_json(found.to_json())
    else:
        standing.show(found)


@app.command()
def doctor(
    context: typer.Context,
    job: Annotated[
        Path | None, typer.Option(help="A job's file: measure the memory that it takes.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the network alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this site, and what to do about it.

    Nothing is written and no record is read. Ends with 1 when there is a fault.
    """
    from client.doctor import Patient
    from client.doctor import doctor as examine
    from common.job import load_job

    chosen = _chosen(context)
    manifest = None if job is None else load_job(job)
    patient = Patient(chosen.folder, chosen.site, chosen.command, offline, manifest)
    report = examine(patient)
    print(report.to_json()) if as_json else report.show()
    raise typer.Exit(report.status)


@app.command()
def jobs(context: typer.Context, as_json: AsJson = False) -> None:
    """List the jobs that this site takes or took part in."""
    from client import status as standing

    found = standing.jobs(_home(context))
    if as_json:
        cli.print_json([standing.as_json(job) for job in found])
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
        cli.print_json(found.to_json())
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
    hold_out: Annotated[
        str, typer.Option(metavar="SET", help="A public set, by name or file: what is in both?")
    ] = "",
    split: Annotated[str, typer.Option(help="Of the public set, if it has several.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Count records, labels, duplicates, empty and over-long texts.

    For this site's eyes: nothing of it is sent.
    """
    from client import datacheck

    home = _home(context)
    manifest = datacheck.read_job(job)
    names = datacheck.names_of(home, name, manifest)
    if as_json:
        cli.print_json([datacheck.as_json(home, n, manifest, hold_out, split) for n in names])
    for wanted in names:
        if not as_json:
            _check(home, wanted, manifest)
            _compare(home, wanted, manifest, hold_out, split)
        if manifest is not None:
            datacheck.require_public_labels(home, wanted, manifest)


def _check(home: "SiteHome", name: str, job: "Job | None") -> None:
    from client import datacheck
    from common.data.check import table

    report = datacheck.inspect(home, name, job)
    screen.show(Text(f"{name}: {home.path(home.data_set(name).path)}"))
    screen.show(table(report))
    if job is None:
        print("lengths are counted in words: --job job.toml counts in a job's tokens and labels")


def _compare(home: "SiteHome", name: str, job: "Job | None", hold_out: str, split: str) -> None:
    from client import datacheck
    from common.data.overlap import table

    if hold_out:
        screen.show(table(datacheck.beside(home, name, job, hold_out, split), hold_out))
        print(
            "what is in both is a fact about records: telling it is a release that no budget counts"
        )


@app.command()
def fetch(context: typer.Context, job: JobName) -> None:
    """Fetch a finished job's final adapter, verify it and keep it."""
    home = _home(context)
    from client.export import fetch_adapter
    from common.model import file_sha256
    from common.saved import WEIGHTS

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
    """Try a kept adapter on a text: its labels, or its entities."""
    home = _home(context)
    from client import export

    found = export.predict(home, job, sys.stdin.read() if text == "-" else text)
    if as_json:
        cli.print_json([export.as_json(guess) for guess in found])
    elif not found:
        print("no entity found")
    elif found[0].text:
        rows = [(guess.text, guess.label, f"{guess.probability:.3f}") for guess in found]
        screen.show(screen.table(["entity", "kind", "probability"], rows, numbers="probability"))
    else:
        best = [(guess.label, f"{guess.probability:.3f}") for guess in found[:_SHOWN_LABELS]]
        screen.show(screen.table(["label", "probability"], best, numbers="probability"))


@app.command()
def systemd(
    context: typer.Context,
    user: Annotated[
        str, typer.Option(metavar="NAME", help="Who it runs as; by default the folder's owner.")
    ] = "",
    metrics: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Serve Prometheus metrics here, on loopback.")
    ] = "",
) -> None:
    """Print a systemd unit that starts this site, hardened."""
    from common import systemd as units
    from common.metrics import require_loopback

    chosen, home = _chosen(context), _home(context)
    command = [units.program("fl-client"), "--site", home.site, "--home", str(home.folder)]
    if metrics:
        require_loopback(metrics)
        command += ["--metrics", metrics]
    mapped = [data_set.path for data_set in home.config.data.values()]
    device = home.config.runtime.device
    unit = units.unit(
        f"Veiltune site {home.site}",
        command,
        home.folder,
        user=user,
        reads=[*(home.path(path) for path in mapped), *home.models.values()],
        has_gpu={"cpu": False, "cuda": True}.get(device),
    )
    print(units.heading(f"veiltune-site-{home.site}", f"{chosen.command} systemd"), end="")
    print(unit, end="")


membership_cli.add_commands(app, _chosen, _home, _tell_installed)
