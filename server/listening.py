"""An address to listen on: whether it is this machine's and free.

Not covered: whether it can be reached from elsewhere (server/portcheck.py).
"""

import socket
from contextlib import closing

from common.address import split_address
from common.errors import InvalidInput


def require_free(address: str) -> None:
    """Bind and release ``address``, because gRPC's own refusal does not say what is wrong.

    Raises:
        InvalidInput: it is in use, or not one of this machine.
    """
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in found:
            with closing(socket.socket(family, kind, protocol)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
    except OSError as error:
        words = f"{address}: {error.strerror}"
        raise InvalidInput(f"listen address must be free, got {words}") from error
