"""Addresses as people write them: ``host:port``, IPv6 in brackets.

Not covered: whether anything answers there (client/probe.py says so).
"""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator

from common.errors import InvalidInput

_HOST_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})"
)


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port of ``address``.

    Raises:
        InvalidInput: not ``host:port``.

    >>> split_address("[::1]:8443")
    ('::1', 8443)
    """
    match = _ADDRESS.fullmatch(address)
    host = match["host"].strip("[]") if match else ""
    in_brackets = address.startswith("[")
    if not match or int(match["port"]) > 65535 or in_brackets != (":" in host):
        raise InvalidInput(f"address must be host:port, got {address[:80]!r}")
    return check_host(host), int(match["port"])


def check_host(host: str) -> str:
    """Return ``host`` if it is an IP address or a DNS name without wildcards.

    Raises:
        InvalidInput: it is neither.
    """
    if is_ip(host):
        return host
    labels = host.split(".")
    numeric = labels[-1].isdigit()  # 10.0.0.256 is a mistyped address, not a name
    if len(host) > 253 or numeric or not all(re.fullmatch(_HOST_LABEL, part) for part in labels):
        raise InvalidInput(f"host must be a DNS name or an IP address, got {host[:80]!r}")
    return host


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # an interface name means nothing to the other side


def _public(value: str) -> str:
    if split_address(value)[1] == 0:
        raise InvalidInput(f"address must be host:port with a port above 0, got {value!r}")
    return value


def _listening(value: str) -> str:
    split_address(value)
    return value


PublicAddress = Annotated[str, AfterValidator(_public)]
ListenAddress = Annotated[str, AfterValidator(_listening)]  # port 0: any free one
