import contextlib
import io
import json
import logging
import re
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
