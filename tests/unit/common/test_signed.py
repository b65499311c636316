"""Documents that a root signs. OpenSSL verifies the signature over bytes laid out here by hand."""

import datetime as dt
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import pki
from common.errors import InvalidInput, Refusal
from common.signed import Handover, Retirement, SignedRoster, read, sign, verify

ROOT = pki.create_root("north")
OTHER = pki.create_root("north")
KEYS = {"A": ("a1" * 32,), "B": ("b2" * 32, "b3" * 32)}
ROSTER = SignedRoster(
    root=pki.fingerprint(ROOT.certificate),
    federation="north",
    sequence=7,
    signed_at=dt.datetime(2026, 11, 25, 13, 0, tzinfo=dt.UTC),
    sites=KEYS,
    denied=("abc123",),
)
SIGNED = sign(ROSTER, ROOT)


def test_what_was_signed_is_read_back() -> None:
    assert verify(SignedRoster, SIGNED, OTHER.certificate + ROOT.certificate) == ROSTER
    assert read(SignedRoster, SIGNED) == ROSTER


HANDOVER = sign(Handover(root=ROSTER.root, federation="north", successor="x"), ROOT)


@pytest.mark.parametrize(("kind", "signed"), [("roster", SIGNED), ("handover", HANDOVER)])
def test_openssl_verifies_the_signature(tmp_path: Path, kind: str, signed: bytes) -> None:
    content = json.loads(signed)
    canonical = json.dumps(content["document"], sort_keys=True, separators=(",", ":"))
    (tmp_path / "message").write_bytes(f"veiltune {kind} v1\n{canonical}".encode())
    (tmp_path / "signature").write_bytes(bytes.fromhex(content["signature"]))
    (tmp_path / "root.pem").write_bytes(ROOT.certificate)
    public = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "root.pem", "-noout", "-pubkey"],
        capture_output=True,
        check=True,
    ).stdout
    (tmp_path / "public.pem").write_bytes(public)
    done = subprocess.run(
        [
            *("openssl", "dgst", "-sha256", "-verify", tmp_path / "public.pem"),
            *("-signature", tmp_path / "signature", tmp_path / "message"),
        ],
        capture_output=True,
        check=False,
    )
    assert done.stdout == b"Verified OK\n"


def test_a_document_of_another_root_is_refused() -> None:
    with pytest.raises(Refusal, match="roster must be signed by a root that is trusted"):
        verify(SignedRoster, SIGNED, OTHER.certificate)


def test_a_root_of_the_same_name_cannot_sign_for_this_one() -> None:
    forged = json.loads(sign(ROSTER.model_copy(update={"root": sha256_of(OTHER)}), OTHER))
    forged["document"]["root"] = sha256_of(ROOT)
    with pytest.raises(Refusal, match="must be signed by the root it names"):
        verify(SignedRoster, json.dumps(forged).encode(), ROOT.certificate)


def sha256_of(root: pki.Credential) -> str:
    return pki.fingerprint(root.certificate)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sequence", 8),
        ("sites", {"A": ["a1" * 32]}),
        ("denied", []),
        ("federation", "south"),
        ("signed_at", "2026-11-25T13:00:01Z"),
    ],
)
def test_an_edited_document_is_refused(key: str, value: object) -> None:
    content = json.loads(SIGNED)
    content["document"][key] = value
    with pytest.raises(Refusal, match="edited after signing"):
        verify(SignedRoster, json.dumps(content).encode(), ROOT.certificate)


def test_a_signature_of_one_kind_does_not_do_for_another() -> None:
    handover = Handover(root=sha256_of(ROOT), federation="north", successor="x")
    retirement = Retirement(root=sha256_of(ROOT), federation="north", retired="ab" * 32)
    signature = json.loads(sign(handover, ROOT))["signature"]
    content = {**json.loads(sign(retirement, ROOT)), "signature": signature}
    with pytest.raises(Refusal, match="retirement must be signed by the root it names"):
        verify(Retirement, json.dumps(content).encode(), ROOT.certificate)
    with pytest.raises(Refusal, match="handover must be a signed document"):
        verify(Handover, SIGNED, ROOT.certificate)


def test_nobody_signs_with_a_key_that_is_not_the_root_s() -> None:
    with pytest.raises(InvalidInput, match="signing key must be the root's"):
        sign(ROSTER, pki.Credential(ROOT.certificate, OTHER.key))
    with pytest.raises(InvalidInput, match="document must be of this root"):
        sign(ROSTER, OTHER)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_what_is_no_document_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(Refusal, match="must be a signed document"):
        verify(SignedRoster, data, ROOT.certificate)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"document": {"sequence": 1e999}, "signature": "ab"}',
        SIGNED.replace(b'"sequence":7', b'"sequence":' + b"7" * 30),
        SIGNED + b"x",
        b" " * (4 * 1024 * 1024 + 1),
    ],
    ids=["deep", "infinite", "long number", "more after it", "large"],
)
def test_a_hostile_document_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(Refusal, match="roster must be"):
        verify(SignedRoster, data, ROOT.certificate)
