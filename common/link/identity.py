"""Who is at the other end: the site that its certificate names, and the number Flower knows it by.

Not covered: whether the certificate is trusted (TLS has checked its chain before anyone asks here)
and whether it is still welcome (the server's roster).
"""

import hashlib

from common.certificates import load_certificates, read_identity

_RESERVED_NODE_IDS = frozenset({0, 1})  # 0 is nobody, 1 is Flower's server


def node_id(site: str) -> int:
    """The Flower node id of ``site``: 63 bits of its name's sha256, the same on every machine.

    >>> node_id("A")
    3084250410449529532
    """
    digest = hashlib.sha256(site.encode()).digest()
    number = int.from_bytes(digest[:8], "big") >> 1
    return number if number not in _RESERVED_NODE_IDS else 2


def read_certificate(pem: bytes) -> tuple[str, int]:
    """The site that a certificate names, and its serial number.

    Raises:
        InvalidInput: no certificate, or one that does not name one site and nothing else.
    """
    leaf = load_certificates(pem)[0]
    return read_identity(leaf), leaf.serial_number
