import os
import pty
import subprocess
import sys

import pytest

from server import progress

SCRIPT = """
from server.progress import follow_rounds
closed = [{"round": n, "accuracy": n / 8, "seconds": 1.5, "bytes_up": 2_500_000} for n in range(3)]
lines = [{"state": "running"}, *({"round": record} for record in closed)]
end = {"state": "finished", "round": 2, "rounds": 2}
print(follow_rounds(iter([*lines, end]), "wards[red]", 2) == end)
"""


def test_a_terminal_gets_a_bar_and_the_last_round() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    out, _ = process.communicate(timeout=60)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert out == b"True\n"
    assert "wards[red]" in shown
    assert "round 2/2" in shown
    assert "accuracy 0.250  1.50 s  2.5 MB up" in shown


def test_a_file_gets_one_line_a_round() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
    assert done.stderr.splitlines() == [
        "round 0/2  accuracy 0.000  1.50 s  (the untrained start)",
        "round 1/2  accuracy 0.125  1.50 s  2.5 MB up",
        "round 2/2  accuracy 0.250  1.50 s  2.5 MB up",
    ]


def test_the_untrained_start_is_named_and_sends_nothing() -> None:
    start = {"round": 0, "accuracy": 0.125, "macro_f1": 0.5, "seconds": 2.0, "bytes_up": 0}
    first = {**start, "round": 1, "bytes_up": 7000, "bytes_down": 84_000}
    table = progress.rounds_table([start, first, {**first, "round": 2, "bytes_down": None}])
    rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
    assert list(rows) == [
        ("untrained start", "0.125", "0.500", "2.00", "", ""),
        ("1", "0.125", "0.500", "2.00", "7.0 kB", "84.0 kB"),
        ("2", "0.125", "0.500", "2.00", "7.0 kB", ""),
    ]


@pytest.mark.parametrize(("rounds", "said"), [(1, "after 1 round in 2.5 s"), (2, "after 2 rounds")])
def test_an_outcome_counts_its_rounds(
    rounds: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = {"round": rounds, "accuracy": 0.5, "macro_f1": None, "seconds": 2.5, "bytes_up": 9}
    progress.outcome_tables({"closed": [last], "spent": [], "outcome": "/jobs/ab"})
    assert f"accuracy 0.500, macro F1 - {said}" in capsys.readouterr().out


def test_a_site_without_privacy_has_no_epsilon() -> None:
    site = {"name": "A", "updates": 2, "steps": 8, "epsilon": None, "delta": None, "bytes_up": 999}
    cells = [next(iter(column.cells)) for column in progress.sites_table([site]).columns]
    assert [str(cell) for cell in cells] == ["A", "2", "8", "", "no privacy", "", "999 B"]


def test_a_job_of_entities_shows_their_f1_and_the_round_that_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"accuracy": None, "macro_f1": 0.25, "seconds": 2.5, "bytes_up": 9}
    closed = [row | {"round": n, "entity_f1": f1} for n, f1 in enumerate((0.125, 0.5, 0.375))]
    assert str(progress.rounds_table(closed).columns[1].header) == "entity F1"
    shown = {"closed": closed, "kept_round": 1, "spent": [], "outcome": "/jobs/ab"}
    progress.outcome_tables(shown)
    said = "entity F1 0.500, macro F1 0.250 (the best: round 1) after 2 rounds"
    assert said in capsys.readouterr().out
