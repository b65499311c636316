"""What both ends of the link agree on at the level of gRPC: method names, limits, keepalive.

Not covered: certificates (common/pki.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

import common
from common.link.framing import MAX_FRAME_BYTES

SERVICE = "veiltune.Federation"
SESSION, FETCH, RENEW, DOCUMENTS = "Session", "Fetch", "Renew", "Documents"
# With the end of a fetch the server says its time, in seconds since 1970 (UTC).
TIME_KEY = "veiltune-time"

Options = tuple[tuple[str, int], ...]

_KEEPALIVE_MS, _KEEPALIVE_TIMEOUT_MS = 10_000, 5_000
_COMMON: Options = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
SERVER_OPTIONS: Options = (
    *_COMMON,
    # Without it a second server binds the same port and each gets half of the sites.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 4),  # a connection: one session, a fetch, and some slack
    # What a site may send before it is read: by itself gRPC lets this grow to whole adapters.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
)
CLIENT_OPTIONS: Options = (
    *_COMMON,
    # Each attempt is a connection of its own: our backoff decides, not gRPC's.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """One end's certificate chain and key, and the roots that the other end may descend from."""

    root_pem: bytes
    chain_pem: bytes
    key_pem: bytes = field(repr=False)


def server_credentials(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """For a server that requires a client certificate and speaks TLS 1.3 only.

    ``current`` is asked at every handshake; what it gives holds from that one on. Connections that
    stand keep what they were made with.

    Raises:
        RuntimeError: this process imported gRPC before ``common``, which would serve TLS 1.2 too.
    """
    if not common.REFUSES_TLS_1_2:
        raise RuntimeError("common must be imported before grpc to refuse TLS 1.2, got it after")
    in_use = current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_use
        if (latest := current()) is in_use:
            return None
        in_use = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(in_use), changed, require_client_authentication=True
    )


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (credentials.key_pem, credentials.chain_pem)
    return grpc.ssl_server_certificate_configuration([pair], credentials.root_pem)


def open_channel(server: str, credentials: Credentials) -> grpc.Channel:
    """A lazy channel to ``server`` (host:port) that presents the site's certificate."""
    secrets = grpc.ssl_channel_credentials(
        credentials.root_pem, credentials.key_pem, credentials.chain_pem
    )
    return grpc.secure_channel(server, secrets, options=CLIENT_OPTIONS)
