"""Running a typer app so that whatever goes wrong on purpose is one plain line.

``run`` prints ``error: ...`` on stderr and answers 2 for a usage error and for any error of ours;
what nobody expected keeps its traceback. Not covered: what a command does; logging (common/log.py).
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

import click
import typer

from common.errors import VeiltuneError

DONE, MISUSE, INTERRUPTED = 0, 2, 130


def run(app: typer.Typer, argv: Sequence[str] | None, prog: str) -> int:
    """Run ``app`` on ``argv`` (None: the process's own) and return the exit status.

    Errors are one line on stderr; a reader that went away (``fl-server jobs | head -1``) is none.
    ``--version`` is added here, so that every command of ours has it.
    """
    command = typer.main.get_command(app)
    command.params.append(_version_option(prog))
    try:
        status = command.main(
            args=None if argv is None else list(argv), prog_name=prog, standalone_mode=False
        )
        _flush()
    except (click.ClickException, VeiltuneError) as error:
        complain(_sentence(error, prog))
        return MISUSE
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:
        _hush()
        return DONE
    except SystemExit as leave:  # typer's own answer to a reader that went away
        _hush()
        return leave.code if isinstance(leave.code, int) else DONE
    return status if isinstance(status, int) else DONE


def complain(message: str) -> None:
    """Print ``error: message`` on stderr, on one line whatever the message holds."""
    try:
        print("error:", one_line(message), file=sys.stderr, flush=True)
    except BrokenPipeError:
        _hush()


def one_line(text: str) -> str:
    r"""Join the lines of ``text`` and drop what would move a terminal's cursor.

    >>> one_line("two\n  lines\x1b[2J")
    'two lines [2J'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _sentence(error: Exception, prog: str) -> str:
    if not isinstance(error, click.ClickException):
        return str(error)
    message = error.format_message().rstrip(". \n")
    message = message[:1].lower() + message[1:]
    if not isinstance(error, click.UsageError):
        return message
    path = error.ctx.command_path if error.ctx else prog
    return f"{message} (see: {path} --help)"


def _version_option(prog: str) -> click.Option:
    def show(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            print(f"{prog} {installed_version()}")
            context.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Print the version and leave.",
    )


def installed_version() -> str:
    """Veiltune's version, as installed here."""
    try:
        return version("veiltune")
    except PackageNotFoundError:  # run from a bare clone
        return "unknown"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _hush() -> None:
    """Send what is still buffered nowhere, or the interpreter complains of it on leaving."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            _redirect(stream, nowhere)


def _redirect(stream: TextIO, nowhere: TextIO) -> None:
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(nowhere.fileno(), stream.fileno())
