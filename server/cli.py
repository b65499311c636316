"""``fl-server``: an operator's commands.

What needs the model libraries or the accountant is imported by the command that needs it, so that
``jobs`` and ``show`` answer at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from common import cli
from common.cli import AsJson
from common.words import counted
from server import membership_cli, roster_cli, rotate_cli
from server.home import command_of, default_home, require_home

if TYPE_CHECKING:
    from common.audit.claims import Claim
    from server.control import Line

FAILED = 1

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="The coordinator of a federation: who takes part, which jobs run, their outcome.",
)

JobName = Annotated[str, typer.Argument(help="A job's name, or the first characters of its id.")]
Metrics = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS", help="Serve Prometheus metrics here, on loopback (127.0.0.1:9464)."
    ),
]
User = Annotated[
    str, typer.Option(metavar="NAME", help="Who it runs as; by default the home's owner.")
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fl-server``; 0 done, 1 the job failed or the doctor found a fault, 2 misuse."""
    return cli.run(app, argv, "fl-server")


@app.callback()
def _home(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The server's folder, by default ~/.veiltune/server."),
    ] = None,
) -> None:
    context.obj = (home.expanduser() if home else default_home()).absolute()


@app.command()
def init(
    context: typer.Context,
    host: Annotated[
        list[str], typer.Option(help="A DNS name or IP address of this server; may be repeated.")
    ],
    address: Annotated[
        str,
        typer.Option(help="host:port by which sites reach it; by default the first host, 8443."),
    ] = "",
    listen: Annotated[
        str, typer.Option(help="host:port to listen on; by default every interface.")
    ] = "",
    name: Annotated[str, typer.Option(help="The federation's name.")] = "veiltune",
) -> None:
    """Make this server's keys, certificates and settings."""
    from server.enrolment import init_server

    first = f"[{host[0]}]" if ":" in host[0] else host[0]
    made = init_server(
        context.obj,
        hosts=host,
        address=address or f"{first}:8443",
        name=name,
        listen=listen or None,
    )
    command = command_of(made.home)
    print(
        f"server made in {made.home}\n"
        f"  address      {made.address}\n"
        f"  names        {', '.join(made.hosts)}\n"
        f"  root         sha256 {made.root_sha256}\n"
        f"  operator key {made.operator}\n"
        "next:\n"
        f"  1. move {made.root_key} to a medium that is kept elsewhere; nothing here needs it\n"
        f"  2. start the server:  {command} start\n"
        f"  3. for each site:     {command} invite SITE\n"
        f"     (prints a token; without one:  {command} enroll SITE.csr,\n"
        "     a file that the site makes by: fl-client --site SITE init; send back SITE.bundle)"
    )


@app.command()
def enroll(
    context: typer.Context,
    csr: Annotated[Path, typer.Argument(help="The signing request that the site made.")],
    out: Annotated[
        Path | None, typer.Option(help="The bundle's file or folder; by default beside the CSR.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Revoke the site's certificate for another key.")
    ] = False,
) -> None:
    """Admit a site: issue its certificate, write its bundle."""
    from server.enrolment import enroll as enroll_site

    made = enroll_site(context.obj, csr, out, replace=replace)
    print(
        f"site {made.site} enrolled until {made.not_after:%Y-%m-%d}\n"
        f"  bundle       {made.bundle}\n"
        f"  serial       {made.serial}\n"
        f"  its key      sha256 {made.key_sha256}\n"
        f"  root         sha256 {made.root_sha256}\n"
        f"  certificate  sha256 {made.sha256}\n"
        f"  operator key {made.operator}\n"
        "next:\n"
        "  1. compare its key's sha256 with what init showed the site, by telephone\n"
        f"  2. send it the bundle, for:  fl-client --site {made.site} install {made.bundle.name}\n"
        "  3. compare root and operator key with what install shows the site"
    )


@app.command()
def revoke(
    context: typer.Context, site: Annotated[str, typer.Argument(help="The site's name.")]
) -> None:
    """Turn a site away, from its running session too."""
    from server.enrolment import revoke as revoke_site

    count = revoke_site(context.obj, site)
    words = f"{counted(count, 'certificate')} revoked" if count else "was before"
    print(f"site {site} revoked: {words}")


