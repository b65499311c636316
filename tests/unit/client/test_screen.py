"""What came from elsewhere is printed and never obeyed."""

import pytest
from rich.text import Text

from client import screen
from common.data.check import check, table
from common.data.records import Record

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \x9b31m \u202e"


def shown(content: object, capsys: pytest.CaptureFixture[str]) -> str:
    screen.show(content)  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_words_from_elsewhere_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    cells = screen.table(["job", "why"], [(HOSTILE, Text(f"a\n{HOSTILE}", "red"))])
    line = Text(f"first\n{HOSTILE}\nthird")
    for out in (shown(cells, capsys), shown(line, capsys)):
        assert all(c.isprintable() or c == "\n" for c in out)
        assert "\\x1b[2J" in out
    assert shown(Text("first\nsecond"), capsys) == "first\nsecond\n"


def test_labels_of_a_data_file_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    report = check([Record("text", HOSTILE)], None, len, 9)
    out = shown(table(report), capsys)
    assert "\x1b" not in out
    assert "label \\x1b[2J" in out
