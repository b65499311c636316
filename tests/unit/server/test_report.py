import contextlib
import doctest
import http.server
import itertools
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common import figures, statement
from common.documents import markup
from common.errors import InvalidInput
from common.job import Job
from common.result import Result
from server.report import page, plots, write_report

MakeOutcome = Callable[..., tuple[Result, Job]]
HOSTILE = ['<script>alert("x")</script>', "a&b <img src=x onerror=y>", "' onload='z", "\u202ergb"]


class Outline(HTMLParser):
    """Tags with their attributes, and the text, by the standard library's parser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "wbr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mode": "none"},
        {"seeded": True},
        pytest.param({"classes": 77, "rounds": 9}, marks=pytest.mark.slow),
        {"classes": HOSTILE},
    ],
    ids=["private", "none", "seeded", "many", "hostile"],
)
def test_the_page_is_well_formed_runs_nothing_and_fetches_nothing(
    how: dict[str, Any], outcome: MakeOutcome
) -> None:
    outline = Outline(page.page(*outcome(**how)))
    assert outline.open == []
    assert not {"script", "img", "iframe", "object", "base", "form"} & {t for t, _ in outline.tags}
    for _, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert (attributes.get("href") or "data:,") == "data:,"
        assert "src" not in attributes
    assert "url(" not in "".join(outline.words)


def test_names_from_outside_are_shown_letter_by_letter(outcome: MakeOutcome) -> None:
    outline = Outline(page.page(*outcome(classes=HOSTILE)))
    for label in HOSTILE:
        assert label in "".join(outline.words)


def test_an_attribute_from_outside_cannot_leave_its_quotes() -> None:
    made = markup.element("rect", aria_label='"><script>')
    assert made == '<rect aria-label="&quot;&gt;&lt;script&gt;"/>'


def test_the_policy_allows_this_style_sheet_alone(outcome: MakeOutcome) -> None:
    text = page.page(*outcome())
    policy = next(m for m in Outline(text).named("meta") if "http-equiv" in m)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_it_tells_the_figures_of_the_result(outcome: MakeOutcome) -> None:
    result, job = outcome(steps={"northgate": 48})
    told = Outline(page.page(result, job)).text
    for words in ("0.851", "discharge-notes", "1,350", "builtin:wards", "Which department"):
        assert words in told
    assert result.job_sha256 in told
    assert "Not private" not in told


def test_of_entities_it_tells_their_f1_in_the_place_of_accuracy(
    outcome_of_words: MakeOutcome,
) -> None:
    told = Outline(page.page(*outcome_of_words(["Drug", "Sign"], kept_round=5))).text
    for words in (
        "Words tagged, to find Drug, Sign",
        "entity F1",
        "0.812",  # precision
        "0.766 in its strict mode; 789 of 23,456 words lie beyond the longest text",
        "The adapter is that of round 5, the best.",
        "5 (kept)",
        "The 2 kinds of entities",
    ):
        assert words in told
    assert "accuracy" not in told.replace("Accuracy and F1: they come from", "")
    assert "The kind of entity" in page.page(*outcome_of_words(["Drug"]))


def test_the_operators_folders_are_not_told(outcome: MakeOutcome) -> None:
    assert "/home/operator" not in page.page(*outcome())


@pytest.mark.parametrize(
    ("how", "why"), [({"mode": "none"}, "were switched off"), ({"seeded": True}, "from a seed")]
)
def test_a_run_that_is_not_private_says_so_loudly(
    how: dict[str, Any], why: str, outcome: MakeOutcome
) -> None:
    outline = Outline(page.page(*outcome(**how)))
    assert {"class": "banner", "role": "alert"} in outline.named("div")
    assert "Not private: this run gives no privacy guarantee" in outline.text
    assert why in outline.text
    assert "sent only noised updates" not in outline.text


def test_a_class_without_records_in_the_hold_out_has_no_score(outcome: MakeOutcome) -> None:
    result, job = outcome(classes=["seen", "unseen"])
    rows = (result.final.classes[0], result.final.classes[1].model_copy(update={"support": 0}))
    final = result.final.model_copy(update={"classes": rows})
    told = Outline(page.page(result.model_copy(update={"final": final}), job)).text
    assert re.search(rf"unseen{figures.NOTHING}{figures.NOTHING}{figures.NOTHING}0", told)


@pytest.mark.slow
def test_rounds_that_were_not_evaluated_leave_a_gap_not_an_error(outcome: MakeOutcome) -> None:
    result, job = outcome(rounds=4)
    rows = [row.model_copy(update={"accuracy": None, "macro_f1": None}) for row in result.rounds]
    for rounds in ((*rows[:3], result.rounds[3]), tuple(rows)):
        assert "svg" in page.page(result.model_copy(update={"rounds": rounds}), job)


def test_a_result_of_another_job_is_refused(outcome: MakeOutcome, tmp_path: Path) -> None:
    result, _ = outcome()
    with pytest.raises(InvalidInput, match="job_sha256 must be"):
        write_report(result, outcome(rounds=3)[1], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_the_best_guess_of_the_bet_is_randomised_responses() -> None:
    # Randomised response with odds 3:1 is exactly ln 3, and its best guess is right 3 in 4.
    assert "at most 75.0" in statement.bet(1.0986122886681098, 1e-12, "record")
    assert "practically 100%" in statement.bet(800.0, 1e-5, "record")


def test_a_bound_is_never_rounded_down() -> None:
    for epsilon in (0.001, 2.9701, 9.999, 57.01, 99.99, 1234.2):
        assert float(figures.bound(epsilon).replace(",", "")) >= epsilon - 1e-6


@pytest.mark.parametrize("last", [1, 2, 3, 6, 7, 11, 47, 99, 100, 1000, 100_000])
def test_marked_rounds_are_few_whole_and_end_at_the_last(last: int) -> None:
    marks = plots.round_numbers(last)
    assert (marks[0], marks[-1]) == (0, last)
    assert list(marks) == sorted(set(marks))
    assert len(marks) <= 8


def test_labels_of_lines_that_end_together_do_not_touch() -> None:
    placed = plots._spread([200.0, 203.0, 204.0])
    gaps = [low - high for high, low in itertools.pairwise(placed)]
    assert min(gaps) >= plots.LABEL_GAP
    assert max(placed) <= plots.HEIGHT - plots.BOTTOM


@pytest.mark.parametrize("module", [figures, markup, plots])
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.browser
@pytest.mark.parametrize("how", [{}, {"seeded": True}, {"classes": 77}], ids=str)
def test_a_browser_draws_it_without_a_complaint_or_a_request(
    how: dict[str, Any], outcome: MakeOutcome, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    write_report(*outcome(**how), tmp_path / "report.html")
    picture = tmp_path / "report.png"
    flags = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync enable-logging=stderr window-size=1200,2400"
    )
    command = [browser, *(f"--{flag}" for flag in flags.split())]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    with serving(tmp_path) as (address, asked):
        command.append(f"{address}/report.html")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert picture.stat().st_size > 50_000
    assert asked == ["/report.html"]
    # A fetch from elsewhere would break the page's policy, and the console would tell.
    assert "CONSOLE" not in done.stderr


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve ``folder`` on a free port; yields the address and the paths asked for so far."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:  # noqa: ANN401 -- socketserver's own arguments
            super().__init__(*args, directory=str(folder))

        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
