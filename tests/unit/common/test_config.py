from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from common.config import MAX_CONFIG_BYTES, Name, Section, check_name, parse, parse_toml, read_toml
from common.errors import InvalidInput


class Inner(Section):
    rounds: int = Field(ge=1, le=9)
    rate: float = Field(default=0.5, gt=0, le=1)


class Outer(Section):
    inner: Inner
    names: tuple[Name, ...] = ()
    counts: dict[Name, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    "name",
    ["../x", "x/y", "", ".", "-rf", "a" * 64, "a\n", "a\0", "é", "A\u202e", "А", " a", "a b", "_a"],  # noqa: RUF001
)
def test_a_name_that_could_be_a_path_an_option_or_a_second_line_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="site must be 1 to 63 letters"):
        check_name("site", name)
    with pytest.raises(InvalidInput, match=r"names\.0 must be"):
        parse(Outer, {"inner": {"rounds": 1}, "names": [name]}, "f")
    with pytest.raises(InvalidInput, match="counts"):
        parse(Outer, {"inner": {"rounds": 1}, "counts": {name: 3}}, "f")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True))
def test_a_name_of_letters_digits_and_dashes_passes(name: str) -> None:
    assert check_name("site", name) == name
    assert parse(Outer, {"inner": {"rounds": 1}, "names": [name]}, "f").names == (name,)


def test_every_error_is_reported_at_once_with_its_key_and_value() -> None:
    data = {"inner": {"rounds": 0, "rate": 1.5, "ronds": 3}, "names": ["ok", "../x"], "extra": 7}
    with pytest.raises(InvalidInput) as caught:
        parse(Outer, data, "job.toml")
    message = str(caught.value)
    assert message.startswith("job.toml: ")
    for part in (
        "inner.rounds must be at least 1, got 0",
        "inner.rate must be at most 1.0, got 1.5",
        "inner.ronds must be a known key (did you mean rounds?), got 3",
        "names.1 must be",
        "extra must be a known key",
    ):
        assert part in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.25, "x", []])
def test_a_number_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"inner\.rate must be"):
        parse(Outer, {"inner": {"rounds": 1, "rate": value}}, "f")


def test_a_parsed_section_cannot_be_changed() -> None:
    section = parse(Inner, {"rounds": 2}, "f")
    with pytest.raises(ValueError, match="frozen"):
        section.rounds = 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a = ", "TOML"),
        (b"a = 1\na = 2", "TOML"),
        (b"\xff", "TOML in UTF-8"),
        ("a = 1".encode("utf-16"), "UTF-8 without a byte order mark"),
        (b"\xef\xbb\xbfa = 1", "UTF-8 without a byte order mark"),
        (b"a = " + b"9" * 5000, "TOML"),
        (b"a = " + b"[" * 20000, "at most 32 levels, got 20000"),
        (b".".join([b"a"] * 100_000) + b" = 1", "at most 32 levels, got 100000"),
        (b"a = 2026-13-45", "TOML"),
        (b"#" * (MAX_CONFIG_BYTES + 1), "at most"),
    ],
)
def test_a_file_that_is_no_small_toml_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=says):
        read_toml(path)


@pytest.mark.parametrize("place", ["missing.toml", ".", "/dev/zero", "a\0b"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(InvalidInput, match="config file must be a readable file"):
        read_toml(tmp_path / place)


def test_thirty_two_levels_are_taken_and_one_more_is_not() -> None:
    assert parse_toml(b".".join([b"a"] * 32) + b" = true", "f")["a"]["a"]
    with pytest.raises(InvalidInput, match="f must nest at most 32 levels, got 33"):
        parse_toml(b".".join([b"a"] * 33) + b" = true", "f")


def test_what_no_line_can_hold_is_named_all_the_same() -> None:
    deep: object = 7
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(InvalidInput) as caught:
        parse(Outer, {"inner": {"rounds": 1 << 40_000}, "deep": deep}, "f")
    assert "inner.rounds must be at most 9, got a number too long to write" in str(caught.value)
    assert "deep must be a known key" in str(caught.value)


def test_fifty_faults_are_told_and_the_others_counted() -> None:
    faulty = {f"k{number}": 1 for number in range(70)}
    with pytest.raises(InvalidInput, match=r"k49 must be .*; and 20 more$") as caught:
        parse(Inner, {"rounds": 1, **faulty}, "f")
    assert "k50" not in str(caught.value)
