import doctest
import tomllib

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from common import nesting
from common.nesting import levels


def test_the_example_in_the_docstring_holds() -> None:
    assert doctest.testmod(nesting).attempted == 1
    assert doctest.testmod(nesting).failed == 0


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        ("", 0),
        ("a = 1", 0),
        ("a.b = 1", 2),
        ("a . b\t.c = 1", 3),
        ("a.\"b.c\".'d.e' = 1", 3),
        ("[a.b]\nx = [[1, 2], [3]]", 4),
        ('x = \'[[[[\' # [[[[\ny = """\n[[[[ \\""" [[\n"""', 0),
        ('x = """ "" [[ """\ny = [1]', 1),
        ("x = '''\n[[[\n''' \ny = {a = {b = 1}}", 2),
        ('x = "\\"[[["', 0),
        ('x = "not closed [[\ny = [1]', 1),
        ("1.5", 2),  # a number's point counts as a key's: too many is no harm
    ],
)
def test_brackets_and_dotted_keys_count_outside_of_strings(text: str, deep: int) -> None:
    assert levels(text) == deep


def depth(value: object) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    is_nest = isinstance(value, dict | list)
    return is_nest + max((depth(item) for item in below), default=0)


leaf = st.one_of(st.integers(-9, 9), st.text(max_size=12), st.booleans())
tree = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)


@given(st.dictionaries(st.text(max_size=4), tree, max_size=4))
def test_no_document_is_deeper_than_its_levels_allow(document: dict[str, object]) -> None:
    # The outermost table has no bracket and no name.
    assert (levels(tomli_w.dumps(document)) / 2 + 1) ** 2 >= depth(document) - 1


def test_dotted_names_within_brackets_multiply_up_to_the_bound() -> None:
    text = "x"
    for _ in range(16):
        text = "{" + ".".join(["k"] * 16) + f" = {text}}}"
    document = tomllib.loads(f"{'.'.join(['k'] * 16)} = {text}".replace("= x", "= 1"))
    assert levels(text) == 32
    assert 256 < depth(document) - 1 <= (32 / 2 + 1) ** 2
