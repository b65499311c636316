"""Calls of a site beside its session: one request, one answer.

Not covered: when they are made (client/upkeep.py), what an answer means.
"""

import grpc

from client.config import SiteHome
from client.identity import Identity
from client.session import LinkConfig, Turned
from common.errors import LinkDown, Refusal, UpdateRejected
from common.link import federation_pb2 as wire
from common.link import framing
from common.link.channel import FETCH, SERVICE, open_channel
from common.link.framing import Assembler

_FETCH_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 20.0


class NotServed(LinkDown):
    """The server is of a version that does not know this call."""


def link_config(home: SiteHome, identity: Identity) -> LinkConfig:
    """The home's server and identity, as the link takes them."""
    return LinkConfig(
        server=home.config.server,
        root_pem=identity.root,
        certificate_pem=identity.certificate,
        key_pem=identity.key,
        site=home.site,
    )


def fetch(config: LinkConfig, job_sha256: str, cap_bytes: int) -> bytes:
    """A finished job's final adapter, as the server stored it.

    Raises:
        LinkDown: the server cannot be reached.
        Refusal: it has no such adapter for this site.
        UpdateRejected: what came is too long, or not what was announced.
    """

    def admit(header: wire.MessageHeader) -> bool:
        framing.require_size(header, cap_bytes)
        if (header.message_type, header.job_sha256) != (FETCH, job_sha256):
            raise UpdateRejected("adapter must be the asked job's, got another")
        return True

    request = wire.FetchRequest(job_sha256=job_sha256).SerializeToString()
    assembler, body = Assembler(admit), None
    try:
        with open_channel(config.server, config.credentials) as channel:
            call = channel.unary_stream(f"/{SERVICE}/{FETCH}")(request, timeout=_FETCH_TIMEOUT_S)
            for data in call:
                frame = framing.parse(data)
                if frame.WhichOneof("body") == "refusal":
                    raise Refusal(frame.refusal.words[:500])
                if body is not None:
                    raise UpdateRejected("adapter must end its stream, got more after it")
                if (received := assembler.take(frame)) is not None:
                    body = received.body
    except grpc.RpcError as error:
        raise LinkDown(config.why_not()) from error
    if body is None:
        raise UpdateRejected("adapter must be complete, got less than announced")
    return body


def call(config: LinkConfig, method: str, request: bytes) -> wire.Frame:
    """The server's answer to a call beside the session.

    Raises:
        NotServed: a server of before such calls.
        LinkDown: the server cannot be reached.
        Turned: the server's words why not.
        UpdateRejected: the answer is no frame.
    """
    try:
        with open_channel(config.server, config.credentials) as channel:
            ask = channel.unary_unary(f"/{SERVICE}/{method}")
            frame = framing.parse(ask(request, timeout=_CALL_TIMEOUT_S))
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise NotServed(
                f"server must answer {method}, got one that does not know it"
            ) from error
        raise LinkDown(config.why_not()) from error
    if frame.WhichOneof("body") == "refusal":
        raise Turned(frame.refusal.reason, frame.refusal.words[:500])
    return frame
