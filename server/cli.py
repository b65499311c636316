"""``fl-server``: an operator's commands.

What needs the model libraries or the accountant is imported by the command that needs it, so that
``jobs`` and ``show`` answer at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from common import cli
from common.words import counted
from server import membership_cli, roster_cli, rotate_cli
from server.home import command_of, default_home

if TYPE_CHECKING:
    from server.control import Line

FAILED = 1

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="The coordinator of a federation: who takes part, which jobs run, their outcome.",
)

JobName = Annotated[str, typer.Argument(help="A job's name, or the first characters of its id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fl-server``; 0 done, 1 the job failed, 2 misuse."""
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
def start(
    context: typer.Context,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="What to log.")
    ] = "info",
    json_log: Annotated[bool, typer.Option("--json-log", help="Log lines of JSON.")] = False,
) -> None:
    """Run the server until it is stopped by Ctrl-C or SIGTERM.

    Jobs that have not ended go on at the next start.
    """
    from common import log
    from server.daemon import Daemon

    log.configure(level=level, json_lines=json_log)
    Daemon(context.obj, names_handshakes=True).serve()


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
        print(json.dumps(answer["jobs"], indent=2))
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
        print(json.dumps(answer, indent=2))
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


@app.command("hash")
def hash_model(
    model: Annotated[str, typer.Argument(help="builtin:minilm, a folder, or a hub id.")],
    revision: Annotated[str, typer.Option(help="The commit of a hub id.")] = "",
) -> None:
    """Print a base model's content hash, for a job's model.sha256."""
    from common.model import content_hash

    print(content_hash(model, revision))
