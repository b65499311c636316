import contextlib
import io
import json
import logging
import os
import re
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from common import log

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)


def written(event: str, **values: object) -> str:
    stream = io.StringIO()
    log.configure(stream=stream)
    structlog.get_logger().info(event, **values)
    return stream.getvalue()


def test_an_event_is_time_level_words_and_pairs() -> None:
    line = written("session opened", site="A", rounds=3, loss=0.125, resumed=True, note=None)
    assert re.fullmatch(
        rf"{TIME} info    session opened  site=A rounds=3 loss=0.125 resumed=True note=None\n", line
    )


def test_text_with_spaces_is_quoted() -> None:
    assert 'why="socket closed" empty=""' in written("session lost", why="socket closed", empty="")


@pytest.mark.parametrize(
    "value", [["Mrs Miller"], {"Mrs Miller": 1}, b"Mrs Miller", {"Mrs Miller"}]
)
def test_a_value_of_no_plain_type_is_only_named(value: object) -> None:
    line = written("batch", value=value)
    assert "Miller" not in line
    assert f"value=<{type(value).__name__}>" in line


def test_long_text_is_cut() -> None:
    assert len(written("text", value="x" * 100_000)) < log.MAX_TEXT + 100


@given(st.text(), st.text())
def test_no_value_makes_a_second_line_or_moves_the_cursor(event: str, value: str) -> None:
    line = written(event, value=value)
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_an_exception_is_its_class_and_message_without_frames() -> None:
    stream = io.StringIO()
    log.configure(stream=stream)
    try:
        int("seven")
    except ValueError:
        structlog.get_logger().exception("job failed", job="wards")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert "ValueError: invalid literal for int()" in line
    assert "Traceback" not in line
    assert __file__ not in line


def test_frames_are_places_innermost_first() -> None:
    try:
        log.frames(None)  # type: ignore[arg-type]
    except AttributeError as error:
        inner, outer = log.frames(error).split(" < ")
    assert re.fullmatch(r"common/log\.py:\d+ frames", inner)
    assert outer.endswith("test_frames_are_places_innermost_first")


def test_json_lines_hold_the_same_values() -> None:
    stream = io.StringIO()
    log.configure(json_lines=True, stream=stream)
    structlog.get_logger().warning("late reply", site="B", round=2, where=Path("/x"))
    event = json.loads(stream.getvalue())
    assert re.fullmatch(TIME, event.pop("timestamp"))
    assert event == {
        "event": "late reply",
        "level": "warning",
        "site": "B",
        "round": 2,
        "where": "<PosixPath>",
    }


def test_the_level_holds_back_what_is_below_it() -> None:
    stream = io.StringIO()
    log.configure(level="warning", stream=stream)
    structlog.get_logger().info("session opened")
    structlog.get_logger().warning("late reply")
    assert stream.getvalue().count("\n") == 1


def test_libraries_speak_from_warnings_up_and_through_the_same_gate() -> None:
    stream = io.StringIO()
    log.configure(stream=stream)
    library = logging.getLogger("flwr")
    library.setLevel(logging.DEBUG)  # this and a handler, as flwr does when it is imported
    own = io.StringIO()
    library.addHandler(logging.StreamHandler(own))
    library.info("a banner\nof two lines")
    library.warning("two\nlines of %s", "words")
    assert re.fullmatch(rf"{TIME} warning two\\nlines of words  logger=flwr\n", stream.getvalue())
    assert own.getvalue() == ""


def test_a_format_string_that_does_not_fit_is_logged_as_it_stands() -> None:
    stream = io.StringIO()
    log.configure(stream=stream)
    logging.getLogger("grpc").warning("%d of %d", "x")
    assert "%d of %d" in stream.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_log_stops_nothing() -> None:
    with Path("/dev/full").open("w", buffering=1, encoding="utf-8") as full:
        log.configure(stream=full)
        structlog.get_logger().info("session opened")
        with contextlib.suppress(OSError):
            full.close()
    structlog.get_logger().info("session lost")


def lines_of(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_a_file_that_was_asked_for_has_every_event_and_is_its_owners_alone(tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "logs" / "site.log"
    before = os.umask(0)
    try:
        log.configure(stream=stream, file=file)
        structlog.get_logger().info("round starts", round=1)
        logging.getLogger("grpc").warning("from a library")
    finally:
        os.umask(before)
    assert file.read_text() == stream.getvalue()
    assert len(lines_of(file)) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_the_file_is_turned_over_and_its_past_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "FILE_BYTES", 1000)
    monkeypatch.setattr(log, "OLD_FILES", 2)
    log.configure(stream=io.StringIO(), file=tmp_path / "site.log")
    for number in range(200):
        structlog.get_logger().info("event", number=number)
    files = [tmp_path / name for name in ("site.log.2", "site.log.1", "site.log")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(path.stat().st_size <= 1000 for path in files)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    kept = [int(line.rpartition("=")[2]) for path in files for line in lines_of(path)]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) > 40


def test_a_file_that_takes_no_more_leaves_the_other_log_and_the_program_alone(
    tmp_path: Path,
) -> None:
    stream, (soft, hard) = io.StringIO(), resource.getrlimit(resource.RLIMIT_FSIZE)
    log.configure(stream=stream, file=tmp_path / "site.log")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        structlog.get_logger().info("round starts")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "round starts" in stream.getvalue()
    assert not (tmp_path / "site.log").read_text()


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    stream, mine = io.StringIO(), tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "site.log").symlink_to(mine)
    log.configure(stream=stream, file=tmp_path / "site.log")
    structlog.get_logger().info("round starts")
    assert mine.read_text() == "mine"
    assert "round starts" in stream.getvalue()


@pytest.mark.parametrize("value", [["Mrs Miller"], b"Mrs Miller", Path("/Mrs Miller")])
def test_what_is_bound_to_a_thread_passes_the_same_gate(value: object) -> None:
    with structlog.contextvars.bound_contextvars(id=value):
        line = written("round starts")
    assert "Miller" not in line
    assert f"id=<{type(value).__name__}>" in line


@given(st.text())
def test_nothing_bound_to_a_thread_makes_a_second_line(value: str) -> None:
    with structlog.contextvars.bound_contextvars(id=value):
        line = written("round starts")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) < log.MAX_TEXT * 11
