"""Logging that cannot carry a record: one event a line, plain values, exceptions without frames.

    2026-01-01T00:00:00Z info  session opened  site=A serial=3f

Values are admitted by type: text, numbers, booleans and None. Anything else (an array, a batch, a
tuple of texts) appears as its type's name, long text is cut, and line breaks are escaped, so that
no value can forge a second event. Libraries that use Python's own logging pass through the same
gate and speak from warnings up.

Events go to stderr, where systemd's journal takes them up and keeps them within its own bounds. For
a process that nobody keeps a journal of, a file can be asked for as well; it is turned over before
it holds more than ``FILE_BYTES``, and ``OLD_FILES`` before it are kept.

Not covered: a caller that puts a record's text into an event on purpose; a log that two processes
write to.
"""

import io
import json
import logging
import logging.handlers
import os
import sys
import traceback
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog

from common.files import make_folder

Level = Literal["debug", "info", "warning", "error"]

MAX_TEXT = 500
FILE_BYTES, OLD_FILES = 10_000_000, 5
_ADMITTED = (str, int, float, bool, type(None))
_MAX_FRAMES = 12
# These talk at info or set their own levels and handlers when imported.
_TALKATIVE = ("flwr", "absl", "transformers", "huggingface_hub", "sentence_transformers", "httpx")


def configure(
    *,
    level: Level = "info",
    json_lines: bool = False,
    stream: TextIO | None = None,
    file: Path | None = None,
) -> None:
    """Send every event of this process to ``stream`` (None: stderr as it is at the time).

    May be called again; the last call holds.

    Args:
        level: what to leave out below.
        json_lines: one JSON object a line.
        stream: where to.
        file: where to as well, in a folder made for its owner alone.

    Raises:
        StorageFailed: the file's folder cannot be made.
    """
    if file is not None:
        make_folder(file.parent)
    out = _Lossy(stream, None if file is None else _Rotating(file))
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,  # the id of common/trace.py
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
            admit,
            _as_json if json_lines else _as_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    _quieten(number)


def admit(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep what may stand in a log; a structlog processor."""
    error = event.pop("exc_info", None)
    if error:
        event["error"] = describe(error if isinstance(error, BaseException) else sys.exc_info()[1])
    event.pop("stack_info", None)
    return {_text(str(key), 60): _admitted(value) for key, value in event.items()}


def describe(error: BaseException | None) -> str:
    """An exception as its class and message, without frames or the values in them.

    >>> describe(ValueError("steps must be at least 1, got 0"))
    'ValueError: steps must be at least 1, got 0'
    """
    if error is None:
        return ""
    message = str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def frames(error: BaseException) -> str:
    """Where an exception was raised, innermost first: files, lines and functions, no values."""
    found = reversed(traceback.extract_tb(error.__traceback__))
    places = [
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}" for frame in found
    ]
    return " < ".join(places[:_MAX_FRAMES])


def _admitted(value: object) -> str | int | float | bool | None:
    if isinstance(value, BaseException):
        return _text(describe(value), MAX_TEXT)
    if not isinstance(value, _ADMITTED):
        return f"<{type(value).__name__}>"
    return _text(value, MAX_TEXT) if isinstance(value, str) else value


def _text(value: str, longest: int) -> str:
    cut = value if len(value) <= longest else value[: longest - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _as_line(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    time, level, name = (event.pop(key, "") for key in ("timestamp", "level", "event"))
    # The id first (common/trace.py), whether it was bound or given: lines of a round line up.
    ordered = sorted(event.items(), key=lambda pair: pair[0] != "id")
    pairs = " ".join(f"{key}={_value(value)}" for key, value in ordered)
    return f"{time} {level:<7} {name}" + (f"  {pairs}" if pairs else "")


def _value(value: object) -> str:
    """Quoted where a reader could not tell where the value ends."""
    text = format(value, ".6g") if isinstance(value, float) else str(value)
    plain = text and not any(c in ' ="' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _as_json(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, default=str)


class _Rotating(logging.handlers.RotatingFileHandler):
    """A file of at most ``FILE_BYTES``, for its owner alone, and those before it."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True
        )

    def _open(self) -> io.TextIOWrapper:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk under the log ends nothing; stderr has the event."""


class _Lossy:
    """A stream that never raises: a full disk under the log must not end a round."""

    def __init__(self, stream: TextIO | None, file: _Rotating | None = None) -> None:
        self._stream = stream
        self._file = file

    def write(self, text: str) -> int:
        if self._file is not None:
            self._file.handle(logging.makeLogRecord({"msg": text.removesuffix("\n")}))
        try:
            (self._stream or sys.stderr).write(text)
        except (OSError, ValueError):  # full, gone or closed
            return 0
        return len(text)

    def flush(self) -> None:
        try:
            (self._stream or sys.stderr).flush()
        except (OSError, ValueError):
            return


class _Gate(logging.Handler):
    """Python's own logging, through the same processors."""

    def emit(self, record: logging.LogRecord) -> None:
        values: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[1]:
            values["error"] = record.exc_info[1]
        logger = structlog.get_logger()
        logger.log(min(record.levelno, logging.CRITICAL), _message(record), **values)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library's format string that does not fit its arguments
        return str(record.msg)


def _at_least_a_warning(record: logging.LogRecord) -> bool:
    # A handler that a library gave itself would print the event a second time, in its own form.
    logging.getLogger(record.name).handlers.clear()
    return record.levelno >= logging.WARNING


def _quieten(level: int) -> None:
    root = logging.getLogger()
    root.handlers = [_Gate()]
    root.setLevel(max(level, logging.WARNING))
    for name in _TALKATIVE:
        # A filter, because a library's own setLevel on import would undo a level set here.
        logging.getLogger(name).addFilter(_at_least_a_warning)
    # What libraries deprecate is for whoever changes this code, not for a terminal at a hospital.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
