"""Addresses; the oracles are ipaddress and a list made by hand."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.address import check_host, is_ip, split_address
from common.errors import InvalidInput


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("fl.example.org:8443", ("fl.example.org", 8443)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    ["", ":", "host", "host:", ":8443", "host:-1", "host:65536", "host:8443\n", " host:1", "h:1:2",
     "2001:db8::1:8443", "[fe80::1%eth0]:1", "https://host:1", "host/x:1", "*.example:1", "-a:1",
     "10.0.0.256:1", "a..b:1", "host:\u0661", "h\u00f6st:1", "a" * 64 + ":1", "[host]:1",
        "[abc.de]:1",
        "[10.0.0.1]:1"],
)  # fmt: skip
def test_anything_else_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput):
        split_address(address)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_ip_address_can_be_written(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    host = f"[{ip}]" if ip.version == 6 else str(ip)
    assert split_address(f"{host}:{port}") == (str(ip), port)
    assert is_ip(str(ip))


@given(st.text(max_size=40))
def test_any_text_is_a_plain_host_or_refused(text: str) -> None:
    try:
        check_host(text)
    except InvalidInput:
        return
    assert text.isascii()
    assert not set(text) & set(" \t\r\n\x00/@%*\"'\\")
