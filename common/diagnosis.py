"""What a doctor found: one line a check, and for whatever is not well the one thing to do next.

Each check stands alone. One that ends in an error which a half-broken home may cause is a line of
its own, and the others go on; an error that nobody foresaw keeps its traceback.

Not covered: what is checked (client/doctor.py, server/doctor.py).
"""

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import VeiltuneError
from common.words import counted, escaped

Mark = Literal["ok", "warning", "fault", "not checked"]

_STYLES: dict[Mark, str] = {"ok": "green", "warning": "yellow", "fault": "red", "not checked": ""}
# What a broken file, folder, library or database raises. ImportError: PackageNotFoundError is one.
_EXPECTED = (VeiltuneError, OSError, ValueError, ImportError, sqlite3.Error, RecursionError)
_LOGIN = re.compile(r"://[^\s/]*@")
_WIDE = 100_000  # of a file or a pipe: a check is one line there


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: which check, how it ended, what was found, what to do next if it is not well."""

    check: str
    mark: Mark
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A check by name.

    Attributes:
        name: as its line has it.
        look: yields the findings; writes nothing.
        advice: what to do next where ``look`` itself fails.
    """

    name: str
    look: Callable[[], Iterable[Finding]]
    advice: str


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one home."""

    program: str
    home: str
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> int:
        """How many lines are faults."""
        return sum(finding.mark == "fault" for finding in self.findings)

    @property
    def status(self) -> int:
        """The exit status: 1 with a fault, else 0."""
        return int(self.faults > 0)

    def to_json(self) -> str:
        """For ``--json``."""
        told = {
            "program": self.program,
            "home": self.home,
            "faults": self.faults,
            "findings": [asdict(finding) for finding in self.findings],
        }
        return json.dumps(told, indent=2)

    def show(self) -> None:
        """Print it for a person: a table, then the count of each mark."""
        is_terminal = sys.stdout.isatty()
        console = Console(width=None if is_terminal else _WIDE, highlight=False, emoji=False)
        with console.capture() as captured:
            console.print(_table(self.findings))
            console.print(Text(f"\n{self._summary()}", "bold"))
        for line in captured.get().splitlines():
            console.out(line.rstrip(), highlight=False)

    def _summary(self) -> str:
        marks = [finding.mark for finding in self.findings]
        said = [counted(marks.count("fault"), "fault"), counted(marks.count("warning"), "warning")]
        return ", ".join(
            [*said, f"{marks.count('ok')} ok, {marks.count('not checked')} not checked"]
        )


def ok(check: str, found: str) -> Finding:
    """A line that asks for nothing."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, advice: str) -> Finding:
    """A line about what will be trouble, or may be."""
    return Finding(check, "warning", found, advice)


def fault(check: str, found: str, advice: str) -> Finding:
    """A line about what is wrong now."""
    return Finding(check, "fault", found, advice)


def unchecked(check: str, why: str, advice: str) -> Finding:
    """A line about what could not be looked at."""
    return Finding(check, "not checked", why, advice)


def examine(checks: Iterable[Check]) -> tuple[Finding, ...]:
    """Every check's findings, in order; one that fails is a fault of its own."""
    return tuple(_told(finding) for check in checks for finding in _found(check))


def without_passwords(text: str) -> str:
    """``text`` without the user and password of any URL in it; either may be a secret.

    >>> without_passwords("https_proxy=http://ada:lovelace@proxy:3128")
    'https_proxy=http://***@proxy:3128'
    """
    return _LOGIN.sub("://***@", text)


def _found(check: Check) -> Iterator[Finding]:
    try:
        yield from check.look()
    except _EXPECTED as error:
        yield fault(check.name, _words(error), check.advice)


def _words(error: Exception) -> str:
    """An error without what a library may have put into it."""
    if isinstance(error, VeiltuneError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if isinstance(error.filename, str) else ""
        return f"{error.strerror.lower()}{place}"
    return f"the check ended in a {type(error).__name__}"


def _told(finding: Finding) -> Finding:
    found, advice = without_passwords(finding.found), without_passwords(finding.advice)
    return Finding(finding.check, finding.mark, found, advice)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for wrapped in (False, False, True):
        table.add_column(overflow="fold", no_wrap=not wrapped)
    for finding in findings:
        words = Text(escaped(finding.found))
        if finding.advice:
            words += Text("; next: ", "bold") + Text(escaped(finding.advice))
        table.add_row(Text(finding.mark, _STYLES[finding.mark]), escaped(finding.check), words)
    return table
