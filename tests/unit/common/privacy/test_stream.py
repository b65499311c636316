import os
import shutil
import subprocess

import pytest
from scipy import stats

from common.privacy.stream import KEY_BYTES, Stream, fresh_key, public_keys

KEY = bytes(range(32))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_the_words_are_openssls_key_stream() -> None:
    made = subprocess.run(
        ["openssl", "enc", "-aes-256-ctr", "-K", KEY.hex(), "-iv", "00" * 16],
        input=bytes(4096),
        capture_output=True,
        check=True,
    ).stdout
    stream = Stream(KEY)
    assert stream.words(3).tobytes() + stream.words(509).tobytes() == made


def test_the_first_block_is_the_published_aes_256() -> None:
    # FIPS-197 has no zero block; NIST's AESAVS (2002), KeySbox for 256 bits, encrypts one.
    key = bytes.fromhex("c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558")
    assert Stream(key).words(2).tobytes().hex() == "46f2fb342d6f0ab477476fc501242c5f"


def test_a_stream_goes_on_where_it_stopped() -> None:
    whole, parts = Stream(KEY), Stream(KEY)
    assert whole.words(20).tolist() == [*parts.words(7), *parts.words(13)]


def test_uniforms_are_the_top_53_bits_and_never_reach_1() -> None:
    words = Stream(KEY).words(1000)
    expected = [int(word) // 2**11 / 2**53 for word in words]
    assert Stream(KEY).uniforms(1000).tolist() == expected
    many = Stream(os.urandom(32)).uniforms(200_000)
    assert many.min() >= 0
    assert many.max() < 1
    assert stats.kstest(many, "uniform").pvalue > 1e-9


def test_a_fresh_key_is_new_whatever_it_is_for() -> None:
    keys = {fresh_key("noise", 1, 1) for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_public_keys_repeat_and_differ_by_purpose_round_step_and_owner() -> None:
    places = [(p, r, s) for p in ("noise", "sampling") for r in (1, 2, 11) for s in (0, 1, 11)]
    keys = [public_keys("job", site)(*place) for site in ("A", "B") for place in places]
    assert len(set(keys)) == len(keys)
    assert public_keys("job", "A")("noise", 1, 0) == public_keys("job", "A")("noise", 1, 0)
