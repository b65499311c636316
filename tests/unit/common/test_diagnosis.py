import json
import sqlite3
from collections.abc import Callable, Iterator

import pytest

from common.diagnosis import Check, Finding, Report, examine, fault, ok, unchecked, warning
from common.errors import InvalidInput

Capture = pytest.CaptureFixture[str]


def raising(error: Exception) -> Callable[[], Iterator[Finding]]:
    def look() -> Iterator[Finding]:
        yield ok("before", "told")
        raise error

    return look


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InvalidInput("key must be there, got none"), "key must be there, got none"),
        (FileNotFoundError(2, "No such file", "/h/pki"), "no such file (/h/pki)"),
        (sqlite3.DatabaseError("row 'a patient'"), "the check ended in a DatabaseError"),
        (ValueError("a patient"), "the check ended in a ValueError"),
        (RecursionError("deep"), "the check ended in a RecursionError"),
    ],
)
def test_a_check_that_fails_is_a_fault_of_its_own_and_the_others_go_on(
    error: Exception, words: str
) -> None:
    checks = [
        Check("broken", raising(error), "mend it"),
        Check("next", lambda: [ok("next", "x")], ""),
    ]
    assert examine(checks) == (
        ok("before", "told"),
        fault("broken", words, "mend it"),
        ok("next", "x"),
    )


def test_what_nobody_foresaw_is_not_swallowed() -> None:
    with pytest.raises(AttributeError):
        examine([Check("bug", raising(AttributeError("x")), "")])


def test_passwords_of_urls_are_in_no_line() -> None:
    said = "db=postgresql://ada:love@lace@db/x, https_proxy=http://token@p:1"
    (found,) = examine([Check("a", lambda: [fault("a", said, said)], "")])
    for text in (found.found, found.advice):
        assert text == "db=postgresql://***@db/x, https_proxy=http://***@p:1"


FINDINGS = (
    ok("home", "well"),
    warning("a longer name", "[bold]soon[/] :smile:", "do this"),
    fault("key", "mode\n0644\x1b[2J" + "x" * 300, "chmod 600"),
    unchecked("link", "offline", "connect"),
)


def test_each_line_has_mark_check_finding_and_advice_on_one_line(capsys: Capture) -> None:
    Report("fl-client", "/h", FINDINGS).show()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "ok           home           well",
        "warning      a longer name  [bold]soon[/] :smile:; next: do this",
        "fault        key            mode\\n0644\\x1b[2J" + "x" * 300 + "; next: chmod 600",
        "not checked  link           offline; next: connect",
        "",
        "1 fault, 1 warning, 1 ok, 1 not checked",
    ]


def test_only_a_fault_is_a_status_of_1() -> None:
    assert Report("p", "h", FINDINGS).status == 1
    assert Report("p", "h", tuple(f for f in FINDINGS if f.mark != "fault")).status == 0


def test_json_says_the_same() -> None:
    told = json.loads(Report("fl-client", "/h", FINDINGS).to_json())
    assert (told["program"], told["home"], told["faults"]) == ("fl-client", "/h", 1)
    assert [tuple(one.values()) for one in told["findings"]] == [
        (f.check, f.mark, f.found, f.advice) for f in FINDINGS
    ]
