"""What two readers of JSON could read differently is no JSON here (RFC 7493, RFC 8785)."""

import pytest

from common.strict_json import parse_json


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}',
        b"NaN",
        b'"\\ud800"',
        b'"\\uDFFF and more"',
        b'"\xed\xa0\x80"',
        '"\ud800"',
        b'{"\\ud83d":1}',
        b"9007199254740992",
        b"-9007199254740992",
        b"1" * 5000,
        b"[" * 100_000,
        '"x"'.encode("utf-16"),
        b"\xef\xbb\xbf1",
    ],
)
def test_what_readers_differ_in_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        ('"\\\\ud800"', "\\ud800"),
        (b"9007199254740991", 2**53 - 1),
        (b'{"a":[1.5,-3]}', {"a": [1.5, -3]}),
    ],
)
def test_the_rest_is_read(text: str | bytes, found: object) -> None:
    assert parse_json(text) == found
