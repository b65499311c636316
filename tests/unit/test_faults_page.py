"""docs/faults.md against the tests that there are: what it names exists, and marks slow what is."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text("utf-8")
NAMED = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`( \*slow\*)?")
FEWEST_TESTED = 50


def numbered() -> dict[int, list[str]]:
    """Number -> the cells of its row."""
    rows = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    numbers = [int(row[0].strip("| ")) for row in rows]
    assert numbers == list(range(1, 83))
    return {
        number: [cell.strip("| ") for cell in row]
        for number, row in zip(numbers, rows, strict=True)
    }


@cache
def in_file(path: str) -> dict[str, bool]:
    """The tests of a file, and whether each is slow as a whole."""
    source = (ROOT / "tests" / path).read_text("utf-8")
    body = ast.parse(source).body
    all_slow = any("pytestmark" in ast.unparse(n) and "slow" in ast.unparse(n) for n in body[:40])
    found = {}
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            found[node.name] = all_slow or "pytest.mark.slow" in marks
    return found


def named() -> Iterator[tuple[str, str, bool]]:
    for path, test, slow in NAMED.findall(PAGE):
        yield path, test, bool(slow)


def test_every_fault_has_its_number_and_a_test_or_the_reason_why_there_is_none() -> None:
    for number, cells in numbered().items():
        assert len(cells) == 6, number
        assert cells[-1].startswith("none") or "::test_" in cells[-1], number


def test_at_least_fifty_faults_have_a_test() -> None:
    tested = [number for number, cells in numbered().items() if not cells[-1].startswith("none")]
    assert len(tested) >= FEWEST_TESTED


def test_every_test_that_the_page_names_exists() -> None:
    missing = [
        f"{path}::{test}"
        for path, test, _ in named()
        if not (ROOT / "tests" / path).is_file() or (test and test not in in_file(path))
    ]
    assert not missing


def test_a_test_is_marked_slow_where_it_is() -> None:
    wrong = [f"{p}::{t}" for p, t, slow in named() if t and in_file(p)[t] != slow]
    assert not wrong
