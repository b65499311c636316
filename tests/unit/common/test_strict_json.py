"""What two readers of JSON could read differently is no JSON here (RFC 7493, RFC 8785)."""

import json

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.job import Job, parse_signed_job, sign_job
from common.strict_json import parse_json
from tests.story import make_job


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
        b"9007199254740993",
        b"-9007199254740993",
        b"1152921504606846976",
        b"1000000000000000000000",
        b"1e999",
        b"-1e999",
        b"[1.5, 1E+400]",
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
        (b"9007199254740992", 2.0**53),
        (b"-9007199254740992", -(2.0**53)),
        (b"10000000000000000", 1e16),
        (b"100000000000000000000", 1e20),
        (b"-123456789012345670000", -1.2345678901234567e20),
        (b"1e+21", 1e21),
    ],
)
def test_the_rest_is_read(text: str | bytes, found: object) -> None:
    assert parse_json(text) == found
    assert type(parse_json(text)) is type(found)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_rfc_8785_writes_is_read_as_it_was(number: float) -> None:
    assert parse_json(rfc8785.dumps(number)) == number


@pytest.mark.parametrize("norm", [1e15, 1e16, 1e20, 1e21, 1.2345678901234567e20])
def test_a_job_with_a_large_number_is_read_as_it_was_signed(norm: float) -> None:
    signed = sign_job(make_job(training={"max_update_norm": norm}), Ed25519PrivateKey.generate())
    read = parse_signed_job(signed.to_bytes())
    assert read.job.training.max_update_norm == norm
    assert read.to_bytes() == signed.to_bytes()


def test_a_double_is_no_whole_number_where_one_is_wanted() -> None:
    job = make_job().model_dump(mode="json")
    for seed in ("9007199254740992", "9007199254740993"):
        text = json.dumps(job | {"adapter": job["adapter"] | {"seed": 0}})
        with pytest.raises(ValueError, match=r"seed|every reader"):
            Job.model_validate(parse_json(text.replace('"seed": 0', f'"seed": {seed}', 1)))
