"""Running a typer app so that whatever goes wrong on purpose is one plain line.

``run`` prints ``error: ...`` on stderr and answers 2 for a usage error and for any error of ours;
what nobody expected keeps its traceback. Help is plain text for every program alike.

Not covered: what a command does; logging (common/log.py).
"""

import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, TextIO, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.models import ArgumentInfo

from common.errors import VeiltuneError
from common.strict_json import without_infinity

DONE, MISUSE, INTERRUPTED = 0, 2, 130

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(app: typer.Typer, argv: Sequence[str] | None, prog: str) -> int:
    """Run ``app`` on ``argv`` (None: the process's own) and return the exit status.

    Errors are one line on stderr; a reader that went away (``fl-server jobs | head -1``) is none.
    ``--version`` is added here, so that every command of ours has it.
    """
    command = typer.main.get_command(app)
    command.params.append(_version_option(prog))
    _make_plain(command)
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


def print_json(value: Any) -> None:  # noqa: ANN401 -- what JSON can hold
    """Print what a command found, as each of ours does under ``--json``.

    One document: an object, or a list where like things are listed. Keys are snake_case, times are
    UTC in ISO 8601, what JSON has no number for (an epsilon without bound) is null, and anything
    beyond ASCII is escaped, so that no terminal and no encoding changes it.
    """
    print(json.dumps(without_infinity(value), indent=2, allow_nan=False))


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
    if error.ctx is None:
        return f"{message} (see: {prog} --help)"
    message = _before_the_command(error, error.ctx) or message
    return f"{message} ({_known_commands(message, error.ctx)}see: {error.ctx.command_path} --help)"


def _known_commands(message: str, context: click.Context) -> str:
    group = context.command
    if not isinstance(group, click.Group) or not message.startswith(("no such c", "missing c")):
        return ""
    return f"known: {', '.join(group.list_commands(context))}; "


def _before_the_command(error: click.UsageError, context: click.Context) -> str:
    """What to say of an option that a group above this command takes; empty for any other."""
    above = context.parent
    while isinstance(error, click.NoSuchOption) and above is not None:
        for option in above.command.params:
            if error.option_name in option.opts:
                value = option.metavar or (option.name or "").upper()
                words = [above.command_path, error.option_name]
                words += [] if getattr(option, "is_flag", False) else [value]
                words.append(context.command_path.removeprefix(above.command_path).strip())
                told = f"{error.option_name} must be given before the command, as in: "
                return told + " ".join(words)
        above = above.parent
    return ""


class _Formatter(click.HelpFormatter):
    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        begin = len(self.buffer)
        with super().section(name):
            yield
        if name == "Positional arguments":  # click 8.5 writes them beside typer's "Arguments"
            del self.buffer[begin:]

    def getvalue(self) -> str:
        # Typer escapes for rich whether or not rich prints it.
        return super().getvalue().replace("\\[", "[")


class _Context(click.Context):
    formatter_class = _Formatter


def _make_plain(command: click.Command) -> None:
    """Give a command, and those below it, help without boxes in which arguments are described."""
    command.context_class = _Context
    if isinstance(command, TyperCommand | TyperGroup):
        command.rich_markup_mode = None
    if isinstance(command, TyperGroup):
        command.suggest_commands = False  # click suggests them too
    callback = command.callback
    hints = get_type_hints(inspect.unwrap(callback), include_extras=True) if callback else {}
    for param in command.params:
        if isinstance(param, TyperArgument) and not param.help:  # click 8.5 forgets it
            for said in getattr(hints.get(param.name or ""), "__metadata__", ()):
                param.help = said.help if isinstance(said, ArgumentInfo) else param.help
    for below in getattr(command, "commands", {}).values():
        _make_plain(below)


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