membership_cli.add_commands(app)
app.add_typer(roster_cli.app, name="roster")
app.add_typer(rotate_cli.app, name="rotate")


@app.command()
def doctor(
    context: typer.Context,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the network alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this server, and what to do about it.

    Nothing is written. Ends with 1 when there is a fault.
    """
    from server.doctor import Patient
    from server.doctor import doctor as examine

    report = examine(Patient(context.obj, offline))
    print(report.to_json()) if as_json else report.show()
    raise typer.Exit(report.status)


@app.command()
def start(
    context: typer.Context,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="What to log.")
    ] = "info",
    json_log: Annotated[bool, typer.Option("--json-log", help="Log lines of JSON.")] = False,
    log_file: Annotated[
        bool, typer.Option("--log-file", help="Log to logs/server.log in the home as well.")
    ] = False,
    metrics: Metrics = "",
) -> None:
    """Run the server until it is stopped by Ctrl-C or SIGTERM.

    Jobs that have not ended go on at the next start.
    """
    from common import log
    from server.daemon import Daemon

    if log_file:
        require_home(context.obj)
    file = context.obj / "logs" / "server.log" if log_file else None
    log.configure(level=level, json_lines=json_log, file=file)
    Daemon(context.obj, names_handshakes=True, metrics=metrics).serve()


@app.command()
def submit(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(help="The job's TOML file.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Show its rounds and wait until it ends.")
    ] = False,
) -> None:
    """Sign a job with this server's operator key and queue it."""
    from common.job import load_job, sign_job
    from common.keys import load_operator_key
    from server.control import Request, ask

    manifest = load_job(job)
    noise_multiplier = manifest.noise_multiplier  # now, so that an epsilon out of reach is told
    signed = sign_job(manifest, load_operator_key(context.obj / "pki" / "operator.key"))
    answer = ask(context.obj, Request(command="submit", signed=signed.to_bytes().decode()))
    if answer["is_new"]:
        print(f"job {answer['name']} queued as {answer['sha256'][:12]}", end=", ")
        print(f"noise multiplier {noise_multiplier:.4g}" if noise_multiplier else "no privacy")
    else:
        reason = f" ({answer['reason']})" if answer["reason"] else ""
        print(f"job {answer['name']} is here already, and is not run twice: ", end="")
        print(f"{answer['sha256'][:12]} is {answer['state']}{reason}")
    if wait:
        _wait(context.obj, answer)


def _wait(home: Path, job: "Line") -> None:
    from server.control import Request, ask, follow
    from server.progress import follow_rounds, outcome_tables

    watched = follow(home, Request(command="watch", job=job["sha256"]))
    end = follow_rounds(watched, job["name"], job["rounds"])
    if end["state"] != "finished":
        cli.complain(f"job {end['name']} {end['state']}: {end['reason']}")
        raise typer.Exit(FAILED)
    outcome_tables(ask(home, Request(command="show", job=job["sha256"])))


@app.command()
def jobs(context: typer.Context, as_json: AsJson = False) -> None:
    """List every job and how it stands."""
    from server.control import Request, ask
    from server.progress import jobs_table

    answer = ask(context.obj, Request(command="jobs"))
    if as_json:
        cli.print_json(answer["jobs"])
    elif answer["jobs"]:
        jobs_table(answer["jobs"])
    else:
        print(f"no jobs yet (queue one with: {command_of(context.obj)} submit job.toml)")


@app.command()
def show(context: typer.Context, job: JobName, as_json: AsJson = False) -> None:
    """Show a job's constants, its rounds, and what each site has spent."""
    from server.control import Request, ask
    from server.progress import job_tables

    answer = ask(context.obj, Request(command="show", job=job))
    if as_json:
        cli.print_json(answer)
    else:
        job_tables(answer)


@app.command()
def stop(context: typer.Context, job: JobName) -> None:
    """End a job before its last round.

    What its sites released stays charged to them.
    """
    from server.control import Request, ask

    answer = ask(context.obj, Request(command="stop", job=job))
    print(f"job {answer['name']} ({answer['sha256'][:12]}) was {answer['was']}, and stops")


@app.command()
def export(
    context: typer.Context,
    job: JobName,
    bundle: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to; one that exists is kept.")
    ],
    audit: Annotated[
        list[Path] | None,
        typer.Option(metavar="JSON", help="An audit's report to go with it; may be repeated."),
    ] = None,
    without_roster: Annotated[
        bool,
        typer.Option(
            "--without-roster",
            help="Leave out the roster that the root signed, as where a site's key is newer.",
        ),
    ] = False,
) -> None:
    """Write a finished job's evidence for an auditor.

    It is checked by: fl-audit verify FILE --root root.pem. Refused, with 1, when a claim fails or
    an audit contradicts it.
    """
    from common.errors import Refusal
    from server.export import export as write_evidence

    try:
        made = write_evidence(context.obj, job, bundle, audit or [], with_roster=not without_roster)
    except Refusal as error:
        cli.complain(str(error))
        raise typer.Exit(FAILED) from error
    print(
        f"evidence written to {made.file}\n"
        f"  holds        {counted(len(made.claims), 'claim')}, {_outcome(made.claims)}, "
        f"{made.size} bytes\n"
        f"  sha256       {made.sha256}\n"
        f"  root         sha256 {made.root_sha256}"
    )


