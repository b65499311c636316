import subprocess
import sys
import textwrap
from typing import Annotated

import pytest
import typer

from common import cli
from common.errors import InvalidInput, JobRefused


def site_app() -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.callback(invoke_without_command=True)
    def site(context: typer.Context, site: Annotated[str, typer.Option()]) -> None:
        context.obj = site
        if context.invoked_subcommand is None:
            typer.echo(f"running {site}")

    @app.command()
    def status(context: typer.Context) -> None:
        typer.echo(f"status of {context.obj}")

    @app.command()
    def fail(how: str) -> None:
        raise FAULTS[how]

    @app.command()
    def count(number: int) -> None:
        typer.echo(number)

    return app


FAULTS: dict[str, BaseException] = {
    "refused": JobRefused("job signer must be allowed,\n  got another\x1b[31m"),
    "invalid": InvalidInput("sites must be at least 2, got 1"),
    "three": typer.Exit(3),
    "interrupt": KeyboardInterrupt(),
    "bug": ZeroDivisionError(),
}


def run(*argv: str) -> int:
    return cli.run(site_app(), argv, "fl-client")


def test_the_option_alone_runs_the_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--site", "A") == 0
    assert capsys.readouterr() == ("running A\n", "")


def test_the_option_is_given_once_before_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--site", "A", "status") == 0
    assert capsys.readouterr() == ("status of A\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "missing option '--site' (see: fl-client --help)"),
        (["--sight", "A"], "no such option"),
        (["--site", "A", "statsu"], "no such command 'statsu'"),
        (["--site", "A", "dance"], "no such command 'dance' (known: status, fail, count; see: "),
        (
            ["--site", "A", "status", "--site", "B"],
            "--site must be given before the command, as in: fl-client --site SITE status (see: ",
        ),
        (["--site", "A", "count", "x"], "invalid value for 'NUMBER': 'x' is not a valid integer"),
        (["--site", "A", "fail"], "missing argument 'HOW' (see: fl-client fail --help)"),
        (["--site", "A", "status", "B"], "got unexpected extra argument (B)"),
        (["--site", "A", "fail", "invalid"], "sites must be at least 2, got 1"),
        (["--site", "A", "fail", "refused"], "job signer must be allowed, got another [31m"),
    ],
)
def test_an_error_is_one_plain_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_a_command_chooses_its_own_status() -> None:
    assert run("--site", "A", "fail", "three") == 3


def test_an_interrupt_is_130_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--site", "A", "fail", "interrupt") == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run("--site", "A", "fail", "bug")


def test_the_version_needs_no_other_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    out, err = capsys.readouterr()
    assert out.startswith("fl-client ")
    assert err == ""


def test_help_names_commands_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "status" in out
    assert "--version" in out


def test_a_reader_that_went_away_is_no_error() -> None:
    script = textwrap.dedent("""
        import typer
        from common import cli
        app = typer.Typer()
        @app.command()
        def numbers() -> None:
            for i in range(200_000):
                print(i)
        raise SystemExit(cli.run(app, [], "numbers"))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert complaint == b""
