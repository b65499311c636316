"""Bytes from elsewhere end in an answer or in one sentence, whatever they are.

The oracle is the type of what is raised: an error of ours, whose words fit a line of a log. Spoilt
documents reach deeper than noise, so both are tried.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import VeiltuneError
from common.job import parse_signed_job
from tests.fuzz.parser import Parser
from tests.fuzz.parsers import parsers

ROOT = Path(__file__).parents[2]
NAMES = tuple(parsers())
LONGEST_SENTENCE = 20_000
DEEP = {
    "brackets": b"[" * 100_000,
    "objects": b'{"a":' * 50_000,
    "dotted": b".".join([b"a"] * 100_000) + b" = 1",
    "dotted and quoted": b".".join([b'"a b"'] * 40_000) + b" = 1",
    "tables": b"[" + b".".join([b"a"] * 100_000) + b"]",
    "digits": b"a = " + b"9" * 100_000,
    "hex digits": b"a = 0x" + b"f" * 100_000,
    "half a megabyte of keys": b"".join(b"k%d = 1\n" % n for n in range(40_000)),
    "byte order mark": b"\xef\xbb\xbfa = 1",
    "utf-16": "a = 1".encode("utf-16"),
    "nothing": b"",
    "zeros": bytes(100_000),
    "varints": b"\x08\x01" * 50_000,
    "empty submessages": b"\x12\x00" * 50_000,
    "groups": b"\x0b" * 50_000,
}


@cache
def parser(name: str) -> Parser:
    return parsers()[name]


def require_a_sentence(name: str, data: bytes) -> None:
    try:
        parser(name).read(data)
    except VeiltuneError as error:
        said = str(error)
        assert said.strip()
        assert len(said) <= LONGEST_SENTENCE


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_document_is_taken(name: str) -> None:
    if name == "roster":  # it is read, and then does not hold the serial that was asked for
        with pytest.raises(VeiltuneError, match="serial"):
            parser(name).read(parser(name).whole)
    else:
        assert parser(name).read(parser(name).whole) is not None


# Who turns bytes into values; whatever calls one of them reads something from elsewhere.
DECODERS = {"parse_json", "read_json", "read_toml", "FromString", "ParquetFile"}
NOT_FUZZED = {
    "common/audit/ledger_cli.py ledger_command": "the head is read as an anchor's is",
    "common/flower.py content_from_bytes": "what this home's own outbox wrote",
    "common/settings.py read_settings": "a doctor's second look at site.toml and server.toml",
    "server/link.py _requested_job": "one string, matched against 64 hex digits",
}


def readers() -> Iterator[tuple[str, str]]:
    """File and function of every call of a decoder in the source."""
    for package in ("common", "client", "server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(function, ast.FunctionDef) and DECODERS & set(called(function)):
                    yield str(path.relative_to(ROOT)), function.name


def called(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", ""))


def functions_run(work: Callable[[], None]) -> set[tuple[str, str]]:
    """File and function of all that ``work`` calls."""
    seen = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return {
        (str(Path(file).relative_to(ROOT)), name)
        for file, name in seen
        if file.startswith(f"{ROOT}/")
    }


def test_whatever_decodes_bytes_is_fuzzed() -> None:
    def read_all() -> None:
        for name in NAMES:
            with suppress(VeiltuneError):
                parser(name).read(parser(name).whole)

    parser(NAMES[0])  # made beforehand: making documents reads some
    parse_signed_job.cache_clear()
    missed = {f"{file} {name}" for file, name in set(readers()) - functions_run(read_all)}
    assert missed == set(NOT_FUZZED)


@pytest.mark.parametrize("bomb", DEEP)
@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_is_refused_before_it_goes_off(name: str, bomb: str) -> None:
    require_a_sentence(name, DEEP[bomb])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(data=st.binary(max_size=600))
@example(data=b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
def test_noise_ends_in_a_sentence(name: str, data: bytes) -> None:
    require_a_sentence(name, data)


cut = st.tuples(st.integers(0, 1 << 16), st.integers(0, 40), st.binary(max_size=6))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(cuts=st.lists(cut, min_size=1, max_size=4))
def test_a_spoilt_document_ends_in_a_sentence(
    name: str, cuts: list[tuple[int, int, bytes]]
) -> None:
    data = parser(name).whole
    for start, length, put in cuts:
        at = start % (len(data) + 1)
        data = data[:at] + put + data[at + length :]
    require_a_sentence(name, data)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize(
    "name", ["message", "job.toml", "records.csv", "ledger", "join request", "handover"]
)
def test_a_coverage_guided_fuzzer_finds_no_other_end(name: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz.harness", name, "-max_total_time=4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