def _outcome(claims: Sequence["Claim"]) -> str:
    """None failed, or nothing would have been written."""
    if not (open_ := [claim.name for claim in claims if claim.status != "pass"]):
        return "all of which pass"
    return f"{len(open_)} not checkable ({', '.join(sorted(set(open_)))}), the rest pass"


@app.command()
def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to; one that exists is kept.")],
) -> None:
    """Write this server's state to one file, also while it runs.

    It holds the server's keys but not the root's: keep it as you keep the home.
    """
    from server.backup import backup as write_backup

    made = write_backup(context.obj, file)
    size = sum(kept.bytes for kept in made.manifest.files.values())
    print(
        f"server backed up to {made.file}\n"
        f"  holds        {counted(len(made.manifest.files), 'file')}, {size} bytes\n"
        f"  sha256       {made.sha256}\n"
        "  left out     the root's key, and the outcomes of jobs under way"
    )
    for name in made.left_out:
        cli.complain(f"{name} must be a plain file of a plain name to be kept, and was left out")
    if made.left_out:
        raise typer.Exit(FAILED)


@app.command()
def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="As written by: fl-server backup FILE")],
) -> None:
    """Put a backup in the place of this server's home.

    Refused while the server runs, and over a home that knows what the backup does not.
    """
    from server.restore import restore as put_back

    done = put_back(context.obj, file)
    command = command_of(done.home)
    print(
        f"server restored in {done.home}, as of {done.manifest.made_at}\n"
        f"  holds        {counted(done.jobs, 'job')}, {counted(done.sites, 'site')}\n"
        f"  root         sha256 {done.manifest.root_sha256}"
    )
    if done.before is not None:
        print(f"  home before  {done.before}")
        print("               (it holds keys: remove it once this one runs)")
    print(
        "next:\n"
        f"  1. revoke again whom you revoked since then:  {command} revoke SITE\n"
        f"  2. invite again who joined since then:        {command} invite SITE\n"
        "     (with --replace for another key; who only renewed comes back unasked)\n"
        f"  3. start the server:  {command} start\n"
        "  4. submit again what you submitted since then: sites charge no round twice"
    )


@app.command()
def systemd(context: typer.Context, user: User = "", metrics: Metrics = "") -> None:
    """Print a systemd unit that starts this server, hardened."""
    from common import systemd as units
    from common.metrics import require_loopback
    from server.config import load_server_config

    name = load_server_config(context.obj).name
    command = [units.program("fl-server"), "--home", str(context.obj), "start"]
    if metrics:
        require_loopback(metrics)
        command += ["--metrics", metrics]
    print(units.heading("veiltune-server", f"{command_of(context.obj)} systemd"), end="")
    print(units.unit(f"Veiltune server {name}", command, context.obj, user=user), end="")


@app.command("hash")
def hash_model(
    model: Annotated[str, typer.Argument(help="builtin:minilm, a folder, or a hub id.")],
    revision: Annotated[str, typer.Option(help="The commit of a hub id.")] = "",
) -> None:
    """Print a base model's content hash, for a job's model.sha256."""
    from common.model import content_hash

    print(content_hash(model, revision))
