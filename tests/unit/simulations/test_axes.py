"""What ``--sweep`` may say: values, lists, keys that go along, and what is refused."""

import math
import re
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from simulations.axes import MOST_RUNS, frozen, in_words, parse_axis, settings

KEY = "adapter.targets"
# What TOML and JSON write alike, so that another library can write it.
SCALARS = st.integers(-(10**6), 10**6) | st.text("ab,+=.[]{}'\"\\ #é", min_size=1, max_size=8)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.lists(st.lists(SCALARS, max_size=2))


@pytest.mark.parametrize(
    "text",
    [
        "training.rounds",
        "training.rounds=",
        "training.rounds=1,,2",
        "training.rounds=1,1",
        "training.rounds=1,1.0",
        "training.rounds=1,0x1",
        "adapter.method=ffa,'ffa'",
        'adapter.targets=["query"],["query"]',
        "adapter.rank=1+adapter.alpha=2,1+adapter.alpha=2.0",
        "adapter.rank=1+adapter.alpha=,2",
    ],
)
def test_an_axis_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"distinct values, got {text!r}")):
        parse_axis(text)


@pytest.mark.parametrize("text", ["a.b=[1", "a.b=1]", "a.b=]1[", "a.b='x,y", 'a.b=["x]'])
def test_what_is_left_open_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"brackets and quotes, got {text!r}")):
        parse_axis(text)


def test_a_setting_names_a_key_once() -> None:
    with pytest.raises(InvalidInput, match="must name each key once"):
        parse_axis("adapter.rank=1+adapter.rank=2")


def test_a_sign_and_a_plus_in_a_word_bring_no_key() -> None:
    assert parse_axis("training.learning_rate=1e+1,+2") == (
        (("training.learning_rate", 10.0),),
        (("training.learning_rate", 2),),
    )
    assert parse_axis("job.name=a+b") == ((("job.name", "a+b"),),)


@given(st.lists(VALUES, min_size=1, max_size=4, unique_by=frozen), VALUES)
def test_values_come_back_as_they_were_written(
    values: list[Any],
    along: Any,  # noqa: ANN401 -- whatever TOML holds
) -> None:
    tied = rfc8785.dumps(along).decode()
    text = ",".join(f"{rfc8785.dumps(value).decode()}+training.x={tied}" for value in values)
    want = tuple(((KEY, value), ("training.x", along)) for value in values)
    assert parse_axis(f"{KEY}={text}") == want


def test_too_many_runs_are_refused_before_they_are_made() -> None:
    axes = [f"s.k{i}={','.join(map(str, range(1000)))}" for i in range(9)]
    with pytest.raises(InvalidInput, match=f"at most {MOST_RUNS} runs, got {10**27}"):
        settings(axes, 1)


def test_combinations_are_all_there_in_order() -> None:
    found = settings(["s.a=1,2", "s.b=x,y+s.c=3"], 5)
    assert len(found) == math.prod((2, 2))
    assert found[1] == (("s.a", 1), ("s.b", "y"), ("s.c", 3))
    assert settings([], 1) == [()]
    assert in_words([1, {"A": True}]) == "[1, {A true}]"
