import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInput
from common.invitation import SECRET_BYTES, Token, new_secret, read_token

TOKEN = Token("fl.example.org:8444", "c3" * 32, bytes(range(7, 7 + SECRET_BYTES)))


def test_a_token_is_as_its_docstring_lays_it_out() -> None:
    word = TOKEN.to_text().removeprefix("vt1.")
    data = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
    body = b"\xc3" * 32 + bytes(range(7, 27)) + b"fl.example.org:8444"
    assert data == body + hashlib.sha256(b"veiltune token v1\n" + body).digest()[:4]
    assert read_token(f" {TOKEN.to_text()}\n") == TOKEN


def test_a_secret_has_at_least_128_bits_and_is_new_every_time() -> None:
    assert len(new_secret()) * 8 >= 128
    assert len({new_secret() for _ in range(50)}) == 50


def test_a_token_in_a_log_or_a_trace_shows_no_secret() -> None:
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert "secret" not in repr(TOKEN)


@given(st.integers(0, len(TOKEN.to_text()) - 1), st.sampled_from("Aa0-_.~ \n"))
def test_a_token_with_one_wrong_character_is_refused_and_not_shown(
    place: int, character: str
) -> None:
    text = TOKEN.to_text()
    wrong = text[:place] + character + text[place + 1 :]
    if wrong.strip() == text:
        return
    with pytest.raises(InvalidInput, match="token must be the whole word") as caught:
        read_token(wrong)
    assert wrong[4:] not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "vt1.", TOKEN.to_text()[:-1], TOKEN.to_text() * 2, "vt1." + "A" * 5000, "vt1.é"]
)
def test_a_part_of_a_token_is_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="token must be the whole word"):
        read_token(text)


@given(st.binary(min_size=60, max_size=120))
def test_bytes_that_check_out_and_mean_nothing_are_refused(body: bytes) -> None:
    check = hashlib.sha256(b"veiltune token v1\n" + body).digest()[:4]
    text = "vt1." + base64.urlsafe_b64encode(body + check).decode().rstrip("=")
    try:
        token = read_token(text)
    except InvalidInput:
        return
    assert token.to_text() == text
