"""Bytes from elsewhere end in an answer or in one sentence, whatever they are.

The oracle is the type of what is raised: an error of ours, whose words fit a line of a log. Spoilt
documents reach deeper than noise, so both are tried.
"""

import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import VeiltuneError
from tests.fuzz.parsers import Parser, parsers

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
@pytest.mark.parametrize("name", ["message", "job.toml", "records.csv", "ledger"])
def test_a_coverage_guided_fuzzer_finds_no_other_end(name: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz.harness", name, "-max_total_time=4"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
